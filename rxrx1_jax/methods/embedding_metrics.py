"""Metrics of embeddings: how well one can tell experiments apart, and how well the biology.

Experiments: `experiment_predictability`. Biology: `retrieval_map`, `replicate_consistency` and, on
a synthetic screen, `planted_recovery`. A correction that erases everything mixes the experiments
perfectly, so the first means nothing without one of the others beside it.

NumPy on arrays of rows, in any order; ids are arrays of strings or integers. Similarities are
cosines about the origin: centre embeddings first, for example on the controls.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats
from scipy.spatial.distance import pdist

from rxrx1_jax.data.embeddings import check_finite

FOLDS = 5  # of the siRNAs, in the probe
BLOCK = 2**24  # similarities held at once: 64 MiB
NULL = 10_000  # random rankings
TIED = 1e-6  # below it a difference is rounding


class Predictability(NamedTuple):
    accuracy: float  # mean over the experiments of the share of their rows that is recognised
    chance: float  # 1 / number of experiments


class Retrieval(NamedTuple):
    mean: float  # over labels, of the mean over their rows
    chance: float  # the same for rankings at random
    average_precision: np.ndarray  # [n], NaN where a row has no positive
    labels: np.ndarray  # [K] with a positive, sorted
    p_value: np.ndarray  # [K] of each label's mean


class Consistency(NamedTuple):
    labels: np.ndarray  # [K] with two or more profiles, sorted
    similarity: np.ndarray  # [K] mean cosine between the profiles of a label
    null: np.ndarray  # [K] its mean over the permutations
    p_value: np.ndarray  # [K]
    least: np.ndarray  # [K] the lowest p_value that the design allows where all are consistent


def mean_profiles(embeddings: np.ndarray, *columns: np.ndarray) -> tuple[np.ndarray, ...]:
    """Means of the rows that agree in all columns: wells, siRNAs, siRNAs of an experiment.

    [n, D] and ids [n] -> means f64 [P, D], then the P values of each column, sorted by the first,
    second ...
    """
    _check(embeddings, *columns)
    codes = np.stack([np.unique(ids, return_inverse=True)[1] for ids in columns], axis=1)
    _, first, group = np.unique(codes, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    sums = np.add.reduceat(embeddings[order], starts, axis=0, dtype=np.float64)
    return sums / np.bincount(group)[:, None], *(ids[first] for ids in columns)


def experiment_predictability(
    x: np.ndarray, experiment: np.ndarray, sirna: np.ndarray
) -> Predictability:
    """How well a linear classifier names the experiment of a site of one cell type.

    scikit-learn's logistic regression on standardised features, with its own settings. Five-fold
    over siRNAs: each site is recognised once, by a classifier that saw no well of its siRNA.
    Holding out wells alone would be wrong: every siRNA is in every experiment, so a classifier
    trained on its other wells learns from the siRNA which experiments the well is *not* of, and
    falls far below chance where there is no batch effect. Raises ValueError for a single
    experiment, or one of fewer than FOLDS siRNAs; ModuleNotFoundError names the extra.
    """
    try:
        from sklearn import linear_model, model_selection, pipeline, preprocessing
        from threadpoolctl import threadpool_limits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the probe needs scikit-learn: `pip install 'rxrx1_jax[analysis]'`"
        ) from error
    _check(x, experiment, sirna)
    names, target = np.unique(experiment, return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"experiment {names[0]} is the only one; expected two or more")
    for k, name in enumerate(names):
        if (count := len(np.unique(sirna[target == k]))) < FOLDS:
            raise ValueError(f"experiment {name} has {count} siRNAs; expected {FOLDS} or more")
    probe = pipeline.make_pipeline(
        preprocessing.StandardScaler(), linear_model.LogisticRegression(max_iter=1000)
    )
    folds = model_selection.GroupKFold(FOLDS, shuffle=True, random_state=0)
    with threadpool_limits(1):  # threads that wait for each other cost more than these products
        predicted = model_selection.cross_val_predict(
            probe, x.astype(np.float64), target, groups=sirna, cv=folds
        )
    right = np.bincount(target[predicted == target], minlength=len(names))
    return Predictability(float((right / np.bincount(target)).mean()), 1 / len(names))


def retrieval_map(embeddings: np.ndarray, labels: np.ndarray, experiment: np.ndarray) -> Retrieval:
    """Mean average precision of finding a siRNA again in other experiments, by cosine similarity.

    Every row is a query. Its positives are the rows of its label in other experiments, its
    negatives all rows of other labels, those of its own experiment included: they are the ones
    that batch effects put first. Rows of its label in its experiment are left out. A negative as
    similar as a positive counts as ranked before it. This is the average precision of copairs
    (Kalinin et al., "A versatile information retrieval framework for evaluating profile strength
    and similarity", 2024) with pos_sameby=[label], pos_diffby=[experiment], neg_sameby=[],
    neg_diffby=[label]. Chance is the exact expectation for M positives among L rows,
    (H_L + (M - 1) / (L - 1) (L - H_L)) / L, H_L the L-th harmonic number. Rows are of one cell type
    unless retrieval across cell types is meant.

    p_value is that of copairs: the share of NULL random rankings whose mean over the label's rows
    is as high. One ranking serves all rows with as many positives and negatives, for the rows of a
    label are not independent.

    Raises ValueError for fewer than two labels, a zero row, or no label in two experiments.
    """
    _check(embeddings, labels, experiment)
    names, code = np.unique(labels, return_inverse=True)
    if len(names) < 2:
        raise ValueError("retrieval needs negatives: expected two labels or more")
    n = len(labels)
    order = np.argsort(code, kind="stable")
    unit, code_of, made_in = _unit(embeddings)[order], code[order], experiment[order]
    ends = np.cumsum(np.bincount(code))
    own = [slice(end - size, end) for end, size in zip(ends, np.bincount(code), strict=True)]
    harmonic = np.cumsum(1 / np.arange(1, n + 1))
    precision, expected = np.full(n, np.nan), np.full(n, np.nan)
    design = np.zeros((n, 2), int)  # positives of each row, and rows that it ranks
    step = max(1, BLOCK // n)
    for first in range(0, n, step):
        similarity = unit[first : first + step] @ unit.T
        positives = []
        for i, row in enumerate(similarity, first):
            same = own[code_of[i]]
            positives.append(np.sort(row[same][made_in[same] != made_in[i]])[::-1])
            row[same] = -np.inf
        similarity.sort(axis=1)
        for i, (row, positive) in enumerate(zip(similarity, positives, strict=True), first):
            m = len(positive)
            if m:
                before = n - np.searchsorted(row, positive, side="left")
                rank = np.arange(1, m + 1)
                precision[order[i]] = (rank / (rank + before)).mean()
                same = own[code_of[i]]
                length = m + n - (same.stop - same.start)
                design[order[i]] = m, length
                h = harmonic[length - 1]
                expected[order[i]] = (h + (m - 1) / (length - 1) * (length - h)) / length
    if np.isnan(precision).all():
        raise ValueError("retrieval needs positives: no label is in two experiments")
    kinds, kind = np.unique(design, axis=0, return_inverse=True)
    null = np.stack([_random_precision(m, length) for m, length in kinds.tolist()])
    known, p_value = np.unique(code[design[:, 0] > 0]), []
    for label in known:
        rows = np.flatnonzero((code == label) & (design[:, 0] > 0))
        above = null[kind[rows]].mean(0) >= precision[rows].mean() - TIED
        p_value.append((1 + above.sum()) / (1 + NULL))
    mean, chance = _mean_over(code, precision), _mean_over(code, expected)
    return Retrieval(mean, chance, precision, names[known], np.array(p_value))


def _random_precision(positives: int, length: int) -> np.ndarray:
    """[NULL] average precision of random rankings; NaN without positives."""
    if not positives:
        return np.full(NULL, np.nan)
    rng, found, step = np.random.default_rng([positives, length]), [], max(1, BLOCK // length)
    for first in range(0, NULL, step):
        keys = rng.random((min(step, NULL - first), length))
        rank = np.sort(np.argpartition(keys, positives - 1, axis=1)[:, :positives], axis=1) + 1
        found.append((np.arange(1, positives + 1) / rank).mean(1))
    return np.concatenate(found)


def replicate_consistency(
    profiles: np.ndarray, labels: np.ndarray, experiment: np.ndarray, seed: int = 0,
    draws: int = 1000,
) -> Consistency:  # fmt: skip
    """How similar the profiles of a siRNA are, against profiles drawn at random.

    Perturbation consistency of EFAAR (Celik et al., "Building, benchmarking, and exploring
    perturbative maps of transcriptional and morphological data", 2024): the mean cosine over all
    pairs of a label's profiles, here one profile per experiment. Its null permutes the labels
    within each experiment, so that what profiles of the same experiments share counts for
    nothing. p = (1 + null values at or above the label's own) / (1 + draws): a share x of labels
    without effect has p <= x. Profiles [P, D] are as `mean_profiles(embeddings, labels,
    experiment)` gives them, of one cell type.

    Raises ValueError for two profiles of a label in one experiment (the sites of a well are
    similar whatever its label), for a zero profile, and if no label has two profiles.
    """
    _check(profiles, labels, experiment)
    names, code = np.unique(labels, return_inverse=True)
    _, made_in = np.unique(experiment, return_inverse=True)
    order = np.lexsort((made_in, code))
    code, made_in = code[order], made_in[order]
    again = np.flatnonzero((np.diff(code) == 0) & (np.diff(made_in) == 0))
    if len(again):
        row = order[again[0]]
        raise ValueError(
            f"label {labels[row]} has several profiles in experiment {experiment[row]}: expected "
            "one; use mean_profiles(embeddings, labels, experiment)"
        )
    several = np.bincount(code) > 1
    if not several.any():
        raise ValueError("consistency needs replicates: no label has two profiles")
    unit, size = _unit(profiles)[order], np.bincount(code)[several]
    # For each experiment its rows, where each label's profile is among them (-1: nowhere), and
    # which of them each label gets: [draws + 1, its rows], first its own.
    rows = [np.flatnonzero(made_in == b) for b in range(made_in.max() + 1)]
    place = np.full((len(rows), len(names)), -1)
    given = []
    rng = np.random.default_rng(seed)
    for b, members in enumerate(rows):
        own = np.arange(len(members), dtype=np.int32)
        place[b, code[members]] = own
        given.append(np.vstack([own, rng.permuted(np.tile(own, (draws, 1)), axis=1)]))
    sums = np.zeros((draws + 1, len(names)))
    for b, c in itertools.combinations(range(len(rows)), 2):
        cosine = unit[rows[b]] @ unit[rows[c]].T
        both = np.flatnonzero((place[b] >= 0) & (place[c] >= 0))
        sums[:, both] += cosine[given[b][:, place[b, both]], given[c][:, place[c, both]]]
    similarity = sums[:, several] / (size * (size - 1) / 2)
    above = (similarity[1:] >= similarity[0] - TIED).sum(axis=0)
    # All consistent: what a permutation gives is as similar if it is the profiles of one label.
    there, members = place >= 0, np.array([[len(own)] for own in rows])
    common = np.array([there[there[:, k]].all(0).sum() for k in np.flatnonzero(several)])
    least = common / np.where(there, members, 1.0).prod(0)[several]
    p_value, least = (1 + above) / (1 + draws), np.maximum(least, 1 / (1 + draws))
    return Consistency(
        names[several], similarity[0], similarity[1:].mean(axis=0), p_value, least
    )


def planted_effects(
    sirnas: Mapping[str, Any], sirna_ids: Sequence[int] | np.ndarray, cell_type: str
) -> np.ndarray:
    """Planted effects [K, 24], latent units, of siRNAs in a cell type.

    `sirnas` is that of the metadata.json of a synthetic screen. Raises ValueError for a siRNA or a
    cell type that it lacks.
    """
    try:
        return np.array([sirnas[str(sirna_id)][cell_type] for sirna_id in sirna_ids], np.float64)
    except KeyError as error:
        raise ValueError(
            f"no planted effects in {cell_type}: no {error} in metadata.json; expected that of the"
            " screen that the embeddings are of"
        ) from error


def planted_recovery(measured: np.ndarray, planted: np.ndarray) -> float:
    """Rank correlation, over pairs of siRNAs, of measured with planted Euclidean distances.

    measured: [K, D], of `mean_profiles(embeddings, sirna)` in a cell type. All should be means over
    the same experiments, else shifts of experiments count as effects. planted: [K, P],
    `planted_effects` of the same siRNAs in the same order.

    Raises ValueError for fewer than three siRNAs, or if all distances of one kind are equal (a
    screen made with effect 0).
    """
    if len(measured) != len(planted) or len(measured) < 3:
        raise ValueError(
            f"{len(measured)} measured and {len(planted)} planted siRNAs; expected the same "
            "number, three or more"
        )
    distances = [pdist(np.asarray(x, np.float64)) for x in (measured, planted)]
    for name, values in zip(("measured", "planted"), distances, strict=True):
        if not np.isfinite(values).all() or np.ptp(values) == 0:
            raise ValueError(f"{name} distances are all equal or not finite: no correlation")
    return float(stats.spearmanr(*distances).statistic)


def _check(embeddings: np.ndarray, *columns: np.ndarray) -> None:
    n = len(embeddings)
    if embeddings.ndim != 2 or not n or any(ids.shape != (n,) for ids in columns):
        raise ValueError(
            f"embeddings {embeddings.shape} with ids {[ids.shape for ids in columns]}; expected "
            "[n, D] and [n] each, n > 0"
        )
    check_finite("embedding", embeddings)


def _unit(embeddings: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1, float32."""
    length = np.linalg.norm(embeddings.astype(np.float64), axis=1, keepdims=True)
    if not length.all():
        raise ValueError(f"embedding of row {length.argmin()} is zero: it has no cosine")
    return (embeddings / length).astype(np.float32)


def _mean_over(code: np.ndarray, values: np.ndarray) -> float:
    """Mean over codes of the mean of their values; NaN is left out."""
    kept = ~np.isnan(values)
    count = np.bincount(code[kept])
    sums = np.bincount(code[kept], weights=values[kept])
    return float((sums[count > 0] / count[count > 0]).mean())
