"""Samplers: which training sites share a batch.

A factory returns `sampler(sites, split, batch_size, seed) -> Order`, and `order(step)` the rows of
one batch. It depends on (sites, split, batch_size, seed, step) alone, so a run resumes from the
number of its step. Tables of an epoch are cached; nothing else is kept between calls.

Context are rows that count nothing in the loss and that BatchNorm sees: control wells, as
`splits.train_rows` gives them.
"""

import functools
import logging
from collections.abc import Callable

import numpy as np

from rxrx1_jax.data import splits
from rxrx1_jax.data.orders import Order, Rows, Sampler, groups, in_turn, random_bits, shares
from rxrx1_jax.data.splits import Split


def shuffled() -> Sampler:
    """Every epoch a new permutation of all sites; a batch may straddle two epochs.

    Each site comes exactly once in an epoch; epochs count how often it has come before.
    """

    def sampler(sites: np.ndarray, split: Split, batch_size: int, seed: int) -> Order:
        drawn = in_turn(split.train, lambda epoch: f"{seed}:{epoch}:all sites")
        return _order(
            len(split.train) / batch_size,
            lambda step: drawn(step * batch_size, (step + 1) * batch_size),
        )

    return sampler


def experiments(count: int = 2, across: bool = False, controls: float = 0.0) -> Sampler:
    """Each batch holds equally many sites of `count` experiments, all of one cell type; with
    across=True of any, as if there were one cell type.

    Domain penalties compare experiments within a cell type; count=1 gives the batches of ARM-BN
    (Zhang et al. 2021, arXiv:2007.02931). The rows of one experiment are consecutive. `controls` is
    the share of them that are control wells of the experiment, as context (CS-ARM-BN,
    Sanchez-Fernandez et al. 2026, arXiv:2604.20824). There are none where the split leaves no
    control to be context: `wilds` trains on them.

    An epoch is round(sites / training sites of a batch) steps, at least one. Each cell type gets
    batches in proportion to its sites, to within one per epoch. Within a cell type each experiment
    gets parts of the batches in proportion to its sites, to within one per epoch. An experiment
    with more than 1/count of them can have no more than one part of every batch: its sites come
    less often, the others of the cell type more often. Within an experiment the order is one
    permutation after another, whatever the epochs of the sampler: every site has come n times or
    n + 1 times at any moment (n is what `epochs` count), counting the parts drawn.

    Raises:
      ValueError: count below 1, batch_size no multiple of it, a cell type with fewer training
        experiments, controls that leave no row to train on, or an experiment without any.
    """
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"count {count}: expected a whole number of experiments, 1 or more")
    _check_controls(controls)

    def sampler(sites: np.ndarray, split: Split, batch_size: int, seed: int) -> Order:
        return _grouped(sites, split, (batch_size, count, controls), seed, "experiment", across)

    return sampler


def plates(controls: float = 0.0) -> Sampler:
    """Each batch is of one plate, as `experiments(count=1)` are of one experiment.

    The batches of BEN, batch effects normalization (Lin and Lu 2022, bioRxiv 2022.10.14.512286),
    whose BatchNorm sees all wells of a plate: controls=0.1 is their share in the release.
    """
    _check_controls(controls)

    def sampler(sites: np.ndarray, split: Split, batch_size: int, seed: int) -> Order:
        return _grouped(sites, split, (batch_size, 1, controls), seed, "plate")

    return sampler


def cross_experiment_pairs() -> Sampler:
    """Rows 2i and 2i + 1 are one siRNA in one cell type, in two different experiments.

    In an epoch every site comes once, in one pair, except those that cannot: where a siRNA has an
    odd number of sites in a cell type one of them sits out, and where more than half of them are
    of one experiment the surplus of that experiment does. Sites of a siRNA that has one experiment
    only in a cell type never come; a warning counts them. Every epoch draws partners, order and
    who sits out again; a batch may straddle two.

    Raises:
      ValueError: an odd batch_size, or no siRNA with two experiments in a cell type.
    """

    def sampler(sites: np.ndarray, split: Split, batch_size: int, seed: int) -> Order:
        if batch_size % 2:
            raise ValueError(f"batch_size {batch_size}: expected an even number, rows are pairs")
        table = _pair_tables(sites[split.train], seed)
        pairs = len(table(0))

        def choose(step: int) -> tuple[np.ndarray, np.ndarray]:
            half = batch_size // 2
            place = np.arange(step * half, (step + 1) * half)
            epochs = place // pairs
            chosen = [table(int(e))[place[epochs == e] % pairs] for e in np.unique(epochs)]
            return split.train[np.concatenate(chosen).reshape(-1)], np.repeat(epochs, 2)

        return _order(len(split.train) / batch_size, choose)

    return sampler


