"""Finding the wells of a siRNA again: among the other siRNAs, and among untreated wells.

NumPy on arrays of rows, in any order. Similarities are cosines about the origin: centre embeddings
first, for example on the controls.
"""

import math
from typing import NamedTuple

import numpy as np

from rxrx1_jax.methods.embedding_metrics import TIED, check_rows, unit_rows

BLOCK = 2**24  # similarities held at once: 64 MiB
NULL = 10_000  # random rankings


class Retrieval(NamedTuple):
    mean: float  # over labels, of the mean over their rows
    chance: float  # the same for rankings at random
    average_precision: np.ndarray  # [n], NaN where a row has no positive
    labels: np.ndarray  # [K] with a positive, sorted
    p_value: np.ndarray  # [K] of each label's mean
    least: np.ndarray  # [K] the lowest p_value that the design allows


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
    check_rows(embeddings, labels, experiment)
    names, code = np.unique(labels, return_inverse=True)
    if len(names) < 2:
        raise ValueError("retrieval needs negatives: expected two labels or more")
    n = len(labels)
    order = np.argsort(code, kind="stable")
    unit, code_of, made_in = unit_rows(embeddings)[order], code[order], experiment[order]
    ends = np.cumsum(np.bincount(code))
    own = [slice(end - size, end) for end, size in zip(ends, np.bincount(code), strict=True)]
    precision = np.full(n, np.nan)
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
                precision[order[i]] = _average_precision(positive, row)
                same = own[code_of[i]]
                design[order[i]] = m, m + n - (same.stop - same.start)
    if np.isnan(precision).all():
        raise ValueError("retrieval needs positives: no label is in two experiments")
    return retrieved(names, code, precision, design)


def activity_map(
    x: np.ndarray, labels: np.ndarray, experiment: np.ndarray, control: np.ndarray
) -> Retrieval:
    """Mean average precision of a siRNA's wells of other experiments among untreated wells.

    Every row that is no control is a query. Its positives are the rows of its label in other
    experiments, its negatives the controls of its own experiment. This is the average precision of
    copairs with pos_sameby=[label], pos_diffby=[experiment], neg_sameby=[experiment],
    neg_diffby=[label], the controls having a label of their own and being no queries. p_value and
    chance are as in `retrieval_map`. Not quadratic: a row is compared with its own label's rows and
    with the controls.

    Args:
      x: [n, d], of one cell type; wells.
      labels, experiment: [n].
      control: bool [n], the untreated wells.

    Returns:
      average_precision is of the rows that are no controls, in their order.

    Raises ValueError: no controls, or no label in two experiments with controls; a zero row.
    """
    check_rows(x, labels, experiment, control)
    unit = unit_rows(x)
    rows = np.flatnonzero(~control)
    names, code = np.unique(labels[rows], return_inverse=True)
    negatives: dict[int, np.ndarray] = {}  # of each row, ascending
    for name in np.unique(experiment):
        here = control & (experiment == name)
        asked = rows[experiment[rows] == name]
        similar = np.sort(unit[asked] @ unit[here].T, axis=1)
        negatives |= dict(zip(asked.tolist(), similar, strict=True))
    precision, design = np.full(len(rows), np.nan), np.zeros((len(rows), 2), int)
    order = np.argsort(code, kind="stable")
    for own in np.split(order, np.cumsum(np.bincount(code))[:-1]):
        members = rows[own]
        similar = unit[members] @ unit[members].T
        for i, row in enumerate(members):
            positive = np.sort(similar[i][experiment[members] != experiment[row]])[::-1]
            others = negatives[int(row)]
            m, n = len(positive), len(others)
            if not m or not n:
                continue
            precision[own[i]], design[own[i]] = _average_precision(positive, others), (m, m + n)
    if np.isnan(precision).all():
        raise ValueError("activity needs siRNAs in two experiments that have untreated wells")
    return retrieved(names, code, precision, design)


def _average_precision(positives: np.ndarray, others: np.ndarray) -> float:
    """positives: similarities, falling; others: rising. A tie counts against the positive."""
    rank = np.arange(1, len(positives) + 1)
    before = len(others) - np.searchsorted(others, positives, side="left")
    return (rank / (rank + before)).mean()


def retrieved(
    names: np.ndarray, code: np.ndarray, precision: np.ndarray, design: np.ndarray
) -> Retrieval:
    """What the average precision of rows says of their labels.

    Args:
      names, code: of the labels; code [n] is the label of each row.
      precision: [n], NaN without a positive.
      design: int [n, 2], positives of each row, and rows that it ranks; 0, 0 without a positive.
    """
    kinds, kind = np.unique(design, axis=0, return_inverse=True)
    null = np.stack([_random_precision(m, length) for m, length in kinds.tolist()])
    perfect = np.array([1 / math.comb(length, m) for m, length in kinds.tolist()])
    known, p_value, least = np.unique(code[design[:, 0] > 0]), [], []
    for label in known:
        rows = np.flatnonzero((code == label) & (design[:, 0] > 0))
        above = null[kind[rows]].mean(0) >= precision[rows].mean() - TIED
        p_value.append((1 + above.sum()) / (1 + NULL))
        least.append(max(perfect[np.unique(kind[rows])].prod(), 1 / (1 + NULL)))
    expected = np.array([_expected_precision(m, length) for m, length in kinds.tolist()])[kind]
    mean, chance = _mean_over(code, precision), _mean_over(code, expected)
    return Retrieval(mean, chance, precision, names[known], np.array(p_value), np.array(least))


def _expected_precision(positives: int, length: int) -> float:
    if not positives:
        return np.nan
    h = (1 / np.arange(1, length + 1)).sum()
    return float((h + (positives - 1) / max(length - 1, 1) * (length - h)) / length)


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


def _mean_over(code: np.ndarray, values: np.ndarray) -> float:
    """Mean over codes of the mean of their values; NaN is left out."""
    kept = ~np.isnan(values)
    count = np.bincount(code[kept])
    sums = np.bincount(code[kept], weights=values[kept])
    return float((sums[count > 0] / count[count > 0]).mean())
