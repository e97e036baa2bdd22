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
RIDGE = 0.5  # added to the variances by EFAAR
CORAL_RIDGE = 1.0  # added to the variances: Sun et al. 2016, Algorithm 1 (the identity)
MAD_SCALE = 1.4826  # deviation / MAD of a normal distribution, as pycytominer rounds it
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


def centre(
    embeddings: np.ndarray, sites: np.ndarray, fit: np.ndarray, by: str = "experiment"
) -> np.ndarray:
    """x - mean of the fit rows of the group: what ComBat and Harmony are to be compared with."""
    x = checked(embeddings, sites, fit, by)
    out = np.empty_like(x)
    for rows, learn in _groups(sites, fit, by):
        out[rows] = x[rows] - x[learn].mean(0, dtype=np.float64)
    return out


def robust_mad(
    embeddings: np.ndarray, sites: np.ndarray, fit: np.ndarray, by: str = "plate"
) -> np.ndarray:
    """(x - median) / (1.4826 MAD) of the fit rows of the group, per feature.

    MAD is the median of |x - median|; the factor makes it the standard deviation of a normal
    distribution. pycytominer's RobustMAD (github.com/cytomining/pycytominer, operations/transform),
    the first step of Arevalo et al. 2024 (Nature Communications 15, 6516).
    """
    x = checked(embeddings, sites, fit, by)
    out = np.empty_like(x)
    for rows, learn in _groups(sites, fit, by):
        median = np.median(x[learn], 0)
        mad = MAD_SCALE * np.median(np.abs(x[learn] - median), 0)
        out[rows] = (x[rows] - median) / np.where(mad > FLAT * np.abs(median), mad, 1.0)
    return out


def sphering(
    embeddings: np.ndarray, sites: np.ndarray, fit: np.ndarray, by: str = "cell_type",
    share: float | None = None,
) -> np.ndarray:  # fmt: skip
    """ZCA whitening by the fit rows of the group: (x - mean) C^(-1/2).

    C = (1 - s) S + s * trace(S)/d * I with the covariance S (ddof 0), where s is `share`, or that
    of `shrinkage` if it is None. ZCA: Kessy, Lewin and Strimmer 2018 (The American Statistician 72,
    309); on controls, as in pycytominer's Spherize.
    """
    x = checked(embeddings, sites, fit, by)
    out = np.empty_like(x)
    for rows, learn in _groups(sites, fit, by):
        mean, whitening = mean_and_whitening(x[learn], share)
        out[rows] = (x[rows] - mean) @ whitening
    return out


def mean_and_whitening(
    x: np.ndarray, share: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Mean [d] and C^(-1/2) [d, d] of rows, as in `sphering`."""
    mean = x.mean(0, dtype=np.float64)
    return mean, _power(shrunk_covariance(x - mean, len(x), share), -0.5)


def shrunk_covariance(
    centred: np.ndarray, freedom: int, share: float | None = None
) -> np.ndarray:
    """(1 - s) S + s * trace(S)/d * I of rows of mean 0; S = their products / freedom."""
    covariance = centred.T @ centred / freedom
    s = shrinkage(centred) if share is None else share
    target = np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    return (1 - s) * covariance + s * target


def shrinkage(centred: np.ndarray) -> float:
    """The share of the identity that brings the covariance of rows of mean 0 nearest the true one.

    Ledoit and Wolf 2004 (J. Multivariate Analysis 88, 365), section 3.2: no choice is left, so
    none is made on the test set.
    """
    n, d = centred.shape
    covariance = centred.T @ centred / n
    square = (covariance**2).sum()
    away = square - np.trace(covariance) ** 2 / d  # squared distance from the identity's multiple
    error = (((centred**2).sum(1) ** 2).sum() / n - square) / n
    return float(min(error, away) / away) if away > 0 else 0.0


def tvn(
    embeddings: np.ndarray, sites: np.ndarray, fit: np.ndarray, by: str = "plate"
) -> np.ndarray:
    """Typical variation normalisation: Ando, McLean and Berndl 2017 (bioRxiv 161422).

    As EFAAR computes it (github.com/recursionpharma/EFAAR_benchmarking, tvn_on_controls): centre
    and scale on all fit rows, their principal axes, centre and scale there on all of them, and per
    group x (C + RIDGE I)^(-1/2) with the covariance C of its fit rows. The means of the groups
    stay: a shift of a whole plate is left in.

    Returns float [n, r]: r is the rank of the fit rows, d if there are enough of them. Raises
    ValueError for fit rows that are all equal.
    """
    x = _on_principal_axes(embeddings, sites, fit, by)
    mean, scale = mean_and_scale(x[fit])
    x = ((x - mean) / scale).astype(x.dtype)
    out = np.empty_like(x)
    for rows, learn in _groups(sites, fit, by):
        out[rows] = x[rows] @ _power(_covariance(x[learn]) + RIDGE * np.eye(x.shape[1]), -0.5)
    return out


def coral_align(
    embeddings: np.ndarray, sites: np.ndarray, fit: np.ndarray, by: str = "plate"
) -> np.ndarray:
    """Gives the fit rows of every group one mean and one covariance.

    On the principal axes of `tvn`, centre and scale on the fit rows of the group, where TVN takes
    all; then x C_b^(-1/2) C^(1/2), which gives the fit rows of the group the covariance of all
    (CORAL: Sun, Feng and Saenko 2016, AAAI, Algorithm 1, both covariances with the identity added).
    C is taken after the groups were centred, so it holds no differences between cell types.

    Returns and raises as `tvn`.
    """
    x = centre_scale(_on_principal_axes(embeddings, sites, fit, by), sites, fit, by)
    ridge = CORAL_RIDGE * np.eye(x.shape[1])
    colour = _power(_covariance(x[fit]) + ridge, 0.5)
    out = np.empty_like(x)
    for rows, learn in _groups(sites, fit, by):
        out[rows] = x[rows] @ (_power(_covariance(x[learn]) + ridge, -0.5) @ colour)
    return out


def _on_principal_axes(
    embeddings: np.ndarray, sites: np.ndarray, fit: np.ndarray, by: str
) -> np.ndarray:
    """Centred and scaled on the fit rows, on those of their principal axes that vary."""
    x = checked(embeddings, sites, fit, by)
    mean, scale = mean_and_scale(x[fit])
    variances, axes = np.linalg.eigh(_covariance((x[fit] - mean) / scale))
    kept = variances > _tolerance(variances)
    if not kept.any():
        raise ValueError("all fit rows are equal; expected controls that differ")
    axes = axes[:, kept][:, ::-1]  # largest variance first
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
    return ((x - mean) / scale @ axes).astype(x.dtype)


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
