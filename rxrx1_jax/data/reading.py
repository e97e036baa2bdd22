"""The host half of the stream: threads read the planes of the rows that a step asks for.

Threads read and inflate sites and copy each to its place in the batch while it is in the
processor's cache. The batch starts where a CPU device takes it over as it is.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from rxrx1_jax.data.images import Images

ALIGNMENT = 64  # bytes; the CPU backend takes over a NumPy array that starts at a multiple of it

Item = TypeVar("Item")


def planes(
    images: Images, choices: Iterable[tuple[np.ndarray, Item]], threads: int, prefetch: int
) -> Iterator[tuple[np.ndarray, Item]]:
    """The images of each choice's rows, in order; `prefetch` further ones are read meanwhile.

    Args:
      choices: rows of the images, int64 of any shape, -1 for a blank one; and what goes with them.

    Yields:
      uint8 [..., C, H, W], memory of its own that is never written to again; and what goes with it.
    """
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


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Fresh uint8 memory that a CPU device takes over without a copy."""
    size = math.prod(shape)
    memory = np.empty(size + ALIGNMENT - 1, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].reshape(shape)
