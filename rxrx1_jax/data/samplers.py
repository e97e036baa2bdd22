"""Samplers: which training sites share a batch.

A factory returns `sampler(sites, split, batch_size, seed) -> Order`, and `order(step)` the rows of
one batch. It depends on (sites, split, batch_size, seed, step) alone, so a run resumes from the
number of its step. Tables of an epoch are cached; nothing else is kept between calls. Draws come
from hashes and from the integers of `np.random.PCG64`, which NumPy promises to keep. NumPy does not
promise that for `np.random.Generator`.
"""

import functools
import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rxrx1_jax.data.splits import Split

# Step -> positions in the training sites, and their epochs, int64 [batch_size] each.
Choose = Callable[[int], tuple[np.ndarray, np.ndarray]]
Rows = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Order:
    """The batches of a training, by the number of the step.

    Attributes:
      per_epoch: steps per epoch; a fraction where a batch may straddle two.
      rows: step -> row int64, epoch int32 and mask bool, [batch_size] each. row is a row of the
        table of sites, -1 of a blank image. epoch counts how often the row has come before: no
        (row, epoch) comes twice, so what is drawn from it differs each time. A row whose mask is
        false counts nothing in the loss.
    """

    per_epoch: float
    rows: Callable[[int], Rows]

    def __call__(self, step: int) -> Rows:
        return self.rows(step)


Sampler = Callable[[np.ndarray, Split, int, int], Order]


def shuffled() -> Sampler:
    """Every epoch a new permutation of all sites; a batch may straddle two epochs.

    Each site comes exactly once in an epoch; epochs count how often it has come before.
    """

    def sampler(sites: np.ndarray, split: Split, batch_size: int, seed: int) -> Order:
        count = len(split.train)

        @functools.lru_cache(maxsize=2)
        def permutation(epoch: int) -> np.ndarray:
            return np.argsort(_bits(f"{seed}:{epoch}:all sites", count), kind="stable")

        def choose(step: int) -> tuple[np.ndarray, np.ndarray]:
            places = np.arange(step * batch_size, (step + 1) * batch_size)
            epochs = places // count
            drawn = [permutation(int(e))[places[epochs == e] % count] for e in np.unique(epochs)]
            return np.concatenate(drawn), epochs

        return _order(split.train, batch_size, choose)

    return sampler


