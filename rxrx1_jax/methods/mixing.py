"""How well experiments are mixed among the nearest neighbours of each well.

Unlike a linear probe this can rank corrections: after centring each experiment a probe is below
chance by construction, whatever the neighbours are. Means nothing without a metric of biology
beside it (`embedding_metrics`).
"""

from typing import NamedTuple

import numpy as np
from scipy.spatial.distance import cdist
from scipy.special import xlogy

from rxrx1_jax.data.embeddings import check_finite

NEIGHBOURS = 15  # of the purity
PERPLEXITY = 30.0  # of the index, which takes three times as many neighbours
BLOCK = 2**22  # distances held at once: 32 MiB
STEPS = 60  # of the bisection: beyond the digits of float64


class Mixing(NamedTuple):
    purity: float  # mean share of a row's nearest rows that are of its experiment
    purity_chance: float  # the same for neighbours at random
    ilisi: float  # mean number of experiments among a row's neighbours, 1 to all
    ilisi_chance: float  # the same for neighbours at random, as many and of the same weights


def experiment_mixing(x: np.ndarray, experiment: np.ndarray) -> Mixing:
    """Nearest neighbours by Euclidean distance, and the experiments that they are of.

    purity: of the NEIGHBOURS nearest rows. ilisi: the integration local inverse Simpson's index of
    Korsunsky et al. 2019 (Nature Methods 16, 1289): 1 / sum of the squared shares of the
    experiments, neighbours weighted by a Gaussian of the distance with the perplexity PERPLEXITY,
    or a third of the other rows where that is less.

    Args:
      x: [n, d], of one cell type; wells, for the sites of a well are neighbours of each other.
      experiment: [n].

    Raises ValueError: fewer than four rows, a single experiment, sizes that disagree.
    """
    names, code = np.unique(experiment, return_inverse=True)
    n = len(x)
    if x.ndim != 2 or experiment.shape != (n,) or n < 4 or len(names) < 2:
        raise ValueError(
            f"embeddings {x.shape}, {len(names)} experiments of {experiment.shape}; expected"
            " [n, d], n at least 4, and two experiments or more"
        )
    check_finite("embedding", x)
    perplexity = min(PERPLEXITY, (n - 1) / 3)
    few, many = min(NEIGHBOURS, n - 1), min(n - 1, int(3 * perplexity))
    purity, index, even = np.empty(n), np.empty(n), np.empty(n)
    count = np.bincount(code)
    others = (count - np.eye(len(names), dtype=int)) / (n - 1)  # seen from each experiment
    step = max(1, BLOCK // n)
    for first in range(0, n, step):
        rows = np.arange(first, min(first + step, n))
        distance = cdist(x[rows], x)
        distance[np.arange(len(rows)), rows] = np.inf  # a row is no neighbour of itself
        kept = max(few, many)
        near = np.argpartition(distance, kept - 1, axis=1)[:, :kept]
        near = np.take_along_axis(
            near, np.argsort(np.take_along_axis(distance, near, 1), axis=1, kind="stable"), 1
        )
        of = code[near]
        purity[rows] = (of[:, :few] == code[rows, None]).mean(1)
        weights = _weights(np.take_along_axis(distance, near[:, :many], 1), perplexity)
        shares = np.stack([(weights * (of[:, :many] == k)).sum(1) for k in range(len(names))], 1)
        index[rows] = 1 / (shares**2).sum(1)
        # The mean of a squared share of neighbours at random; the more of them, the nearer to p^2.
        same = (others**2).sum(1)[code[rows]]
        even[rows] = 1 / (same + (1 - same) * (weights**2).sum(1))
    chance = float(others.diagonal()[code].mean())
    return Mixing(float(purity.mean()), chance, float(index.mean()), float(even.mean()))


def _weights(distance: np.ndarray, perplexity: float) -> np.ndarray:
    """exp(-b d) of each row, summing to 1, with the b for which it has the perplexity."""
    d = distance - distance.min(1, keepdims=True)
    low = np.zeros((len(d), 1))
    high = np.full((len(d), 1), np.inf)
    b = np.ones((len(d), 1))
    for _ in range(STEPS):
        weights = np.exp(-b * d)
        weights /= weights.sum(1, keepdims=True)
        wide = -xlogy(weights, weights).sum(1, keepdims=True) > np.log(perplexity)
        low, high = np.where(wide, b, low), np.where(wide, high, b)
        b = np.where(np.isinf(high), 2 * b, (low + high) / 2)
    return weights
