"""The functions that `import rxrx1_jax` offers; each is a short way to what the packages hold."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ml_collections import ConfigDict

from rxrx1_jax import config as config_lib
from rxrx1_jax import export
from rxrx1_jax.data import records, splits, table_styles, tables
from rxrx1_jax.data.embeddings import Embeddings
from rxrx1_jax.data.images import Images, Vocabulary
from rxrx1_jax.data.info import Info
from rxrx1_jax.data.splits import Split
from rxrx1_jax.data.stream import Augmentation, Stream
from rxrx1_jax.embedded import page as embedded_page
from rxrx1_jax.embedded.command import asked_for, judge
from rxrx1_jax.embedded.tables import accuracy_table
from rxrx1_jax.methods.evidence import Method
from rxrx1_jax.model.networks import NetworkSpec
from rxrx1_jax.report.tables import Table
from rxrx1_jax.training import train as training
from rxrx1_jax.training.predictions import accuracies, predictions_table
from rxrx1_jax.training.run import Run


def open_dataset(name: str = "rxrx1/native", data_dir: str | Path = "data") -> Images:
    """A dataset that `tfds build` wrote: `.sites` is its table, `[i]` the image of row i.

    Args:
      name: as the setting data.name: "rxrx1/CONFIG", the newest version; "rxrx1/CONFIG:2.0.0"; or
        a function that returns images in memory, "rxrx1_jax.data.smoke.screen()".
      data_dir: the --data_dir of `tfds build`.

    Raises DatasetError: not built, or damaged.
    """
    return records.open_images(data_dir, name)


def make_split(
    images: Images, protocol: str = "batch", fold: int = 0, seed: int = 0, cell_type: str = "all",
    val_experiments: int = 0,
) -> Split:  # fmt: skip
    """Rows of `images.sites` to train on and to test; `splits.make_split` has the protocols.

    Raises SplitError.
    """
    return splits.make_split(images.sites, protocol, fold, seed, cell_type, val_experiments)


def vocabulary_of(images: Images, split: Split) -> Vocabulary:
    """Names of the codes in batches, and the classes: the siRNAs of the split's sites."""
    rows = np.concatenate([split.train, *split.scored.values()])
    return Vocabulary.of(images.sites, np.unique(images.sites["sirna_id"][rows]))


def batches(
    images: Images,
    split: Split,
    batch_size: int = 32,
    steps: int | None = None,
    seed: int = 0,
    normalisation: str = "plate_control",
    augment: bool = True,
    crop: int = 0,
) -> Iterator[dict[str, jax.Array]]:
    """Training batches on the device, normalised and augmented.

    Args:
      steps: how many; None: one epoch, rounded.
      seed: of the order and the augmentation.
      normalisation: as the setting data.normalisation.
      augment: one of the 8 orientations of the square at random, and the crop at random.
      crop: side, pixels; 0: whole images.

    Yields dicts, N = batch_size: image float32 [N, H, W, C]; label, experiment, cell_type, plate,
    site_index int32 [N]; mask bool [N]. label is the position of the siRNA among the classes
    (`create_network(...).vocabulary`), site_index the row of `images.sites`.

    Raises ConfigError, ValueError: an argument that is impossible.
    """
    vocabulary = vocabulary_of(images, split)
    normalise = config_lib.load("data.normalisation", normalisation)
    stream = Stream(images, split, vocabulary, normalise, Augmentation(seed, augment, crop))
    order = config_lib.load("data.sampler", "shuffled")(images.sites, split, batch_size, seed)
    steps = max(1, round(order.per_epoch)) if steps is None else steps
    store = stream.store(split.train)
    make = jax.jit(lambda store, draw: stream.batch(store, draw, 0, train=True))
    draws = stream.draws(order, split.train, 0, steps)
    return (make(store, draw) for draw in draws)


@dataclass(frozen=True)
class Network:
    """A Flax module that knows its classes.

    Attributes:
      module: called as module(images, batch, info).
      vocabulary: names of the codes in a batch; `.classes` int32 [K], the sirna_id of each output.
    """

    module: nn.Module
    vocabulary: Vocabulary

    def init(self, key: jax.Array, batch: Mapping[str, jax.Array]) -> Any:
        """Variables: params and, with BatchNorm, batch_stats."""
        info = Info(self.vocabulary)

        @jax.jit  # a program of its own; without it every operation would be compiled by itself
        def init(key: jax.Array, one: dict[str, jax.Array]) -> Any:
            return self.module.init(key, one["image"], one, info)

        return init(key, {name: array[:1] for name, array in batch.items()})

    def __call__(
        self, variables: Any, batch: Mapping[str, jax.Array], train: bool = False, **options: Any
    ) -> Any:
        """Logits float32 [N, K]. options: those of Flax's `apply`, as mutable=["batch_stats"]."""
        info = Info(self.vocabulary, train)
        return self.module.apply(variables, batch["image"], batch, info, **options)


def create_network(
    name: str, images: Images, split: Split, width: int = 64, head: str = "linear",
    dtype: str = "float32",
) -> Network:  # fmt: skip
    """A network for the classes of a split, for a training loop of your own.

    Args:
      name, width, head, dtype: as the settings model.name, width, head and dtype.

    Raises ConfigError: an unknown name.
    """
    spec = NetworkSpec(config_lib.load("model.head", head), width, np.dtype(dtype))
    return Network(config_lib.load("model.name", name)(spec), vocabulary_of(images, split))


