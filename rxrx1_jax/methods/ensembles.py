"""The mean of several runs, site by site.

Probabilities are averaged, with equal weights: Lakshminarayanan, Pritzel and Blundell 2017, "Simple
and scalable predictive uncertainty estimation using deep ensembles" (arXiv:1612.01474), section
2.4. Log-probabilities are averaged over the sites of a well and the orientations of an image, which
one network sees, as elsewhere in this project.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from rxrx1_jax.training.log_probs import NAME, LogProbs, read, write
from rxrx1_jax.training.predictions import predictions_table

if TYPE_CHECKING:
    from rxrx1_jax.training.run import Run  # it imports JAX

FINGERPRINTS = ("data", "split", "data_fingerprint", "split_fingerprint")  # today's, those of 0.2


def check_runs(runs: Sequence["Run"]) -> None:
    """Raises ValueError, one line, unless these are several runs on the same classes, data and
    split. Computes nothing."""
    first, *others = runs
    for k, run in enumerate(others, start=1):
        if run.path.resolve() in [other.path.resolve() for other in runs[:k]]:
            raise ValueError(f"{run.path} is given twice; expected each run once")
        for name in FINGERPRINTS:
            known = {one.fingerprint.get(name) for one in (first, run)} - {None}
            _check_same(first.path, run.path, name.partition("_")[0], len(known) < 2)
        same = np.array_equal(first.vocabulary.classes, run.vocabulary.classes)
        _check_same(first.path, run.path, "classes", same)


def check_files(files: Sequence[LogProbs]) -> None:
    """Raises ValueError, one line, unless the files are of the same sites, roles and classes."""
    first, *others = files
    for file in others:
        for name in ("site_id", "sirna_id"):
            same = np.array_equal(first.sites[name], file.sites[name])
            _check_same(first.path, file.path, name, same)
        for name in ("role", "classes"):
            same = np.array_equal(getattr(first, name), getattr(file, name))
            _check_same(first.path, file.path, name, same)


def mean(files: Sequence[LogProbs]) -> Iterator[np.ndarray]:
    """Log of the mean probability over files, float32, in parts as `LogProbs.parts` gives them."""
    for parts in zip(*(file.parts() for file in files), strict=True):
        yield np.logaddexp.reduce(np.stack(parts), axis=0) - np.float32(math.log(len(parts)))


def write_mean(files: Sequence[LogProbs], folder: Path) -> LogProbs:
    """Writes `mean` as a file of its own into `folder`."""
    path, source = folder / NAME, {"mean of": ", ".join(str(f.path.absolute()) for f in files)}
    _, sites, role, classes, _ = files[0]
    write(path, sites, role, classes, mean(files), source)
    return read(path)


def test_table(found: LogProbs) -> pa.Table:
    """`predictions_table` of the test sites. Raises ValueError: there is none."""
    test = found.role == "test"
    if not test.any():
        raise ValueError(f"{found.path}: no site has the role test; expected a run's own data")
    return predictions_table(found.sites[test], found.classes, found.of(test))


def _check_same(one: Path, other: Path, what: str, same: bool) -> None:
    if not same:
        raise ValueError(
            f"{one} and {other} differ in {what}; expected runs on the same classes, data and split"
            " (data.protocol, data.fold, data.seed, data.cell_type)"
        )
