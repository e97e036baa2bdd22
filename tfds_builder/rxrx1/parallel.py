"""Threads that work on a stream of items in order, in bounded memory."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def usable_cpus() -> int:
    """CPUs this process may use: the number of threads of every pool of the builder."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_order(
    function: Callable[[T], R], items: Iterable[T], threads: int | None = None
) -> Generator[R, None, None]:
    """`map` over a pool of threads, in order, with a bounded look-ahead.

    Unlike `Executor.map` it holds few results at a time, whatever the number of items. An
    exception, or a consumer that stops early, cancels what has not begun.

    threads: one a CPU (None) for what computes; more for what waits for the disk.
    """
    threads = threads or usable_cpus()
    executor = ThreadPoolExecutor(threads)
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            pending.append(executor.submit(function, item))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
