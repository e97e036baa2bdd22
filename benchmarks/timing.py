"""Interleaved comparisons: CPU time of several ways to do the same work.

A shared machine changes speed from minute to minute, so a figure means something only beside the
others of the same run. Every round runs every task once, in alternating order; a task's ratio is
the median over the rounds of (baseline's time / its time) within a round. Above 1 is faster.

    tasks = {"ours": read_all, "theirs": remote(make_theirs, folder)}
    timings = compare(tasks, items=192, baseline="theirs")
"""

import atexit
import importlib.metadata
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import NamedTuple

Task = Callable[[], object]


class Timing(NamedTuple):
    """Of one task. CPU is user and system time of the process and all below it."""

    name: str
    cpu_ms: float  # milliseconds per item, median over the rounds
    ratio: float  # baseline / this, median over the rounds
    spread: tuple[float, float]  # least and largest of these ratios


def compare(
    tasks: Mapping[str, Task], items: int, baseline: str, rounds: int = 5, warm_up: bool = True
) -> list[Timing]:
    """Times the tasks, which handle `items` items per call, in the order of `tasks`.

    With warm_up each task runs once unmeasured. Raises KeyError for a baseline not among the tasks.
    """
    spent: dict[str, list[float]] = {name: [] for name in tasks}
    reference = spent[baseline]
    for number in range(-1 if warm_up else 0, rounds):
        for name in list(tasks) if number % 2 else list(reversed(tasks)):
            before = cpu_seconds()
            tasks[name]()
            if number >= 0:
                spent[name].append(1000 * (cpu_seconds() - before) / items)
    results = []
    for name, own in spent.items():
        # A task shorter than the clock of CPU time (10 ms on Linux) has no ratio.
        pairs = zip(reference, own, strict=True)
        ratios = [base / mine if mine else float("nan") for base, mine in pairs]
        medians = statistics.median(own), statistics.median(ratios)
        results.append(Timing(name, *medians, (min(ratios), max(ratios))))
    return results


def cpu_seconds() -> float:
    """User and system time of this process, its finished children and its living descendants."""
    import psutil

    process = psutil.Process()
    own = time.process_time() + sum(process.cpu_times()[2:4])
    for child in process.children(recursive=True):
        try:
            own += sum(child.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue  # ended since; its parent has its time by now or never will
    return own


def remote(make: Callable[..., Task], *arguments: object) -> Task:
    """The task `make(*arguments)`, made and run in an interpreter of its own.

    It imports what it needs there, once, and its thread pools stand still between its turns.
    `make` and the arguments must be picklable. An error there is raised here, as RuntimeError.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, make, arguments))
    process.start()
    there.close()

    def run() -> None:
        here.send("run")
        error = here.recv()
        if error:
            raise RuntimeError(error)

    def stop() -> None:
        here.close()  # the server's next recv ends it
        process.join()

    atexit.register(stop)
    return run


def _serve(connection: Connection, make: Callable[..., Task], arguments: Sequence[object]) -> None:
    task: Task | None = None
    while True:
        try:
            connection.recv()
        except EOFError:
            return
        try:
            task = task or make(*arguments)
            task()
        except Exception as error:
            connection.send(f"{make.__name__}: {error!r}")
        else:
            connection.send("")


def describe(packages: Sequence[str], **settings: object) -> str:
    """What a table was measured with: machine, versions and settings, one line each."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = ", ".join(f"{name} {_version(name)}" for name in packages)
    said = ", ".join(f"{name} {value}" for name, value in settings.items())
    load = os.getloadavg()[0]
    return (
        f"Machine: {cpus} cores, {platform.machine()}, {sys.platform}, load {load:.1f} at the start"
        f"\nVersions: Python {platform.python_version()}, {versions}\nSettings: {said}\n"
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
