"""From log-probabilities of sites to decisions: by well, and by the design of the screen.

Assignment uses the design (Wilds 2021, appendix E.3: it lifts accuracy without a better model): a
treatment siRNA occurs at most once in an experiment, and a plate holds one of as many fixed groups
of siRNAs as there are plates, in a cyclic order. Compare its results only with others that use the
design.

Both functions take log_probs float [n, K], sites [n] (a structured array, rows in any order),
classes [K] (sirna_ids of the columns) and role [n] as in `Evidence`; labels are read where it is
"train" and nowhere else. They return sirna_ids int32 [n], the same for all assigned sites of a
well. They raise ValueError if sizes disagree, values are not finite, roles are unknown, or siRNAs
occur more than once in the training experiments as a rule.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from rxrx1_jax.data.embeddings import check_finite
from rxrx1_jax.methods.evidence import ROLES

UNKNOWN = -1  # group of a siRNA without training wells: it may be on any plate
AGREEMENT = 0.9  # least share of training wells that must fit the rotated groups
ROUNDS = 10  # of re-estimating the groups; real metadata settle in two


def assign_once(
    log_probs: np.ndarray, sites: np.ndarray, classes: np.ndarray, role: np.ndarray
) -> np.ndarray:
    """Predictions under the rule that no treatment siRNA occurs twice in an experiment.

    Each experiment gets the assignment of wells to siRNAs with the largest sum of mean
    log-probabilities: linear assignment (Crouse 2016, IEEE Trans. Aerospace and Electronic Systems
    52, 1679, in SciPy). siRNAs of the experiment's training wells are taken, unless a site of the
    well is to be predicted (a split by site). Wells beyond the number of free siRNAs get their best
    one. Training and control sites get the best class of their well: nothing is assigned there.
    Training sites of a well and its other sites have separate means: what a network says of a site
    that it was trained on is the label.
    """
    classes = _checked(log_probs, sites, classes, role)
    return _assigned(log_probs, sites, classes, role, {}, {})


def assign_plate_groups(
    log_probs: np.ndarray, sites: np.ndarray, classes: np.ndarray, role: np.ndarray
) -> np.ndarray:
    """As `assign_once`, and each plate holds one group of siRNAs.

    The groups come from the training wells (`sirna_groups`). Of each experiment that rotation is
    chosen which leaves the fewest wells without a free siRNA of their plate's group, and among
    those the one with the largest sum of mean log-probabilities; the rotation of an experiment with
    training wells is the one that fits them. Wells left over get their best siRNA of the group, or
    their best of all if the group is empty. Raises also as `sirna_groups`.
    """
    classes = _checked(log_probs, sites, classes, role)
    return _assigned(log_probs, sites, classes, role, *sirna_groups(sites, role))


def _assigned(
    log_probs: np.ndarray, sites: np.ndarray, classes: np.ndarray, role: np.ndarray,
    groups: Mapping[int, int], known_rotation: Mapping[str, int],
) -> np.ndarray:  # fmt: skip
    """`assign_plate_groups` with these groups; a siRNA without one may be on any plate."""
    training = role == "train"
    _, well = np.unique(sites["well_id"], return_inverse=True)
    # The training sites of a well count as a well of their own.
    _, well, count = np.unique(2 * well + training, return_inverse=True, return_counts=True)
    scores = np.zeros((len(count), len(classes)))
    np.add.at(scores, well, log_probs)
    scores /= count[:, None]
    plates, plate = np.unique(sites["plate"], return_inverse=True)
    group = np.array([groups.get(int(sirna), UNKNOWN) for sirna in classes])
    predicted = scores[well].argmax(axis=1)
    open_rows = ~training & (sites["well_type"] == "treatment")
    trained = training & ~np.isin(sites["well_id"], sites["well_id"][open_rows])
    for experiment in np.unique(sites["experiment"][open_rows]):
        here = sites["experiment"] == experiment
        rows = np.flatnonzero(here & open_rows)
        taken = np.isin(classes, sites["sirna_id"][here & trained])
        wells, first, back = np.unique(well[rows], return_index=True, return_inverse=True)
        rotations: Sequence[int] = range(len(plates) if groups else 1)
        if experiment in known_rotation:
            rotations = [known_rotation[experiment]]
        best: tuple[int, float] | None = None
        for rotation in rotations:
            holds = (plate[rows[first]] + rotation) % len(plates)
            in_group = (group == holds[:, None]) | (group == UNKNOWN)
            choice, rank = _assign(scores[wells], in_group & ~taken, in_group)
            if best is None or rank > best:
                best, predicted[rows] = rank, choice[back]
    return classes[predicted]


def sirna_groups(sites: np.ndarray, role: np.ndarray) -> tuple[dict[int, int], dict[str, int]]:
    """The group of each treatment siRNA and the rotation of each experiment, from training wells.

    With P plates, the siRNA on plate p (0 to P - 1 in order of their numbers) of experiment e has
    the group (p + rotation[e]) mod P. The experiment with the most training wells has rotation 0.
    The others join in order of size, each with the rotation that most of its wells agree with; then
    groups (by majority) and rotations are estimated again until nothing changes. So a few
    mislabelled wells do no harm.

    Returns {sirna_id: group}, {experiment: rotation}; siRNAs and experiments without training wells
    are in neither. Raises ValueError: no training wells; no siRNA has two, or fewer than AGREEMENT
    of those that are repeated fit, so the plates hold no fixed groups in rotation.
    """
    rows = _training_wells(sites, role)
    if not len(rows):
        raise ValueError("no training wells of treatments; expected some to learn the groups from")
    plates, plate = np.unique(sites["plate"], return_inverse=True)
    sirnas, sirna = np.unique(sites["sirna_id"][rows], return_inverse=True)
    names, experiment = np.unique(sites["experiment"][rows], return_inverse=True)
    # table[e, s, p]: wells of siRNA s on plate p of experiment e
    table = np.zeros((len(names), len(sirnas), len(plates)))
    np.add.at(table, (experiment, sirna, plate[rows]), 1)
    rotation = np.zeros(len(names), int)

    def turned(e: int, votes: np.ndarray) -> np.ndarray:
        """table[e] in the rotation that fits the votes best, which is noted."""
        options = [np.roll(table[e], r, axis=1) for r in range(len(plates))]
        rotation[e] = np.argmax([(option * votes).sum() for option in options])
        return options[rotation[e]]

    first, *others = np.argsort(-table.sum(axis=(1, 2)), kind="stable")
    votes = table[first]
    for e in others:
        votes = votes + turned(e, votes)
    for _ in range(ROUNDS):
        before, fixed = rotation.copy(), np.eye(len(plates))[votes.argmax(axis=1)]
        votes = np.sum([turned(e, fixed) for e in range(len(names))], axis=0)
        if (rotation == before).all():
            break
    group = votes.argmax(axis=1)
    wells = votes.sum(axis=1)
    repeated = wells > 1  # the only well of a siRNA agrees with any grouping
    agreeing = votes.max(axis=1)[repeated].sum()
    if agreeing < AGREEMENT * max(wells[repeated].sum(), 1):
        raise ValueError(
            f"{agreeing:.0f} of {wells[repeated].sum():.0f} training wells (of siRNAs with several)"
            f" agree with {len(plates)} siRNA groups in rotation, expected at least"
            f" {AGREEMENT:.0%}: the plates of these data show no fixed groups; use assign_once"
        )
    return (
        dict(zip(sirnas.tolist(), group.tolist(), strict=True)),
        dict(zip(names.tolist(), rotation.tolist(), strict=True)),
    )


def _assign(
    scores: np.ndarray, free: np.ndarray, fallback: np.ndarray
) -> tuple[np.ndarray, tuple[int, float]]:
    """Classes [w] of wells: free ones, each once; else the best of `fallback`, else the best.

    All [w, K]. Also returns the rank of the assignment: (- wells without a free class, sum of
    scores of the others).
    """
    from scipy.optimize import linear_sum_assignment  # here: the commands' --help needs none

    # Larger than any gain by the scores, so that as few wells as possible are left over.
    worst = (np.ptp(scores) + 1) * len(scores)
    wells, columns = linear_sum_assignment(
        np.where(free, scores - scores.max(), -worst), maximize=True
    )
    placed = free[wells, columns]
    wells, columns = wells[placed], columns[placed]
    best_of_group = np.where(fallback, scores, -np.inf).argmax(axis=1)
    choice = np.where(fallback.any(axis=1), best_of_group, scores.argmax(axis=1))
    choice[wells] = columns
    return choice, (len(wells) - len(scores), float(scores[wells, columns].sum()))


def _training_wells(sites: np.ndarray, role: np.ndarray) -> np.ndarray:
    """One row of each labelled treatment well with a training site."""
    rows = np.flatnonzero((role == "train") & (sites["well_type"] == "treatment"))
    rows = rows[sites["sirna_id"][rows] >= 0]
    return rows[np.unique(sites["well_id"][rows], return_index=True)[1]]


def _checked(
    log_probs: np.ndarray, sites: np.ndarray, classes: np.ndarray, role: np.ndarray
) -> np.ndarray:
    """The classes as int32. Raises as `assign_once`."""
    n, classes, roles = len(sites), np.asarray(classes, np.int32), set(np.unique(role).tolist())
    k = len(np.unique(classes))
    if log_probs.shape != (n, len(classes)) or k < len(classes):
        raise ValueError(
            f"log_probs have shape {list(log_probs.shape)}; expected [{n}, {k}], a row per site"
            f" and a column for each of {k} classes, which differ"
        )
    check_finite("log_probs", log_probs, sites["site_id"])
    if role.shape != (n,) or not roles <= set(ROLES):
        raise ValueError(
            f"role has shape {list(role.shape)} and values {sorted(roles)}; expected [{n}] of"
            f" {', '.join(ROLES)}"
        )
    rows = sites[_training_wells(sites, role)]
    counts = np.unique(rows[["experiment", "sirna_id"]], return_counts=True)[1]
    if (counts == 1).sum() < AGREEMENT * len(counts):
        raise ValueError(
            f"{(counts > 1).sum()} of {len(counts)} siRNAs occur more than once in a training"
            " experiment; assignment is for screens where they occur once"
        )
    return classes