def _order(per_epoch: float, choose: Callable[[int], tuple[np.ndarray, np.ndarray]]) -> Order:
    """The order of batches without context, of which `choose` gives rows and epochs."""

    def batch(step: int) -> Rows:
        row, epoch = choose(step)
        return row, epoch.astype(np.int32), np.ones(len(row), np.bool_)

    return Order(per_epoch, batch)


def _check_controls(controls: float) -> None:
    if not 0 <= controls < 1:
        raise ValueError(f"controls {controls}: expected a share of the rows, 0 to 1, not 1 itself")


def _grouped(
    sites: np.ndarray, split: Split, sizes: tuple[int, int, float], seed: int, by: str,
    across: bool = False,
) -> Order:  # fmt: skip
    """Batches of `count` experiments or plates; sizes: batch_size, count, controls."""
    batch_size, count, controls = sizes
    if batch_size % count:
        raise ValueError(
            f"batch_size {batch_size}: expected a multiple of the {count} {by}s per batch"
        )
    group = sites["experiment"]
    if by == "plate":
        group = np.char.add(np.char.add(group, "_"), sites["plate"].astype(str))
    free = np.zeros(0, np.int64)
    if controls:
        free = np.setdiff1d(splits.train_rows(sites, split), split.train)
    context = round(controls * batch_size / count) if len(free) else 0
    part = batch_size // count - context
    if not part:
        raise ValueError(f"controls {controls}: leaves no row of {batch_size // count} to train on")
    trained = sites[split.train]
    if across:
        trained["cell_type"] = "all"
    names, members = groups(group[split.train])
    visits = _visits(trained, members, count * part, count, seed)

    def source(rows: np.ndarray, what: str) -> Callable[[int, int], tuple[np.ndarray, np.ndarray]]:
        return in_turn(rows, lambda epoch: f"{seed}:{epoch}:{what}")

    # Of each group: where its rows come from, and how many of them a batch holds.
    drawn = [
        [(source(split.train[own], f"sites of {name}"), part)]
        for name, own in zip(names, members, strict=True)
    ]
    for name, sources in zip(names, drawn, strict=True) if context else ():
        own = free[group[free] == name]
        if not len(own):
            raise ValueError(f"controls {controls}: {by} {name} has no control well; expected some")
        sources.append((source(own, f"controls of {name}"), context))

    def rows(step: int) -> Rows:
        parts = [
            (*draw(before * size, (before + 1) * size), np.full(size, place == 0))
            for number, before in visits(step)
            for place, (draw, size) in enumerate(drawn[number])
        ]
        row, epoch, mask = (np.concatenate(column) for column in zip(*parts, strict=True))
        return row, epoch.astype(np.int32), mask

    return Order(len(trained) / (count * part), rows)


