"""A nearest-centroid classifier on embeddings: the read-out of methods that change embeddings."""

from collections.abc import Callable

import numpy as np

from rxrx1_jax.methods.classifiers import columns_of, training_sites
from rxrx1_jax.methods.evidence import Evidence
from rxrx1_jax.methods.transforms import checked_embeddings

TEMPERATURE = 0.1  # of the softmax over cosines; changes probabilities, no prediction


def centroids(evidence: Evidence) -> Callable[[Evidence], np.ndarray]:
    """The stage `classify`: cosine to the centroid of each siRNA's training sites, per cell type.

    A centroid is the mean of the unit vectors of a class: the spherical (Rocchio) form of Manning,
    Raghavan and Schütze 2008, section 14.2. Each cell type has its own; a class without rows there
    takes the centroid of all cell types. Log-probabilities are the log-softmax of cosine /
    TEMPERATURE: not calibrated, but sums over the sites of a well rank like the cosines. They are
    better of embeddings that are centred (`transforms.centre_scale`).

    Returns:
      A function Evidence -> f32 [m, K]. A class without training rows gets the cosine -1.

    Raises:
      ValueError: embeddings of another dtype or not finite; no training row has one of the classes.
    """
    from scipy.special import log_softmax  # here: the commands' --help needs none

    classes, train = evidence.classes, training_sites(evidence)
    unit, columns = _unit(train.x), columns_of(train.sites["sirna_id"], classes)
    known = np.isin(classes, train.sites["sirna_id"])

    def means(rows: np.ndarray) -> np.ndarray:
        sums = np.zeros((len(classes), unit.shape[1]))
        np.add.at(sums, columns[rows], unit[rows])
        return _unit(sums)

    everywhere = means(np.full(len(unit), True))
    of_cell_type = {}
    for name in np.unique(train.sites["cell_type"]):
        here = train.sites["cell_type"] == name
        own = np.isin(np.arange(len(classes)), columns[here])
        of_cell_type[name] = np.where(own[:, None], means(here), everywhere)

    def predict(given: Evidence) -> np.ndarray:
        rows = _unit(checked_embeddings(given.x))
        out = np.empty((len(rows), len(classes)), np.float32)
        for name in np.unique(given.sites["cell_type"]):
            here = given.sites["cell_type"] == name
            cosine = rows[here] @ of_cell_type.get(name, everywhere).T
            out[here] = log_softmax(np.where(known, cosine, -1.0) / TEMPERATURE, axis=1)
        return out

    return predict


def _unit(x: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1, float64; a zero row stays."""
    x = x.astype(np.float64)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length > 0, length, 1)
