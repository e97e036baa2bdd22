"""A trained run, for whoever uses it: `Run.open(path)` reads, and changes nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from rxrx1_jax.data import splits
from rxrx1_jax.data.embeddings import Embeddings
from rxrx1_jax.data.images import Images, Vocabulary
from rxrx1_jax.training import checkpoint, evaluate, parallel, run_dir, setup
from rxrx1_jax.training.setup import Setup
from rxrx1_jax.training.steps import TrainState

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
    def open(cls, path: str | Path) -> "Run":
        """Raises RunError: no run there, or one that a newer version of this program made."""
        path = Path(path)
        config, saved = run_dir.read_saved(path)
        return cls(path, config, saved.get("dataset", {}), saved.get("made_with", {}))

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Names of the codes, and classes [K] of the outputs. Raises CheckpointError."""
        saved = self.newest
        return saved.vocabulary or _vocabulary_of_old(saved.classes, self.images)

    @cached_property
    def newest(self) -> checkpoint.Saved:
        """The last checkpoint as it was first asked for: the run may be trained meanwhile."""
        return checkpoint.describe(self.checkpoint())

    @cached_property
    def images(self) -> Images:
        """The dataset that the settings name. Raises DatasetError."""
        return setup.find_images(self.config)

    def checkpoint(self, which: str = "last") -> Path:
        """The folder of the last or the best one (`checkpoint.find`). Raises RunError."""
        path = checkpoint.find(self.path, which)
        if path is None:
            raise run_dir.RunError(
                f"{self.path}: no checkpoint yet to take the {which} of; train with --mode=train"
            )
        return path

    def load(self, which: str = "last", resume: bool = False) -> TrainState:
        """The state of the last or the best checkpoint, a copy on each device.

        resume: with what a training needs to go on; else `opt_state` and `loss_state` are ().
        """
        newest = which == "last"
        saved = self.newest if newest else checkpoint.describe(self.checkpoint(which))
        if resume:
            return checkpoint.restore(saved, setup.prepare(self.config).abstract_state, True)
        copied = parallel.Devices(self.config.train.parallelism).copied
        return checkpoint.restore(saved, checkpoint.abstract(saved, copied), False)

    def predict(self, images: Images, rows: np.ndarray | None = None) -> Embeddings:
        """Features and log-probabilities of images, the run's own or anybody's.

        Args:
          images: a dataset (`Records`), or arrays with control statistics (`InMemory`).
          rows: numbers of images, in any order, each once; None: all.

        Raises:
          RunError: images that the network was not made for.
        """
        ready = self.set_up(images)
        n = len(images)
        rows = np.arange(n) if rows is None else np.asarray(rows)
        valid = rows.dtype.kind in "iu" and rows.ndim == 1 and rows.size
        if not valid or len(np.unique(rows)) < len(rows) or not 0 <= rows.min() <= rows.max() < n:
            raise run_dir.RunError(
                f"rows: {rows.dtype} {rows.shape}, expected numbers of images, 0 to {n - 1}, each"
                " once"
            )
        return evaluate.embed(ready, self.state(ready), rows, self.source)

    def set_up(self, images: Images) -> Setup:
        """The run's network and how it reads these images; of its own data also the split."""
        config = self.config.copy_and_resolve_references()
        config.data.augment, config.data.augmentation = False, ""  # they need not be square
        devices = jax.device_count()
        config.eval.batch_size = -(-config.eval.batch_size // devices) * devices
        split = self._own_split(images)
        if split is None:
            if config.data.normalisation == "global_control":
                raise run_dir.RunError(
                    f"{self.path}: data.normalisation=global_control is known of the run's own data"
                    " alone; expected those"
                )
            none = np.zeros(0, np.int64)
            split = splits.Split(none, none, none, none, {})
        return setup.for_evaluation(config, images, split, self.vocabulary)

    def _own_split(self, images: Images) -> splits.Split | None:
        """The run's split, if these are its data."""
        try:
            split = setup.make_split(self.config, images)
        except splits.SplitError:
            return None
        version, classes = images.about["version"], self.vocabulary.classes
        found = run_dir.describe_data(version, images.sites, split, classes)
        names = ("data", "split") if "data" in self.fingerprint else run_dir.FINGERPRINTS_0_2
        same = all(found[name] == self.fingerprint.get(name) for name in names)
        return split if same else None

    def state(self, ready: Setup) -> TrainState:
        """The network of the last checkpoint, as `ready` wants it. Raises CheckpointError."""
        return checkpoint.restore(self.newest, ready.abstract_state, resume=False)

    @property
    def source(self) -> dict[str, str]:
        """What a result is recognised by: the step and the weights of the last checkpoint."""
        sums = self.newest.checksums
        kept = [name for name in checkpoint.EVALUATED if name in sums and name != "step"]
        weights = ".".join(f"{sums[name]:08x}" for name in kept)
        return {"step": self.newest.path.name, "weights": weights}


def _vocabulary_of_old(classes: np.ndarray, images: Images) -> Vocabulary:
    """Names by position in the dataset, and as many as version 0.2 made its heads for."""
    names = Vocabulary.of(images.sites, classes)
    cell_types = names.cell_types + ("~",) * (CELL_TYPES - len(names.cell_types))
    experiments = names.experiments + ("~",) * (EXPERIMENTS - len(names.experiments))
    return Vocabulary(cell_types, experiments, classes)
