"""Embeddings of every site of a dataset by a trained run, in the shape of the official ones."""

from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
from ml_collections import ConfigDict

from rxrx1_jax.training import evaluate, predictions, train
from rxrx1_jax.training.setup import eval_batches


def embed_run(config: ConfigDict, workdir: str | Path) -> Path:
    """Writes embeddings.parquet: site_id and feature_0 ... feature_<d-1>, float32, a row a site.

    As the embeddings.csv that Recursion published (github.com/recursionpharma/rxrx-datasets,
    rxrx1/README.md): joined with metadata.csv by site_id it is what pycytominer, EFAAR and scanpy
    read. All sites are embedded, controls too, in the order of the dataset's records.

    Raises RunError where `workdir` has no trained run.
    """
    workdir = Path(workdir)
    task, state = train.restored(config, workdir)
    rows = np.arange(len(task.records))
    batches = eval_batches(config, task, rows)
    embeddings = evaluate.predict(task.steps.embed_step, state, batches, rows)["embedding"]
    columns: dict[str, pa.Array] = {"site_id": pa.array(task.records.sites["site_id"].tolist())}
    columns |= {f"feature_{i}": pa.array(column) for i, column in enumerate(embeddings.T)}
    path = workdir / "embeddings.parquet"
    if jax.process_index() == 0:
        predictions.write_predictions(path, pa.table(columns))
    return path