def train(config: ConfigDict | str, workdir: str | Path, images: Images | None = None) -> Run:
    """Trains, or resumes, and evaluates a run as `python -m rxrx1_jax.main` does.

    Args:
      config: settings, or what --config takes: "demo:fold=1,optim.epochs=5".
      workdir: directory of the run; Ctrl-C saves it, and the same call goes on.
      images: in place of the dataset that the settings name.

    Raises ConfigError, RunError, DatasetError, SplitError, Preempted, Diverged.
    """
    config = config_lib.read(config) if isinstance(config, str) else config
    training.train_and_evaluate(config, workdir, images)
    return load_run(workdir)


def load_run(path: str | Path) -> Run:
    """A trained run: `.config`, `.load()` its state, `.predict(images)`. Changes nothing.

    Raises RunError: no run there, or of a newer version.
    """
    return Run.open(path)


def export_run(run: Run, out: str | Path, format: str = "safetensors") -> list[Path]:
    """Writes a run for other programs, as `python -m rxrx1_jax.export` does; returns the files.

    Args:
      out: folder.
      format: "safetensors" (weights by the names of torchvision) or "stablehlo" (a program for JAX
        alone, with the normalisation in it).

    Raises ConfigError, RunError, OSError.
    """
    return export.write(run, config_lib.user_path(out), format)


def read_embeddings(path: str | Path, metadata: str | Path = "") -> Embeddings:
    """Embeddings of sites or wells, of any model: CSV, TSV, Parquet, .h5ad, gzip, zip.

    Args:
      path: a table with ids, or a run's embeddings.parquet; `data.tables` has what is understood.
      metadata: of the release, Kaggle or WILDS: metadata.csv, its archive, or the folder; "": the
        table has well_type and sirna_id itself.

    What is missing or left out is counted in a warning each. Raises ValueError: one line; OSError.
    """
    found = tables.read(path, metadata)
    for remark in found.remarks:
        warnings.warn(remark, stacklevel=2)
    return found.embeddings


def write_embeddings(embeddings: Embeddings, path: str | Path, style: str = "official") -> None:
    """Writes a table for other libraries; style: "official", "pycytominer" (both Parquet), "h5ad".

    Raises ValueError, OSError; `data.table_styles` has the columns.
    """
    table_styles.write(embeddings, path, style)


def correct_embeddings(
    embeddings: Embeddings, methods: Sequence[str] | Mapping[str, Method],
    protocols: Sequence[str] = ("batch",), folds: Sequence[int] = (0, 1, 2),
    out: str | Path | None = None,
) -> Table:  # fmt: skip
    """Tries methods on a table of embeddings, as `python -m rxrx1_jax.correct --embeddings` does.

    Args:
      methods: names, as "tvn_plate" or the chain "tvn_plate+lda", or {name: Method of your own}.
        Those that they are compared with are added.
      protocols: splits; of the first is the table, the others give the gap to it.
      out: folder for the page; what is computed is kept there, and found again by the next call. A
        Method that you edit is computed again when you raise its version.

    Returns the table of accuracies: `.markdown()`, `.records()` for pandas.

    Raises ValueError: a method that is unknown or needs a network, a split that these sites do not
    allow; one line.
    """
    place = config_lib.user_path(out) if out else None
    judged = judge(embeddings, asked_for(methods, protocols, folds), place)
    if place:
        embedded_page.write(judged, place)
    return accuracy_table(judged.rows, judged.protocol)


def score(predicted: Embeddings | pa.Table | str | Path, role: str = "") -> dict[str, Any]:
    """Accuracy, as fractions: {"site": {"all", "cell_type": {...}, "experiment": {...}},
    "well": ..., "top5"}. A well is predicted by the mean log-probability of its sites.

    Args:
      predicted: what `Run.predict` gave, or a run's predictions.parquet. Sites without a label
        among the classes are left out.
      role: "test" scores the test sites of the run's own split alone; "": all sites.

    Raises ValueError: no site to score, or nothing to score it by.
    """
    if isinstance(predicted, str | Path):
        predicted = pq.read_table(config_lib.user_path(predicted))
    if isinstance(predicted, pa.Table):
        if role:
            raise ValueError(f"role={role!r}: a table of predictions is of one role; expected ''")
        return accuracies(predicted)
    if predicted.log_probs is None or predicted.classes is None:
        raise ValueError("no log_probs to score; expected the predictions of a network")
    if role and predicted.role is None:
        raise ValueError(f"role={role!r}: these images are not the run's own data; expected ''")
    label = np.searchsorted(predicted.classes, predicted.sites["sirna_id"])
    label = np.minimum(label, len(predicted.classes) - 1)
    keep = predicted.classes[label] == predicted.sites["sirna_id"]
    if role:
        keep &= predicted.role == role
    if not keep.any():
        raise ValueError(f"no site with a label and role={role!r}; expected one at least")
    return accuracies(
        predictions_table(predicted.sites[keep], predicted.classes, predicted.log_probs[keep])
    )
