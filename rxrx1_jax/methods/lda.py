"""Linear discriminant analysis, a stage `classify`."""

from collections.abc import Callable

import numpy as np

from rxrx1_jax.methods.classifiers import per_cell_type
from rxrx1_jax.methods.evidence import Evidence
from rxrx1_jax.methods.transforms import mean_and_scale, shrunk_covariance


def _fit(train: Evidence, label: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    from scipy.special import log_softmax  # here: the commands' --help needs none

    x, count = train.x.astype(np.float64), np.bincount(label)
    freedom = len(x) - len(count)
    if freedom < 1:
        raise ValueError(
            f"{', '.join(np.unique(train.sites['cell_type']))}: {len(x)} training sites of"
            f" {len(count)} classes; expected more sites than classes"
        )
    means = np.zeros((len(count), x.shape[1]))
    np.add.at(means, label, x)
    means /= count[:, None]
    x -= means[label]
    scale = mean_and_scale(x)[1]
    x /= scale
    covariance = shrunk_covariance(x, freedom) * scale[:, None] * scale
    weights = means @ np.linalg.pinv(covariance, hermitian=True)
    bias = (weights * means).sum(1) / 2
    return lambda given: log_softmax(given @ weights.T - bias, axis=1)


lda = per_cell_type(_fit)
"""Linear discriminant analysis of each cell type's training sites, classes equally likely.

Hastie, Tibshirani and Friedman 2009, "The elements of statistical learning", section 4.3: the
covariance is that within classes, pooled (n - K in the denominator). Of features scaled to a
deviation of 1 within classes it is shrunk to the identity by `transforms.shrinkage` (Ledoit and
Wolf 2004). scikit-learn's shrinkage="auto" shrinks per class and averages: by more, since a class
has few sites.

Raises ValueError: a cell type whose classes have one training site each.
"""