def experiments(count: int = 2, across: bool = False) -> Sampler:
    """Each batch holds equally many sites of `count` experiments, all of one cell type; with
    across=True of any, as if there were one cell type.

    Domain penalties compare experiments within a cell type; count=1 gives the batches of ARM-BN
    (Zhang et al. 2021, arXiv:2007.02931). The rows of one experiment are consecutive.

    An epoch is round(sites / batch_size) steps, at least one. Each cell type gets batches in
    proportion to its sites, to within one per epoch. Within a cell type each experiment gets parts
    of the batches in proportion to its sites, to within one per epoch. An experiment with more than
    1/count of them can have no more than one part of every batch: its sites come less often, the
    others of the cell type more often. Within an experiment the order is one permutation after
    another, whatever the epochs of the sampler: every site has come n times or n + 1 times at any
    moment (n is what `epochs` count), counting the parts drawn.

    Raises:
      ValueError: count below 1, batch_size no multiple of it, or a cell type with fewer training
        experiments.
    """
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"count {count}: expected a whole number of experiments, 1 or more")

    def sampler(sites: np.ndarray, split: Split, batch_size: int, seed: int) -> Order:
        if batch_size % count:
            raise ValueError(
                f"batch_size {batch_size}: expected a multiple of the {count} experiments per batch"
            )
        sites = sites[split.train]
        if across:
            sites["cell_type"] = "all"
        part = batch_size // count
        names, members = _groups(sites["experiment"])
        visits = _experiment_visits(sites, members, batch_size, count, seed)

        @functools.lru_cache(maxsize=2 * len(members))
        def permutation(experiment: int, epoch: int) -> np.ndarray:
            rows = members[experiment]
            bits = _bits(f"{seed}:{epoch}:sites of {names[experiment]}", len(rows))
            return rows[np.argsort(bits, kind="stable")]

        def choose(step: int) -> tuple[np.ndarray, np.ndarray]:
            positions, epochs = [], []
            for experiment, before in visits(step):
                rows = len(members[experiment])
                places = np.arange(before * part, (before + 1) * part)
                for epoch in range(int(places[0]) // rows, int(places[-1]) // rows + 1):
                    here = places[places // rows == epoch] % rows
                    positions.append(permutation(experiment, epoch)[here])
                    epochs.append(np.full(len(here), epoch))
            return np.concatenate(positions), np.concatenate(epochs)

        return _order(split.train, batch_size, choose)

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
            return np.concatenate(chosen).reshape(-1), np.repeat(epochs, 2)

        return _order(split.train, batch_size, choose)

    return sampler


def _order(rows: np.ndarray, batch_size: int, choose: Choose) -> Order:
    """The order of `rows`, of which `choose` gives positions."""

    def batch(step: int) -> Rows:
        position, epoch = choose(step)
        return rows[position], epoch.astype(np.int32), np.ones(len(position), np.bool_)

    return Order(len(rows) / batch_size, batch)


def _experiment_visits(
    sites: np.ndarray, members: list[np.ndarray], batch_size: int, count: int, seed: int
) -> Callable[[int], list[tuple[int, int]]]:
    """Step -> (experiment, how many parts it has had before) of each of the batch's parts."""
    total = max(1, round(len(sites) / batch_size))
    size = np.array([len(rows) for rows in members])
    cell_types, types = _groups(sites["cell_type"][[rows[0] for rows in members]])
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
        steps = _shares(total, type_size, f"{seed}:{epoch}:cell types")
        parts = np.zeros(len(members), np.int64)
        for name, own, own_steps in zip(cell_types, types, steps, strict=True):
            left, rest = count, own
            # Who would have more than one part of every batch has one; the others share the rest.
            while (large := left * size[rest] > size[rest].sum()).any():
                parts[rest[large]] = own_steps
                left, rest = left - large.sum(), rest[~large]
            parts[rest] = _shares(left * own_steps, size[rest], f"{seed}:{epoch}:{name}")
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
            left, bits = parts[own], _bits(f"{seed}:{epoch}:order of {name}", own_steps, len(own))
            for ties in bits:
                # Most parts left first, so that none has more left than there are steps.
                taken = np.lexsort((ties, -left))[:count]
                left[taken] -= 1
                chosen.append(own[taken])
        steps_drawn = np.argsort(_bits(f"{seed}:{epoch}:order of steps", total), kind="stable")
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
        bits = _bits(f"{seed}:{epoch}:pairs", count + len(block_size) + int(pairs.sum()))
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


def _groups(names: np.ndarray) -> tuple[list[str], list[np.ndarray]]:
    """The distinct names, sorted, and where each is."""
    unique, inverse, counts = np.unique(names, return_inverse=True, return_counts=True)
    places = np.argsort(inverse, kind="stable")
    return unique.tolist(), np.split(places, np.cumsum(counts)[:-1])


def _shares(total: int, sizes: np.ndarray, name: str) -> np.ndarray:
    """int64, sums to `total`: total * sizes / sum(sizes), rounded up or down at random.

    In expectation exact: systematic sampling (Madow 1949, Ann. Math. Statist. 20, 333).
    """
    ends = np.cumsum(sizes)
    start = _hash(name) % int(ends[-1])
    return np.diff((total * ends + start) // ends[-1], prepend=0)


def _bits(name: str, *shape: int) -> np.ndarray:
    """Random uint64 of this shape."""
    return np.random.PCG64(_hash(name)).random_raw(shape)


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
