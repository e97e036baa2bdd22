"""Whether a checkpoint is of this run, and whether a training can resume from it."""

from collections.abc import Mapping
from typing import Any

from rxrx1_jax.config import FREE, flat
from rxrx1_jax.data.images import Vocabulary
from rxrx1_jax.training.checkpoint import CheckpointError, Saved
from rxrx1_jax.training.run_dir import difference


def check_origin(
    saved: Saved, settings: Mapping[str, Any], fingerprint: Mapping[str, str]
) -> None:
    """Raises CheckpointError unless it is of a run of these settings and data."""
    theirs, ours = (
        {**given, **flat({"dataset": data})}
        for given, data in ((saved.settings, saved.fingerprint), (settings, fingerprint))
    )
    if differs := difference(theirs, ours, {*FREE, "dataset.version", "dataset.order"}):
        raise CheckpointError(
            f"{saved.path}: of a run with {differs}; move this folder to the run that it is of"
        )


def check_resumable(saved: Saved, vocabulary: Vocabulary) -> None:
    """Raises CheckpointError unless a training on data of this vocabulary can resume from it."""
    if saved.vocabulary is None:
        raise CheckpointError(
            f"{saved.path}: of version 0.2, whose order of the data this version does not have; it"
            " can be evaluated; to train, choose another --workdir"
        )
    if saved.vocabulary.to_json() != vocabulary.to_json():
        raise CheckpointError(
            f"{saved.path}: trained on {len(saved.classes)} siRNA classes of"
            f" {len(saved.vocabulary.experiments)} experiments, the dataset has"
            f" {len(vocabulary.classes)} of {len(vocabulary.experiments)} (or other ones); choose"
            " the run's dataset or another --workdir"
        )
