"""Corrections of embeddings, fitted on some rows of each group of sites.

A transform is a function (embeddings float [n, d], sites [n], fit bool [n], by) -> float [n, d].
`sites` is a structured array; of it only experiment, plate, cell type and site id are read, never a
label. `fit` marks the rows that a transform may learn from: which ones, say the controls of the
training experiments or of all, is the caller's choice and decides what the result was allowed to
see. `by` is the group: "plate" (of an experiment), "experiment" or "cell_type" (everything of a
cell type pooled). It raises ValueError if sizes or dtypes disagree, if values are not finite, and
for a cell type without fit rows.

A group with fewer than two fit rows is corrected by the fit rows of its experiment, and if those
are too few by those of its cell type; a cell type with fewer than two is an error. A feature that
does not vary among the fit rows is centred and not scaled.

Statistics are float64 and the result has the floating dtype of the input. The order of the rows
does not matter.
"""

from collections.abc import Iterator

import numpy as np

from rxrx1_jax.data.embeddings import check_finite

LEVELS = ("plate", "experiment", "cell_type")  # from the smallest group to the largest
LEAST = 2  # fit rows a group needs: a variance takes two
SHRINKAGE = 0.1  # of a covariance: a plate has about 60 control sites, fewer than features
CORAL_RIDGE = 1.0  # added to the variances: Sun et al. 2016, Algorithm 1 (the identity)
FLAT = 1e-7  # a deviation below this share of the mean is the rounding of float32, not variation


def centre_scale(
    embeddings: np.ndarray, sites: np.ndarray, fit: np.ndarray, by: str = "plate"
) -> np.ndarray:
    """(x - mean) / standard deviation (ddof 0) of the fit rows of the group, per feature.

    The standardisation on plate controls of Caicedo et al. 2017 (Nature Methods 14, 849).
    """
    x = checked(embeddings, sites, fit, by)
    out = np.empty_like(x)
    for rows, learn in _groups(sites, fit, by):
        mean, scale = mean_and_scale(x[learn])
        out[rows] = (x[rows] - mean) / scale
    return out


def sphering(
    embeddings: np.ndarray, sites: np.ndarray, fit: np.ndarray, by: str = "cell_type",
    shrinkage: float = SHRINKAGE,
) -> np.ndarray:  # fmt: skip
    """ZCA whitening by the fit rows of the group: (x - mean) C^(-1/2).

    C = (1 - shrinkage) S + shrinkage * trace(S)/d * I, where S is the covariance (ddof 1). ZCA:
    Kessy, Lewin and Strimmer 2018 (The American Statistician 72, 309); on controls, as in
    pycytominer's Spherize; the shrinkage target is that of Ledoit and Wolf 2004 (J. Multivariate
    Analysis 88, 365). With shrinkage 0, directions in which the fit rows do not vary keep their
    scale; nothing is known about them. Raises ValueError unless 0 <= shrinkage <= 1.
    """
    x = checked(embeddings, sites, fit, by)
    if not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage is {shrinkage}; expected 0 to 1")
    out = np.empty_like(x)
    for rows, learn in _groups(sites, fit, by):
        covariance = _covariance(x[learn])
        average = np.trace(covariance) / len(covariance)
        shrunk = (1 - shrinkage) * covariance + shrinkage * average * np.eye(len(covariance))
        out[rows] = (x[rows] - x[learn].mean(0, dtype=np.float64)) @ _power(shrunk, -0.5)
    return out


