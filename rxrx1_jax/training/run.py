"""A trained run, for whoever uses it. Reading it changes nothing; results go where they are to."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from rxrx1_jax.config import FREE, POINTS, change, check, default, flat, user_path
from rxrx1_jax.data import embeddings as embeddings_lib
from rxrx1_jax.data import splits, taught
from rxrx1_jax.data.embeddings import Embeddings
from rxrx1_jax.data.images import Images, Vocabulary
from rxrx1_jax.training import checkpoint, evaluate, parallel, predictions, run_dir, setup
from rxrx1_jax.training import log_probs as log_probs_lib
from rxrx1_jax.training.fingerprints import describe_data
from rxrx1_jax.training.origin import check_origin
from rxrx1_jax.training.setup import Setup
from rxrx1_jax.training.steps import TrainState

EMBEDDINGS, PREDICTIONS_ALL = "embeddings.parquet", "predictions_all.parquet"
# Version 0.2 sized heads for all of RxRx1, whatever the dataset.
CELL_TYPES, EXPERIMENTS = 4, 51


@dataclass(frozen=True)
class Run:
    """A directory that a training filled.

    Attributes:
      config: its settings, brought up to this version of the program.
      fingerprint: of its data and its split.
      made_with: versions of programs, devices; empty of version 0.2.
    """

    path: Path
    config: ConfigDict
    fingerprint: Mapping[str, str]
    made_with: Mapping[str, object]

    @classmethod
    def open(
        cls, path: str | Path, changes: Mapping[str, Any] | None = None,
        images: Images | None = None,
    ) -> "Run":  # fmt: skip
        """Raises RunError: no run there, one of a newer version, or other settings.

        Args:
          changes: fields to read it with; those that are not FREE must be the run's.
          images: in place of the dataset that the settings name.
        """
        path = user_path(path)
        config, saved = run_dir.read_saved(path)
        old, free = flat(config), default()
        change(config, changes or {})
        if differs := run_dir.difference(old, flat(config), FREE):
            raise run_dir.RunError(f"{path}: holds a run with {differs}; expected the run's value")
        config.model.dtype = old["model.dtype"]  # "auto" is what it was
        # Of the settings of a training nothing is asked here.
        free_values = [field for field in FREE if field not in POINTS]
        change(free, {field: flat(config)[field] for field in free_values})
        check(free)
        run = cls(path, config, saved.get("dataset", {}), saved.get("made_with", {}))
        if images is not None:
            run.__dict__["images"] = images  # in place of what the property would find
        return run

    @property
    def uses(self) -> frozenset[str]:
        """What its training saw beside its training sites (`taught.uses`)."""
        return taught.uses(flat({**self.config, "dataset": self.fingerprint}))

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Names of the codes, and classes [K] of the outputs. Raises CheckpointError."""
        saved = self.newest
        return saved.vocabulary or _vocabulary_of_old(saved.classes, self.images)

    @cached_property
    def newest(self) -> checkpoint.Saved:
        """The last checkpoint as it was first asked for: the run may be trained meanwhile."""
        return self._described("last")

    def _described(self, which: str) -> checkpoint.Saved:
        saved = checkpoint.describe(self.checkpoint(which))
        check_origin(saved, flat(self.config), self.fingerprint)
        return saved

    @cached_property
    def images(self) -> Images:
        """The dataset that the settings name. Raises DatasetError."""
        return setup.find_images(self.config)

    @cached_property
    def setup(self) -> Setup:
        """The network and its own data. Raises RunError where the dataset holds other data."""
        split, differs = self._split(self.images)
        if split is None:
            raise run_dir.RunError(f"{self.path}: {differs}; expected the data it was trained on")
        return self._set_up(self.images, split)

    @cached_property
    def state(self) -> TrainState:
        """The last checkpoint's network, in the form of `setup`. Raises CheckpointError."""
        return self._restored(self.setup)

    @property
    def source(self) -> dict[str, str]:
        """What a result is recognised by: the step and the weights of the last checkpoint."""
        sums = self.newest.checksums
        kept = [name for name in checkpoint.EVALUATED if name in sums and name != "step"]
        weights = ".".join(f"{sums[name]:08x}" for name in kept)
        return {"step": self.newest.path.name, "weights": weights}

    def checkpoint(self, which: str = "last") -> Path:
        """The folder of the last or the best one (`checkpoint.find`). Raises RunError."""
        path = checkpoint.find(self.path, which)
        if path is None:
            raise run_dir.RunError(
                f"{self.path}: no checkpoint yet to take the {which} of; train with --mode=train"
            )
        return path

    def load(self, which: str = "last") -> TrainState:
        """The network of the last or the best checkpoint, a copy on each device.

        `opt_state` and `loss_state`, which only a training needs, are ().
        """
        saved = self.newest if which == "last" else self._described(which)
        copied = parallel.Devices(self.config.train.parallelism).copied
        return checkpoint.restore(saved, copied, resume=False)

    def evaluated(self) -> dict[str, Any]:
        """params and batch_stats of the last checkpoint, on the host: averages where there are."""
        state = jax.device_get(self.load())
        if state.ema_params is None:
            return {"params": state.params, "batch_stats": state.batch_stats}
        return {"params": state.ema_params, "batch_stats": state.ema_batch_stats}

    def predict(self, images: Images, rows: np.ndarray | None = None) -> Embeddings:
        """Features and log-probabilities of images, the run's own or anybody's.

        Args:
          images: a dataset (`Records`), or arrays with control statistics (`InMemory`).
          rows: numbers of images, in any order, each once; None: all.

        Raises:
          RunError: images that the network was not made for.
        """
        n = len(images)
        rows = np.arange(n) if rows is None else np.asarray(rows)
        valid = rows.dtype.kind in "iu" and rows.ndim == 1 and rows.size
        if not valid or len(np.unique(rows)) < len(rows) or not 0 <= rows.min() <= rows.max() < n:
            raise run_dir.RunError(
                f"rows: {rows.dtype} {rows.shape}, expected numbers of images, 0 to {n - 1}, each"
                " once"
            )
        split, _ = self._split(images)
        if split is None:
            if self.config.data.normalisation == "global_control":
                raise run_dir.RunError(
                    f"{self.path}: data.normalisation=global_control is known of the run's own data"
                    " alone; expected those"
                )
            none = np.zeros(0, np.int64)
            split = splits.Split(none, none, none, none, {})
        ready = self._set_up(images, split)
        return evaluate.embed(ready, self._restored(ready), rows, self.source)

    def embeddings(self, log_probs: bool = False, folder: Path | None = None) -> Embeddings:
        """Embeddings, and on request log-probabilities, of every site of the dataset.

        Read where they belong to the last checkpoint, else computed and written first: into the run
        or into `folder`.
        """
        source = self.source
        for path in (self.path / EMBEDDINGS, (folder or self.path) / EMBEDDINGS):
            files = [path, *([embeddings_lib.log_probs_path(path)] if log_probs else [])]
            try:
                if all(embeddings_lib.source_of(file) == source for file in files):
                    return embeddings_lib.read(path, log_probs)
            except ValueError as error:
                raise run_dir.RunError(f"{error}; remove it, and it is made again") from error
        return self.embed(path, log_probs)

    def embed(self, path: Path, log_probs: bool = False) -> Embeddings:
        """Writes the embeddings of all sites, controls too, in the order of the dataset.

        As the embeddings.csv that Recursion published (github.com/recursionpharma/rxrx-datasets,
        rxrx1/README.md), with the metadata of each site: what pycytominer, EFAAR and scanpy read.
        """
        rows = np.arange(len(self.images))
        found = evaluate.embed(self.setup, self.state, rows, self.source)
        if jax.process_index() == 0:
            embeddings_lib.write(found, path, log_probs)
        return found

    def evaluate(self, folder: Path) -> dict[str, Any]:
        """Evaluates the last checkpoint again: predictions.parquet and results.json."""
        sets = evaluate.evaluate_sets(self.setup, self.state)
        total = self.newest.total_steps
        if not total:  # version 0.3.0 did not keep it
            _, total = setup.make_order(self.config, self.images.sites, self.setup.split)
        return evaluate.write_results(self.setup, folder, self.state, total, sets)

    def predict_all(self, path: Path, log_probs: bool = False) -> None:
        """Predicts every treatment site of the dataset, labelled or not, trained on or not.

        Where controls are classes of the split, their sites too.

        Args:
          log_probs: also writes log_probs.parquet beside `path`.
        """
        sites = self.images.sites
        is_class = np.isin(sites["sirna_id"], self.vocabulary.classes)
        rows = np.flatnonzero((sites["well_type"] == "treatment") | is_class)
        table, found = evaluate.predict_sites(self.setup, self.state, rows)
        loss = table["loss"].to_numpy().copy()
        loss[table["label"].to_numpy() < 0] = np.nan  # unlabelled: there is no right answer
        table = table.set_column(table.column_names.index("loss"), "loss", [loss])
        if jax.process_index() == 0:
            predictions.write_predictions(path, table)
        if log_probs and jax.process_index() == 0:
            role, classes = np.array(table["role"].to_pylist()), self.vocabulary.classes
            parts, beside = [found["log_probs"]], path.with_name(log_probs_lib.NAME)
            log_probs_lib.write(beside, sites[rows], role, classes, parts, self._predicted_by)

    def log_probs(self, folder: Path) -> log_probs_lib.LogProbs:
        """Log-probabilities of every treatment site, as `predict_all` writes them.

        Read where they belong to the last checkpoint, else computed and written into `folder`.
        """
        for path in (self.path / log_probs_lib.NAME, folder / log_probs_lib.NAME):
            if log_probs_lib.source_of(path) == self._predicted_by:
                return log_probs_lib.read(path)
        self.predict_all(path.with_name(PREDICTIONS_ALL), log_probs=True)
        return log_probs_lib.read(path)

    @property
    def _predicted_by(self) -> dict[str, str]:
        return self.source | {"orientations": str(self.config.eval.orientations)}

    def planted_sirnas(self) -> dict[str, Any] | None:
        """metadata.json's planted effects of siRNAs, of a synthetic screen; else None."""
        return getattr(self.images, "metadata", {}).get("sirnas")

    def _restored(self, ready: Setup) -> TrainState:
        return checkpoint.restore(self.newest, ready.abstract_state, resume=False)

    def _set_up(self, images: Images, split: splits.Split) -> Setup:
        config = self.config.copy_and_resolve_references()
        config.data.augment, config.data.augmentation = False, ""  # they need not be square
        devices = jax.device_count()
        config.eval.batch_size = -(-config.eval.batch_size // devices) * devices
        return setup.for_evaluation(config, images, split, self.vocabulary)

    def _split(self, images: Images) -> tuple[splits.Split | None, str]:
        """The run's split if these are its data, else None and what differs."""
        try:
            split = splits.configured(images.sites, self.config.data)
        except splits.SplitError as error:
            return None, str(error)
        found = describe_data(images, split, self.vocabulary.classes)
        old, new = (flat({"dataset": data}) for data in (self.fingerprint, found))
        differs = run_dir.difference(old, new, ("dataset.version", "dataset.order"))
        return (None, f"holds a run with {differs}") if differs else (split, "")


def _vocabulary_of_old(classes: np.ndarray, images: Images) -> Vocabulary:
    """Names by position in the dataset, and as many as version 0.2 made its heads for."""
    names = Vocabulary.of(images.sites, classes)
    cell_types = names.cell_types + ("~",) * (CELL_TYPES - len(names.cell_types))
    experiments = names.experiments + ("~",) * (EXPERIMENTS - len(names.experiments))
    return Vocabulary(cell_types, experiments, classes)
