"""Metrics of embeddings: how well one can tell experiments apart, and how well the biology.

Experiments: `experiment_predictability`. Biology: `replicate_consistency`, `retrieval` and, on
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
TIED = 1e-6  # below it a difference is rounding


class Predictability(NamedTuple):
    accuracy: float  # mean over the experiments of the share of their rows that is recognised
    chance: float  # 1 / number of experiments


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
    check_rows(embeddings, *columns)
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
    check_rows(x, experiment, sirna)
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
    check_rows(profiles, labels, experiment)
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
    unit, size = unit_rows(profiles)[order], np.bincount(code)[several]
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


def check_rows(embeddings: np.ndarray, *columns: np.ndarray) -> None:
    n = len(embeddings)
    if embeddings.ndim != 2 or not n or any(ids.shape != (n,) for ids in columns):
        raise ValueError(
            f"embeddings {embeddings.shape} with ids {[ids.shape for ids in columns]}; expected "
            "[n, D] and [n] each, n > 0"
        )
    check_finite("embedding", embeddings)


def unit_rows(embeddings: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1, float32."""
    length = np.linalg.norm(embeddings.astype(np.float64), axis=1, keepdims=True)
    if not length.all():
        raise ValueError(f"embedding of row {length.argmin()} is zero: it has no cosine")
    return (embeddings / length).astype(np.float32)