def tvn(
    embeddings: np.ndarray, sites: np.ndarray, fit: np.ndarray, by: str = "plate"
) -> np.ndarray:
    """Typical variation normalisation: Ando, McLean and Berndl 2017 (bioRxiv 161422).

    Centre and scale on all fit rows; principal axes of all fit rows, all kept; there, centre and
    scale on the fit rows of the group; then x C_b^(-1/2) C^(1/2), which gives the fit rows of the
    group the covariance of all fit rows (CORAL: Sun, Feng and Saenko 2016, AAAI, Algorithm 1, both
    covariances with the identity added). C is taken after the groups were centred, so it holds no
    differences between the means of cell types, and one set of axes serves all of them.

    Returns float [n, r]: r is the rank of the fit rows, d if there are enough of them. Raises
    ValueError for fit rows that are all equal.
    """
    x = checked(embeddings, sites, fit, by)
    mean, scale = mean_and_scale(x[fit])
    variances, axes = np.linalg.eigh(_covariance((x[fit] - mean) / scale))
    kept = variances > _tolerance(variances)
    if not kept.any():
        raise ValueError("tvn: all fit rows are equal; expected controls that differ")
    axes = axes[:, kept][:, ::-1]  # largest variance first
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
    x = ((x - mean) / scale @ axes).astype(x.dtype)
    x = centre_scale(x, sites, fit, by)
    ridge = CORAL_RIDGE * np.eye(x.shape[1])
    colour = _power(_covariance(x[fit]) + ridge, 0.5)
    out = np.empty_like(x)
    for rows, learn in _groups(sites, fit, by):
        out[rows] = x[rows] @ (_power(_covariance(x[learn]) + ridge, -0.5) @ colour)
    return out


def _groups(sites: np.ndarray, fit: np.ndarray, by: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(rows of a group, rows to learn its correction from), in the order of the groups' names."""
    levels = [codes_of(sites, level) for level in LEVELS[LEVELS.index(by) :]]
    for group in range(levels[0].max() + 1):
        rows = np.flatnonzero(levels[0] == group)
        for codes in levels:
            learn = np.flatnonzero(fit & (codes == codes[rows[0]]))
            if len(learn) >= LEAST:
                break
        else:
            raise ValueError(
                f"cell type {sites['cell_type'][rows[0]]} has {len(learn)} rows to fit on (site"
                f" {sites['site_id'][rows[0]]} is one to correct), expected at least {LEAST}: pass"
                " controls of this cell type, or leave it out"
            )
        yield rows, learn


def codes_of(sites: np.ndarray, level: str) -> np.ndarray:
    """[n] number of the group of each row; plates of different experiments differ."""
    if level != "plate":
        return np.unique(sites[level], return_inverse=True)[1]
    _, experiment = np.unique(sites["experiment"], return_inverse=True)
    _, plate = np.unique(sites["plate"], return_inverse=True)
    return np.unique(experiment * (plate.max() + 1) + plate, return_inverse=True)[1]


def mean_and_scale(x: np.ndarray, flat: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the columns; `flat` for a column that does not vary."""
    mean, std = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    return mean, np.where(std > FLAT * np.abs(mean), std, flat)


def _covariance(x: np.ndarray) -> np.ndarray:
    return np.cov(x, rowvar=False, dtype=np.float64).reshape(x.shape[1], x.shape[1])


def _power(covariance: np.ndarray, exponent: float) -> np.ndarray:
    """Symmetric matrix power; directions without variance keep their scale."""
    variances, axes = np.linalg.eigh(covariance)
    empty = variances <= _tolerance(variances)
    return axes * np.where(empty, 1.0, variances) ** exponent @ axes.T


def _tolerance(variances: np.ndarray) -> float:
    """Below it an eigenvalue is the rounding of the largest one."""
    return len(variances) * np.finfo(np.float64).eps * float(variances.max(initial=0.0))


def checked_embeddings(embeddings: np.ndarray) -> np.ndarray:
    x = np.asarray(embeddings)
    if x.ndim != 2 or not np.issubdtype(x.dtype, np.floating):
        raise ValueError(f"embeddings are {x.dtype} {list(x.shape)}; expected floating [n, d]")
    check_finite("embedding", x)
    return x


def checked(embeddings: np.ndarray, sites: np.ndarray, fit: np.ndarray, by: str) -> np.ndarray:
    x = checked_embeddings(embeddings)
    if np.asarray(fit).dtype != bool or np.shape(fit) != (len(x),):
        raise ValueError(
            f"fit is {np.asarray(fit).dtype} {list(np.shape(fit))}; expected bool [{len(x)}],"
            " one for each embedding"
        )
    if len(sites) != len(x) or not len(x):
        raise ValueError(f"{len(sites)} sites and {len(x)} embeddings; expected as many, not none")
    if by not in LEVELS:
        raise ValueError(f"by is {by!r}; expected one of {', '.join(LEVELS)}")
    return x
