"""Linear discriminant analysis, a stage `classify`; and LDA-12, which needs no network.

LDA-12 sees twelve numbers of a site: mean and log standard deviation of each of six channels, over
those of its plate's controls. It says how much of an answer lies in the intensities alone. A
network that is not ahead of it shows nothing about morphology.
"""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
from scipy.special import log_softmax

from rxrx1_jax.data.images import Sites
from rxrx1_jax.data.normalisation import STD_FLOOR
from rxrx1_jax.data.splits import Split, classes_of, site_roles
from rxrx1_jax.methods.evidence import Evidence, Method, scores
from rxrx1_jax.methods.transforms import checked_embeddings
from rxrx1_jax.training.predictions import predictions_table

UNKNOWN = -50.0  # log-probability of a class without training sites


def lda(evidence: Evidence) -> Callable[[Evidence], np.ndarray]:
    """Linear discriminant analysis of each cell type's training sites, classes equally likely.

    Hastie, Tibshirani and Friedman 2009, "The elements of statistical learning", section 4.3: the
    covariance is that within classes, pooled (n - K in the denominator). A cell type that was not
    trained on takes the analysis of all.

    Raises ValueError: a cell type whose classes have one training site each.
    """
    classes = evidence.classes
    train = evidence.only((evidence.role == "train") & np.isin(evidence.sites["sirna_id"], classes))
    x = checked_embeddings(train.x).astype(np.float64)

    def discriminant(rows: np.ndarray, what: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        known, label, count = np.unique(
            train.sites["sirna_id"][rows], return_inverse=True, return_counts=True
        )
        freedom = int(rows.sum()) - len(known)
        if freedom < 1:
            raise ValueError(
                f"{what}: {rows.sum()} training sites of {len(known)} classes; expected more sites"
                " than classes"
            )
        means = np.zeros((len(known), x.shape[1]))
        np.add.at(means, label, x[rows])
        means /= count[:, None]
        centred = x[rows] - means[label]
        weights = means @ np.linalg.pinv(centred.T @ centred / freedom, hermitian=True)
        return weights, (weights * means).sum(1) / 2, np.isin(classes, known)

    cell_type = train.sites["cell_type"]
    everywhere = discriminant(np.full(len(x), True), "all cell types")
    own = {name: discriminant(cell_type == name, name) for name in np.unique(cell_type).tolist()}

    def predict(given: Evidence) -> np.ndarray:
        rows = checked_embeddings(given.x).astype(np.float64)
        out = np.full((len(rows), len(classes)), UNKNOWN, np.float32)
        for name in np.unique(given.sites["cell_type"]).tolist():
            here = given.sites["cell_type"] == name
            weights, bias, known = own.get(name, everywhere)
            out[np.ix_(here, known)] = log_softmax(rows[here] @ weights.T - bias, axis=1)
        return out

    return predict


def intensities(sites: Sites, pixels: int) -> np.ndarray:
    """f32 [n, 2 C]: (mean - control mean) / control sd, and log(sd / control sd), of each channel.

    Args:
      sites: with the sums of their pixels, and the statistics of the controls of their plates.
      pixels: of one plane.
    """
    mean = sites["pixel_sum"] / pixels
    sd = np.sqrt(np.maximum(sites["pixel_sum2"] / pixels - mean**2, 0))
    control_sd = np.maximum(sites["control_std"], STD_FLOOR)
    z = (mean - sites["control_mean"]) / control_sd
    return np.hstack([z, np.log(np.maximum(sd, STD_FLOOR) / control_sd)]).astype(np.float32)


def lda12(sites: Sites, pixels: int, split: Split, protocol: str) -> pa.Table:
    """What LDA-12 predicts of the split's test sites: the columns of predictions.parquet.

    protocol: of the split; it says what the classes are.
    """
    rows = np.concatenate([split.train, split.test])
    found, classes = sites[rows], classes_of(sites, protocol)
    evidence = Evidence(
        found, site_roles(split, len(sites))[rows], intensities(found, pixels), None, classes
    )
    return predictions_table(sites[split.test], classes, scores(Method(classify=lda), evidence))
