"""A trained run's embeddings: computed once, kept as RUN/embeddings.parquet, read from there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from rxrx1_jax.data import embeddings as embeddings_lib
from rxrx1_jax.data import records
from rxrx1_jax.data.embeddings import Embeddings
from rxrx1_jax.data.images import Images
from rxrx1_jax.training import evaluate, run_dir, train
from rxrx1_jax.training.run import Run
from rxrx1_jax.training.setup import Setup
from rxrx1_jax.training.steps import TrainState

FILE = "embeddings.parquet"


class Trained(NamedTuple):
    """A run's network on its devices, and what its results are recognised by."""

    setup: Setup
    state: TrainState
    source: dict[str, str]

    def embed(self) -> Embeddings:
        """All sites of the dataset, controls too, in its order."""
        rows = np.arange(len(self.setup.images))
        return evaluate.embed(self.setup, self.state, rows, self.source)


def load(workdir: Path) -> Trained:
    """The newest checkpoint of a run. Raises RunError, CheckpointError: one line."""
    run = Run.open(workdir)
    setup = run.set_up(run.images)
    return Trained(setup, run.state(setup), run.source)


def source(workdir: Path) -> dict[str, str]:
    """What a run's results are recognised by: `Run.source`. Raises RunError, CheckpointError."""
    return Run.open(workdir).source


def embed_run(config: ConfigDict, workdir: str | Path, images: Images | None = None) -> Path:
    """Writes the embeddings of a run, whether they are there or not.

    As the embeddings.csv that Recursion published (github.com/recursionpharma/rxrx-datasets,
    rxrx1/README.md), with the metadata of each site: what pycytominer, EFAAR and scanpy read.
    Raises RunError where `workdir` has no trained run.
    """
    run, setup = train.open_trained(config, Path(workdir), images)
    found = Trained(setup, run.state(setup), run.source).embed()
    if jax.process_index() == 0:
        embeddings_lib.write(found, run.path / FILE)
    return run.path / FILE


def embeddings_of(
    workdir: Path, log_probs: bool = False, trained: Callable[[], Trained] | None = None
) -> Embeddings:
    """The run's embeddings, and on request log-probabilities, of every site of the dataset.

    Read where they belong to the newest checkpoint, else computed and written first.

    Args:
      workdir: of the run.
      log_probs: whether they are needed too.
      trained: gives the run's network; None: `load` does.
    """
    path, made_by = workdir / FILE, source(workdir)
    files = [path, *([embeddings_lib.log_probs_path(path)] if log_probs else [])]
    if any(embeddings_lib.source_of(file) != made_by for file in files):
        found = (trained() if trained else load(workdir)).embed()
        if jax.process_index() == 0:
            embeddings_lib.write(found, path, log_probs)
        return found
    return embeddings_lib.read(path, log_probs)


def planted_sirnas(workdir: Path) -> dict[str, Any] | None:
    """metadata.json's planted effects of siRNAs, of the run's synthetic screen; else None."""
    data = run_dir.read_settings(workdir).data
    images = records.open_images(data.dir, data.name)
    return images.metadata.get("sirnas") if isinstance(images, records.Records) else None
