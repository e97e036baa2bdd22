"""What samplers are made of: the batches of a training by their step, and draws from hashes.

Draws come from hashes and from the integers of `np.random.PCG64`, which NumPy promises to keep.
NumPy does not promise that for `np.random.Generator`.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rxrx1_jax.data.splits import Split, rank

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


def in_turn(
    rows: np.ndarray, name: Callable[[int], str]
) -> Callable[[int, int], tuple[np.ndarray, np.ndarray]]:
    """(start, stop) -> the rows at these places of one permutation after another, and their epochs.

    name: of a permutation, by its epoch; it alone decides what is drawn.
    """

    @functools.lru_cache(maxsize=2)
    def permutation(epoch: int) -> np.ndarray:
        return rows[np.argsort(random_bits(name(epoch), len(rows)), kind="stable")]

    def drawn(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        places = np.arange(start, stop)
        epochs = places // len(rows)
        parts = [permutation(int(e))[places[epochs == e] % len(rows)] for e in np.unique(epochs)]
        return np.concatenate(parts), epochs

    return drawn


def groups(names: np.ndarray) -> tuple[list[str], list[np.ndarray]]:
    """The distinct names, sorted, and where each is."""
    unique, inverse, counts = np.unique(names, return_inverse=True, return_counts=True)
    places = np.argsort(inverse, kind="stable")
    return unique.tolist(), np.split(places, np.cumsum(counts)[:-1])


def shares(total: int, sizes: np.ndarray, name: str) -> np.ndarray:
    """int64, sums to `total`: total * sizes / sum(sizes), rounded up or down at random.

    In expectation exact: systematic sampling (Madow 1949, Ann. Math. Statist. 20, 333).
    """
    ends = np.cumsum(sizes)
    start = rank(name) % int(ends[-1])
    return np.diff((total * ends + start) // ends[-1], prepend=0)


def random_bits(name: str, *shape: int) -> np.ndarray:
    """Random uint64 of this shape."""
    return np.random.PCG64(rank(name)).random_raw(shape)
