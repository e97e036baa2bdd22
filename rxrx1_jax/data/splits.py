"""Which sites are trained on and which are tested: the splits of the task.

The protocols are those of the RxRx1 paper (Taylor et al.): the *batch* split holds out whole
experiments, the *random* split ignores them; and two fixed ones, that of the release and that of
the WILDS benchmark. A split is a pure function of (sites, protocol, fold, seed, cell type). Draws
rank names by a hash, so they depend on no random generator's version and not on the order of the
records.
"""

import csv
import hashlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rxrx1_jax.config import FIELDS
from rxrx1_jax.data.files import replacing
from rxrx1_jax.data.images import CONTROL_TYPES

PROTOCOLS = FIELDS["data.protocol"].valid
FIXED = ("official", "wilds")  # nothing is drawn: one fold
FOLDS = 3  # the paper draws three batch splits
# Fields of `data` that a split depends on.
SETTINGS = ("protocol", "fold", "seed", "cell_type", "val_experiments", "fraction")

# Experiments per cell type in the paper's task. It does not say which: the first in name order.
PAPER_EXPERIMENTS = {"HUVEC": 20, "RPE": 9, "HEPG2": 9, "U2OS": 4}

# Experiments of the release's test set that WILDS v1.0 validates on
# (github.com/p-lambda/wilds, wilds/datasets/rxrx1_dataset.py: `dataset` of its metadata.csv).
WILDS_VALIDATION = ("HEPG2-08", "HUVEC-17", "RPE-08", "U2OS-04")


class SplitError(ValueError):
    """A split that does not exist or cannot be made from these sites."""


class Split(NamedTuple):
    """Rows of the table of sites, int64, ascending and disjoint; all but train and test may be
    empty."""

    train: np.ndarray
    val: np.ndarray  # for choices
    test: np.ndarray
    context: np.ndarray  # control wells that BatchNorm and fits may see; never scored
    extra: Mapping[str, np.ndarray]  # further sets to score, by name

    @property
    def scored(self) -> dict[str, np.ndarray]:
        """The sets that a trained network is evaluated on, by role; none is empty."""
        sets = {"test": self.test, **self.extra, "val": self.val}
        return {role: rows for role, rows in sets.items() if len(rows)}


def make_split(
    sites: np.ndarray, protocol: str, fold: int = 0, seed: int = 0, cell_type: str = "all",
    val_experiments: int = 0,
) -> Split:  # fmt: skip
    """Splits the sites whose siRNA is known: of treatments, under `wilds` of controls too.

    Protocols:
      batch: holds out ceil(n/5) of the n experiments of every cell type (the paper's 4/2/2/1 of
        20/9/9/4). The folds are disjoint slices of one permutation, so no experiment is tested in
        two of them.
      random_site: holds out as many sites of every (cell type, siRNA) as the batch split of the
        same fold, whatever the experiment. The paper's words: the second site of a test well may
        be trained on.
      random_well: the same by wells, both sites of a well together.
      official: the release's own partition, all its experiments; one fold.
      wilds: WILDS v1.0 (`split_scheme` official of wilds/datasets/rxrx1_dataset.py), one fold.
        Treatments, positive controls and untreated wells are classes (1,139 in the release).
        Trained on site 1 of the training experiments; tested on both sites of the test
        experiments. `val` is both sites of the validation experiments, and the extra set `id_test`
        site 2 of the training experiments. The experiments are known by name, so it does not
        matter whether the dataset was built with the release's partition or with that of WILDS.

    One cell type: that part of the split of all cell types. Validation, for choices that the test
    set must not make, takes whole experiments from training, the last of the permutation: no fold
    tests them where there are enough. In the random protocols as many units of every (cell type,
    siRNA) as the batch split's, drawn as those of the test set are.

    Args:
      sites: structured array, one row per site (`Images.sites`).
      protocol: one of PROTOCOLS.
      fold: 0 to 2.
      seed: of the draws.
      cell_type: "all" or a cell type of `sites`.
      val_experiments: of each cell type; 0: the paper's split. `wilds` has its own.

    Raises:
      SplitError: unknown protocol or cell type, fold out of range, too few experiments for the
        fold or for validation, or a split with an empty side.
    """
    cell_types = sorted(set(sites["cell_type"].tolist()))
    if protocol not in PROTOCOLS:
        raise SplitError(f"protocol {protocol!r}: expected one of {', '.join(PROTOCOLS)}")
    if cell_type not in ("all", *cell_types):
        raise SplitError(f"cell type {cell_type!r}: expected one of all, {', '.join(cell_types)}")
    folds = 1 if protocol in FIXED else FOLDS
    if not 0 <= fold < folds:
        valid = "0 (there is one)" if folds == 1 else f"0 to {folds - 1}"
        raise SplitError(f"fold {fold} of the {protocol} split: expected {valid}")

    known = _known(sites, protocol)
    if cell_type != "all":
        known &= sites["cell_type"] == cell_type

    none = np.zeros(0, np.int64)
    split = Split(none, none, none, none, {})
    unit = {"random_site": "site_id", "random_well": "well_id"}.get(protocol)
    if protocol == "official":
        # A dataset built with the partition of WILDS calls a part of the test set "val".
        pool, test = known, known & (sites["dataset"] != "train")
    elif protocol == "wilds":
        val = (sites["dataset"] == "val") | np.isin(sites["experiment"], WILDS_VALIDATION)
        in_domain = ~val & (sites["dataset"] == "train")
        test = known & ~val & ~in_domain
        pool = test | (known & in_domain & (sites["site"] == 1))
        id_test = np.flatnonzero(known & in_domain & (sites["site"] == 2))
        split = split._replace(val=np.flatnonzero(known & val), extra={"id_test": id_test})
    else:
        used, held_out = draw_experiments(sites[known], fold, seed)
        pool = known & np.isin(sites["experiment"], used)
        test = pool & np.isin(sites["experiment"], held_out)
    rest = pool & ~test  # of the batch split, where one is drawn
    if unit:
        test = _draw_matched(sites, pool, test, unit, f"{seed}:{fold}")
    train = pool & ~test
    if val_experiments:
        if protocol == "wilds":
            raise SplitError(
                f"val_experiments={val_experiments} of the wilds split: expected 0, it has its own"
            )
        val = _draw_validation(sites, rest, seed, val_experiments)
        if unit:
            val = _draw_matched(sites, train, val, unit, f"{seed}:{fold}:val")
        train &= ~val
        split = split._replace(val=np.flatnonzero(val))
    split = split._replace(train=np.flatnonzero(train), test=np.flatnonzero(test))
    if not len(split.train) or not len(split.test):
        raise SplitError(
            f"the {protocol} split, fold {fold}, cell type {cell_type}, has {len(split.train)}"
            f" training and {len(split.test)} test sites; expected some of both: choose another"
            " protocol or cell type, or build the dataset from more experiments"
        )
    return split