def _visits(
    sites: np.ndarray, members: list[np.ndarray], batch_size: int, count: int, seed: int
) -> Callable[[int], list[tuple[int, int]]]:
    """Step -> (group, how many parts it has had before) of each of the batch's parts."""
    total = max(1, round(len(sites) / batch_size))
    size = np.array([len(rows) for rows in members])
    cell_types, types = groups(sites["cell_type"][[rows[0] for rows in members]])
    few = [f"{name} has {len(own)}" for name, own in zip(cell_types, types, strict=True)
           if len(own) < count]  # fmt: skip
    if few:
        raise ValueError(
            f"count {count}: a batch is of one cell type, and {', '.join(few)} training"
            " experiments: choose a lower count, or a cell type that has as many"
        )
    type_size = np.array([size[own].sum() for own in types])

    def quotas(epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Steps of each cell type and parts of each experiment in an epoch."""
        steps = shares(total, type_size, f"{seed}:{epoch}:cell types")
        parts = np.zeros(len(members), np.int64)
        for name, own, own_steps in zip(cell_types, types, steps, strict=True):
            left, rest = count, own
            # Who would have more than one part of every batch has one; the others share the rest.
            while (large := left * size[rest] > size[rest].sum()).any():
                parts[rest[large]] = own_steps
                left, rest = left - large.sum(), rest[~large]
            parts[rest] = shares(left * own_steps, size[rest], f"{seed}:{epoch}:{name}")
        return steps, parts

    parts_before = {0: np.zeros(len(members), np.int64)}  # epoch -> of each experiment

    @functools.lru_cache(maxsize=2)
    def table(epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Experiments of each step and how many parts they have had before, [total, count] each."""
        for e in range(len(parts_before) - 1, epoch):
            parts_before[e + 1] = parts_before[e] + quotas(e)[1]
        steps, parts = quotas(epoch)
        chosen = []
        for name, own, own_steps in zip(cell_types, types, steps, strict=True):
            left, order = parts[own], f"{seed}:{epoch}:order of {name}"
            for ties in random_bits(order, own_steps, len(own)):
                # Most parts left first, so that none has more left than there are steps.
                taken = np.lexsort((ties, -left))[:count]
                left[taken] -= 1
                chosen.append(own[taken])
        bits = random_bits(f"{seed}:{epoch}:order of steps", total)
        steps_drawn = np.argsort(bits, kind="stable")
        experiment = np.array(chosen)[steps_drawn].reshape(-1)
        before = np.empty(len(experiment), np.int64)
        for e, first in enumerate(parts_before[epoch]):
            before[experiment == e] = np.arange(first, first + parts[e])
        return experiment.reshape(total, count), before.reshape(total, count)

    def visits(step: int) -> list[tuple[int, int]]:
        experiment, before = table(step // total)
        k = step % total
        return list(zip(experiment[k].tolist(), before[k].tolist(), strict=True))

    return visits


def _pair_tables(sites: np.ndarray, seed: int) -> Callable[[int], np.ndarray]:
    """Epoch -> pairs of sites of one siRNA and cell type, not of one experiment, int64 [p, 2]."""
    count = len(sites)
    experiment, cell_type = (
        np.unique(sites[name], return_inverse=True)[1] for name in ("experiment", "cell_type")
    )
    kind = cell_type.astype(np.int64) << 32 | sites["sirna_id"].astype(np.int64)
    kind = np.unique(kind, return_inverse=True)[1]  # a siRNA in a cell type
    block = np.unique(kind * (experiment.max() + 1) + experiment, return_inverse=True)[1]
    size, block_size = np.bincount(kind), np.bincount(block)
    largest = np.zeros(len(size), np.int64)
    np.maximum.at(largest, kind, block_size[block])
    pairs = np.minimum(size // 2, size - largest)
    if not pairs.any():
        raise ValueError(
            "cross_experiment_pairs: no siRNA has training sites in two experiments of one cell"
            " type; expected some: choose another split or sampler"
        )
    if not pairs.all():
        logging.warning(
            "cross_experiment_pairs: %d of %d training sites are never drawn: their %d siRNAs (by"
            " cell type) are in one experiment only",
            size[pairs == 0].sum(), count, (pairs == 0).sum(),
        )  # fmt: skip
    surplus = size - 2 * pairs
    # Who may sit out: anyone, or the experiment that has more than half of the sites.
    sits_out = (block_size[block] == largest[kind]) | (2 * largest <= size)[kind]

    @functools.lru_cache(maxsize=2)
    def table(epoch: int) -> np.ndarray:
        bits = random_bits(f"{seed}:{epoch}:pairs", count + len(block_size) + int(pairs.sum()))
        of_site, of_block, of_pair = np.split(bits, [count, count + len(block_size)])
        drawn = np.lexsort((of_site, ~sits_out, kind))
        rank = np.arange(count) - (np.cumsum(size) - size)[kind[drawn]]
        kept = drawn[rank >= surplus[kind[drawn]]]
        # Experiment by experiment, no run is longer than half of the row: the site half a row
        # further is of another experiment.
        row = kept[np.lexsort((of_site[kept], of_block[block[kept]], kind[kept]))]
        place = np.arange(len(row)) - 2 * (np.cumsum(pairs) - pairs)[kind[row]]
        first = place < pairs[kind[row]]
        return np.stack([row[first], row[~first]], 1)[np.argsort(of_pair, kind="stable")]

    return table
