"""A nearest-centroid classifier on embeddings: the read-out of methods that change embeddings."""

from collections.abc import Callable

import numpy as np

from rxrx1_jax.methods.evidence import Evidence
from rxrx1_jax.methods.transforms import checked_embeddings

TEMPERATURE = 0.1  # of the softmax over cosines; changes probabilities, no prediction


def centroids(evidence: Evidence) -> Callable[[Evidence], np.ndarray]:
    """The stage `classify`: cosine to the mean of each siRNA's training sites, per cell type."""
    train = evidence.only(evidence.role == "train")
    predict = nearest_centroid(
        train.x, train.sites["sirna_id"], train.classes, train.sites["cell_type"]
    )
    return lambda given: predict(given.x, given.sites["cell_type"])


def nearest_centroid(
    x: np.ndarray, labels: np.ndarray, classes: np.ndarray, cell_types: np.ndarray
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Fits centroids; the result gives log-probabilities from the cosine to them.

    A centroid is the mean of the unit vectors of a class: the spherical (Rocchio) form of Manning,
    Raghavan and Schütze 2008, section 14.2. Each cell type has its own; a class without rows there
    takes the centroid of all cell types. Log-probabilities are the log-softmax of cosine /
    TEMPERATURE: not calibrated, but sums over the sites of a well rank like the cosines.

    Args:
      x: float [n, d] of training sites, better centred (`transforms.centre_scale`).
      labels: int [n] sirna_ids; rows of other classes are left out.
      classes: int [K] sirna_ids of the columns.
      cell_types: str [n].

    Returns:
      A function (x [m, d], cell_types [m]) -> f32 [m, K]. A class without training rows gets the
      cosine -1.

    Raises:
      ValueError: sizes or dtypes disagree, values are not finite, no row has one of `classes`.
    """
    x = checked_embeddings(x)
    column_of = {int(sirna): k for k, sirna in enumerate(classes)}
    columns = np.array([column_of.get(int(sirna), -1) for sirna in labels], np.intp)
    kept = columns >= 0
    if len(columns) != len(x) or not kept.any():
        raise ValueError(
            f"{len(x)} training rows and {len(columns)} labels, {kept.sum()} of them among the"
            f" {len(column_of)} classes; expected as many, and treatment sites of the training set"
        )
    unit, columns, kind = _unit(x[kept]), columns[kept], np.asarray(cell_types)[kept]
    everywhere, known = _centroids(unit, columns, len(column_of))
    of_cell_type = {}
    for name in np.unique(kind):
        here = kind == name
        found, own = _centroids(unit[here], columns[here], len(column_of))
        found[~own] = everywhere[~own]
        of_cell_type[name] = found

    def predict(x: np.ndarray, cell_types: np.ndarray) -> np.ndarray:
        unit = _unit(checked_embeddings(x))
        out = np.empty((len(x), len(column_of)), np.float32)
        for name in np.unique(cell_types):
            members = cell_types == name
            cosine = unit[members] @ of_cell_type.get(name, everywhere).T
            cosine[:, ~known] = -1.0
            scores = cosine / TEMPERATURE
            scores -= scores.max(axis=1, keepdims=True)
            out[members] = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        return out

    return predict


def _unit(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length > 0, length, 1)


def _centroids(unit: np.ndarray, columns: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors [k, d] of the classes, and which have rows [k]."""
    sums = np.zeros((k, unit.shape[1]))
    np.add.at(sums, columns, unit)
    return _unit(sums), np.bincount(columns, minlength=k) > 0
