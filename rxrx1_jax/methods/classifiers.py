"""What classifiers share: a model per cell type, or one of all cell types."""

import functools
from collections.abc import Callable

import numpy as np

from rxrx1_jax.methods.evidence import Evidence
from rxrx1_jax.methods.transforms import checked_embeddings

UNKNOWN = -50.0  # log-probability of a class without training sites

Classify = Callable[[Evidence], Callable[[Evidence], np.ndarray]]  # the stage of a `Method`
# (training sites, label i64 [n] from 0 to k - 1) -> (x [m, d] -> log-probabilities [m, k])
Fit = Callable[[Evidence, np.ndarray], Callable[[np.ndarray], np.ndarray]]


def training_sites(evidence: Evidence) -> Evidence:
    """Those of one of the classes. Raises ValueError: none, or x of another dtype, not finite."""
    labels, classes = evidence.sites["sirna_id"], evidence.classes
    train = evidence.only((evidence.role == "train") & np.isin(labels, classes))
    checked_embeddings(train.x)
    if not len(train.x):
        raise ValueError(f"no training site of one of the {len(classes)} classes; expected some")
    return train


def columns_of(sirna_ids: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The column of each siRNA; all of them are among the classes, which may stand in any order."""
    order = np.argsort(classes)
    return order[np.searchsorted(classes, sirna_ids, sorter=order)]


def per_cell_type(fit: Fit) -> Classify:
    """The stage `classify`: a model of each cell type's training sites, fitted where one is asked.

    A cell type that was not trained on takes the model of all. A class without training sites in
    a model has the log-probability UNKNOWN.
    """

    def classify(evidence: Evidence) -> Callable[[Evidence], np.ndarray]:
        train, classes = training_sites(evidence), evidence.classes
        trained = set(np.unique(train.sites["cell_type"]).tolist())

        @functools.cache
        def model(name: str | None) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
            rows = train.only(train.sites["cell_type"] == name) if name else train
            known, label = np.unique(rows.sites["sirna_id"], return_inverse=True)
            return columns_of(known, classes), fit(rows, label)

        def predict(given: Evidence) -> np.ndarray:
            x = checked_embeddings(given.x)
            out = np.full((len(x), len(classes)), UNKNOWN, np.float32)
            for name in np.unique(given.sites["cell_type"]).tolist():
                here = np.flatnonzero(given.sites["cell_type"] == name)
                columns, log_probs = model(name if name in trained else None)
                out[np.ix_(here, columns)] = log_probs(x[here])
            return out

        return predict

    return classify


def joint(classify: Classify) -> Classify:
    """The same with its model of all cell types, which a cell type that it does not know takes."""

    def fit(evidence: Evidence) -> Callable[[Evidence], np.ndarray]:
        predict = classify(evidence)

        def of_all(given: Evidence) -> np.ndarray:
            sites = given.sites.copy()
            sites["cell_type"] = ""
            return predict(given._replace(sites=sites))

        return of_all

    return fit