def configured(sites: np.ndarray, data: Mapping[str, Any]) -> Split:
    """The split that the settings `data` name. Raises SplitError."""
    split = make_split(sites, **{name: data[name] for name in SETTINGS if name != "fraction"})
    if data["fraction"] == 1:
        return split
    if not 0 < data["fraction"] < 1:
        raise SplitError(f"data.fraction={data['fraction']}: expected above 0, and 1 at most")

    def part(rows: np.ndarray) -> np.ndarray:
        wells = sites["well_id"][rows]
        drawn = _by_rank(set(wells.tolist()), data["seed"])
        return rows[np.isin(wells, drawn[: math.ceil(data["fraction"] * len(drawn))])]

    extra = {name: part(rows) for name, rows in split.extra.items()}
    train, val, test = map(part, (split.train, split.val, split.test))
    return split._replace(train=train, val=val, test=test, extra=extra)


def classes_of(sites: np.ndarray, protocol: str) -> np.ndarray:
    """sirna_ids [K] int32, ascending, of the sites that a split of the protocol draws from."""
    return np.unique(sites["sirna_id"][_known(sites, protocol)]).astype(np.int32)


def draw_experiments(sites: np.ndarray, fold: int, seed: int) -> tuple[list[str], list[str]]:
    """Experiments of the task, and those among them that the batch split's `fold` holds out.

    Args:
      sites: the sites that can be trained on or tested. An experiment without any (labels may be
        withheld) is not drawn, which would shrink the test set.
      fold, seed: as in `make_split`.

    Raises:
      SplitError: a cell type has too few experiments for the fold.
    """
    used, held_out = [], []
    for cell_type in sorted(set(sites["cell_type"].tolist())):
        names = sorted(set(sites["experiment"][sites["cell_type"] == cell_type].tolist()))
        names = names[: PAPER_EXPERIMENTS.get(cell_type, len(names))]
        size = -(-len(names) // 5)
        if len(names) <= size or len(names) < size * (fold + 1):
            raise SplitError(
                f"cell type {cell_type} has {len(names)} labelled experiments, too few for fold"
                f" {fold}; expected at least {max(2, size * (fold + 1))}: choose a lower fold,"
                " another cell type, or build the dataset from more experiments"
            )
        used += names
        held_out += sorted(_by_rank(names, seed)[size * fold : size * (fold + 1)])
    return used, held_out


def shuffle_within(values: np.ndarray, sites: np.ndarray, field: str, seed: int) -> np.ndarray:
    """The values [n] of `sites` [n], permuted among the sites of the same sites[field]."""
    ranks = np.array([rank(f"{seed}:{name}") for name in sites["site_id"].tolist()], np.uint64)
    shuffled = values.copy()
    for group in np.unique(sites[field]):
        rows = np.flatnonzero(sites[field] == group)
        shuffled[rows] = values[rows[np.argsort(ranks[rows])]]
    return shuffled


def site_roles(split: Split, count: int) -> np.ndarray:
    """[count] text: train, val, test, context, the name of an extra set, or "other"."""
    roles = np.full(count, "other", "U16")
    for role, rows in {"train": split.train, "context": split.context, **split.scored}.items():
        roles[rows] = role
    return roles


def roles_with_context(sites: np.ndarray, split: Split) -> np.ndarray:
    """`site_roles`; control wells of the experiments that the split uses are "context"."""
    roles = site_roles(split, len(sites))
    used = np.isin(sites["experiment"], np.unique(sites["experiment"][roles != "other"]))
    roles[used & (roles == "other") & np.isin(sites["well_type"], CONTROL_TYPES)] = "context"
    return roles


def train_rows(sites: np.ndarray, split: Split) -> np.ndarray:
    """What a sampler may draw: the training sites, and as context the control wells of their
    experiments that have no other role."""
    context = site_roles(split, len(sites)) == "other"
    context &= np.isin(sites["well_type"], CONTROL_TYPES)
    context &= np.isin(sites["experiment"], sites["experiment"][split.train])
    return np.union1d(split.train, np.flatnonzero(context))


def write_split(
    path: str | os.PathLike, sites: np.ndarray, split: Split, columns: Sequence[str] = ("site_id",)
) -> None:
    """Writes the split as CSV, `columns` of sites and role (see `site_roles`), in record order.

    Sites of the role "other" are left out.
    """
    roles = site_roles(split, len(sites))
    chosen = np.flatnonzero(roles != "other")
    with replacing(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow((*columns, "role"))
        values = [*(sites[name][chosen].tolist() for name in columns), roles[chosen].tolist()]
        writer.writerows(zip(*values, strict=True))


def _known(sites: np.ndarray, protocol: str) -> np.ndarray:
    """bool [n]: sites whose siRNA is known, of treatments alone but under `wilds`."""
    treated = (protocol == "wilds") | (sites["well_type"] == "treatment")
    return treated & (sites["sirna_id"] >= 0)


def _draw_validation(sites: np.ndarray, pool: np.ndarray, seed: int, count: int) -> np.ndarray:
    """bool [n]: the sites of `pool` in `count` of its experiments of each cell type, the last."""
    chosen: list[str] = []
    for cell_type in np.unique(sites["cell_type"][pool]).tolist():
        names = np.unique(sites["experiment"][pool & (sites["cell_type"] == cell_type)]).tolist()
        if not 0 < count < len(names):
            raise SplitError(
                f"val_experiments={count}: cell type {cell_type} has {len(names)} to train on;"
                f" expected 0 to {len(names) - 1}"
            )
        chosen += _by_rank(names, seed)[-count:]
    return pool & np.isin(sites["experiment"], chosen)


def _draw_matched(
    sites: np.ndarray, pool: np.ndarray, batch_test: np.ndarray, unit: str, salt: str
) -> np.ndarray:
    """bool [n]: of every (cell type, siRNA) as many units as `batch_test` holds, by hash rank."""
    names, first, inverse = np.unique(sites[unit], return_index=True, return_inverse=True)
    ranks = np.array([rank(f"{salt}:{name}") for name in names.tolist()], np.uint64)
    _, cell_type = np.unique(sites["cell_type"], return_inverse=True)
    group = cell_type.astype(np.int64) << 32 | sites["sirna_id"].astype(np.int64)

    members = np.unique(inverse[pool])  # units to draw from
    wanted = np.unique(inverse[batch_test])
    groups, sizes = np.unique(group[first[wanted]], return_counts=True)
    order = members[np.lexsort((ranks[members], group[first[members]]))]
    ordered_group = group[first[order]]
    # Position of each unit within its group: the index minus that of the group's first unit.
    position = np.arange(len(order)) - np.searchsorted(ordered_group, ordered_group)
    quota = dict(zip(groups.tolist(), sizes.tolist(), strict=True))
    take = position < np.array([quota.get(g, 0) for g in ordered_group.tolist()], np.int64)
    return pool & np.isin(inverse, order[take])


def _by_rank(names: Iterable[str], seed: int) -> list[str]:
    return sorted(names, key=lambda name: rank(f"{seed}:{name}"))


def rank(name: str) -> int:
    """A 64-bit hash: sorting by it is a random permutation, the same on any machine."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
