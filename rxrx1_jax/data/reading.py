"""The host half of the stream: what each step takes, and threads that read its planes.

Threads read and inflate sites and copy each to its place in the batch while it is in the
processor's cache. The batch starts where a CPU device takes it over as it is.
"""

import math
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rxrx1_jax.data.images import Images
from rxrx1_jax.data.orders import Order

ALIGNMENT = 64  # bytes; the CPU backend takes over a NumPy array that starts at a multiple of it

Item = TypeVar("Item")


@dataclass(frozen=True)
class Host:
    """How this process reads, and where its arrays go.

    threads: 0: as many as this process has cores.
    mesh: of all devices, the rows of a batch lie along its first axis; None: the default device.
    number, count: of this host, and how many there are; None: of the JAX processes.
    """

    threads: int = 0
    prefetch: int = 4  # draws
    mesh: Mesh | None = None
    number: int | None = None
    count: int | None = None

    def place(self) -> tuple[int, int]:
        number = jax.process_index() if self.number is None else self.number
        count = jax.process_count() if self.count is None else self.count
        if not 0 <= number < count:
            raise ValueError(f"host {number} of {count}: expected 0 to {count - 1}")
        return number, count

    @property
    def replicated(self) -> NamedSharding | None:
        return None if self.mesh is None else NamedSharding(self.mesh, PartitionSpec())

    def put(self, tree: Any, by_row: bool = False) -> Any:
        """The arrays on the devices: axis 1 over all of them, or a copy on each."""
        place = self.replicated
        if self.mesh is not None and by_row:
            place = NamedSharding(self.mesh, PartitionSpec(None, *self.mesh.axis_names))
        if jax.process_count() == 1:
            return jax.device_put(tree, place)
        return jax.tree.map(partial(jax.make_array_from_process_local_data, place), tree)


def one_pass(rows: np.ndarray, batch_size: int, host: Host) -> tuple[Order, int]:
    """Each of `rows` once, in order, padded at the end; and the number of steps.

    Every host has as many rows as any other, but for one.
    """
    _, hosts = host.place()
    if batch_size < 1 or batch_size % hosts:
        raise ValueError(f"batch_size {batch_size}: expected a positive multiple of {hosts} hosts")
    steps = -(-len(rows) // batch_size)
    padded = np.full(steps * batch_size, -1, np.int64)
    padded[: len(rows)] = rows

    def batch(step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        row = padded[step * batch_size :][:batch_size]
        row = row.reshape(-1, hosts).T.reshape(-1)  # so that the padding is shared
        return row, np.zeros(batch_size, np.int32), row >= 0

    return Order(steps, batch), steps


def calls(start: int, stop: int, k: int, cuts: Iterable[int]) -> Iterator[range]:
    """The steps in turn, up to k together; none runs past a cut."""
    ends = sorted({stop, *(cut for cut in cuts if start < cut < stop)})
    for end in ends:
        yield from (range(at, min(at + k, end)) for at in range(start, end, k))
        start = end


def choices(
    order: Order, rows: np.ndarray, calls: Iterable[range], size: tuple[int, int, int]
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """What each call takes: rows of the images [k, n], blank (-1) beyond its last step; what a
    `stream.Draw` says of them, int32 [k, n, 3]; and how many steps it has.

    Args:
      rows: those of the store, ascending.
      size: k; n, rows of a batch that this host reads; and the number of this host.
    """
    k, n, number = size
    for steps in calls:
        images = np.full((k, n), -1, np.int64)
        chosen = np.zeros((k, n, 3), np.int32)
        chosen[:, :, 0] = len(rows)
        for i, step in enumerate(steps):
            # In a row, as those of the global batch are: pairs of rows stay together.
            own = slice(number * n, (number + 1) * n)
            row, chosen[i, :, 1], chosen[i, :, 2] = (part[own] for part in order(step))
            place = np.searchsorted(rows, row)
            wrong = (row >= 0) & (rows[np.minimum(place, len(rows) - 1)] != row)
            if wrong.any():
                raise ValueError(f"step {step} draws row {row[wrong][0]}, not in the store")
            images[i], chosen[i, :, 0] = row, np.where(row < 0, len(rows), place)
        yield images, chosen, len(steps)


def planes(
    images: Images, choices: Iterable[tuple[np.ndarray, Item]], threads: int, prefetch: int
) -> Iterator[tuple[np.ndarray, Item]]:
    """The images of each choice's rows, in order; `prefetch` further ones are read meanwhile.

    Args:
      choices: rows of the images, int64 of any shape, -1 for a blank one; and what goes with them.

    Yields:
      uint8 [..., C, H, W], memory of its own that is never written to again; and what goes with it.
    """
    threads = threads or cores()
    pool = ThreadPoolExecutor(threads, "read")
    waiting: deque[tuple[np.ndarray, Item, list[Future]]] = deque()

    def start(rows: np.ndarray, item: Item) -> tuple[np.ndarray, Item, list[Future]]:
        flat = rows.reshape(-1)
        memory = _aligned((len(flat), *images.image_shape))

        def fill(part: range) -> None:
            for k in part:
                memory[k] = images[int(flat[k])] if flat[k] >= 0 else 0

        # A task for each thread, not for each site: at 64 px those took a seventh of this half.
        done = [pool.submit(fill, range(k, len(flat), threads)) for k in range(threads)]
        return memory.reshape(*rows.shape, *images.image_shape), item, done

    def finish() -> tuple[np.ndarray, Item]:
        memory, item, done = waiting.popleft()
        for future in done:
            future.result()  # raises what the reading raised
        return memory, item

    try:
        for rows, item in choices:
            waiting.append(start(rows, item))
            if len(waiting) > prefetch:
                yield finish()
        while waiting:
            yield finish()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Fresh uint8 memory that a CPU device takes over without a copy."""
    size = math.prod(shape)
    memory = np.empty(size + ALIGNMENT - 1, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].reshape(shape)
