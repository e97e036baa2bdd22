"""A trained run's embeddings: computed once, kept as RUN/embeddings.parquet, read from there."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from rxrx1_jax.data import embeddings as embeddings_lib
from rxrx1_jax.data import input_pipeline, records, splits
from rxrx1_jax.data.embeddings import Embeddings
from rxrx1_jax.training import evaluate, run_dir, train
from rxrx1_jax.training.setup import Task
from rxrx1_jax.training.steps import TrainState

FILE = "embeddings.parquet"


class Trained(NamedTuple):
    """A run's network on its devices, and the sites that it can be applied to."""

    config: ConfigDict
    task: Task
    state: TrainState

    @property
    def sites(self) -> np.ndarray:
        return self.task.records.sites

    def batches(self, rows: np.ndarray, size: int = 0) -> Iterator[dict[str, jax.Array]]:
        """One pass over `rows` of the dataset, in batches of `size`; 0: as in evaluations."""
        config, task = self.config, self.task
        return input_pipeline.eval_batches(
            task.records, rows, task.split, batch_size=size or config.eval.batch_size,
            normalisation=config.data.normalisation, crop=config.data.crop,
            dtype=jnp.dtype(config.model.dtype), sharding=task.steps.batch_sharding,
            threads=config.data.threads,
        )  # fmt: skip

    def outputs(
        self, rows: np.ndarray, step: Callable[..., Mapping[str, Any]], state: TrainState
    ) -> dict[str, np.ndarray]:
        """What step(state, batch) gives for `rows` of the dataset, in their order."""
        return evaluate.predict(step, state, self.batches(rows), rows)


def load(workdir: Path) -> Trained:
    """The newest checkpoint of a run. Raises RunError, CheckpointError: one line."""
    config = run_dir.read_settings(workdir)
    return Trained(config, *train.restored(config, workdir))


def source(workdir: Path) -> dict[str, str]:
    """What a run's results are recognised by: the step and the weights of its newest checkpoint.

    Nothing of the checkpoint but its checksums is read. Raises RunError where there is none.
    """
    folders = [path for path in (workdir / "checkpoints").glob("*") if path.name.isdecimal()]
    if not folders:
        raise run_dir.RunError(f"{workdir}: the run has no checkpoint yet; train it first")
    newest = max(folders, key=lambda path: int(path.name))
    sums = json.loads((newest / "log" / "metadata").read_text())["checksums"]
    kept = (name for name in ("ema_params", "ema_batch_stats", "params", "batch_stats"))
    weights = ".".join(f"{sums[name]:08x}" for name in kept if name in sums)
    return {"step": newest.name, "weights": weights}


def embed_run(config: ConfigDict, workdir: str | Path) -> Path:
    """Writes the embeddings of a run, whether they are there or not.

    As the embeddings.csv that Recursion published (github.com/recursionpharma/rxrx-datasets,
    rxrx1/README.md), with the metadata of each site: what pycytominer, EFAAR and scanpy read.
    Raises RunError where `workdir` has no trained run.
    """
    workdir = Path(workdir)
    found = embed(Trained(config, *train.restored(config, workdir)), source(workdir))
    if jax.process_index() == 0:
        embeddings_lib.write(found, workdir / FILE)
    return workdir / FILE


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
        found = embed((trained or (lambda: load(workdir)))(), made_by)
        if jax.process_index() == 0:
            embeddings_lib.write(found, path, log_probs)
        return found
    return embeddings_lib.read(path, log_probs)


def embed(trained: Trained, made_by: Mapping[str, str]) -> Embeddings:
    """Embeddings and log-probabilities of every site of the dataset, controls too, in its order.

    The role is that of `splits.site_roles`; control wells of experiments that the split uses have
    the role "context".
    """
    split, sites = trained.task.split, trained.sites
    outputs = trained.outputs(np.arange(len(sites)), trained.task.steps.embed_step, trained.state)
    role = splits.site_roles(split, len(sites))
    used = np.unique(sites["experiment"][np.concatenate([split.train, split.test])])
    context = (role == "other") & (sites["well_type"] != "treatment")
    role[context & np.isin(sites["experiment"], used)] = "context"
    return Embeddings(
        sites, outputs["embedding"], outputs["log_probs"], split.classes, source=made_by, role=role
    )


def planted_sirnas(workdir: Path) -> dict[str, Any] | None:
    """metadata.json's planted effects of siRNAs, of the run's synthetic screen; else None."""
    data = run_dir.read_settings(workdir).data
    folder = records.find_dataset(data.dir, data.name)
    return json.loads((folder / "metadata.json").read_text()).get("sirnas")
