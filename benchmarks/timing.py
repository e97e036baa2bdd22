"""Interleaved comparisons: CPU time and wall time of several ways to do the same work.

A shared machine changes speed from minute to minute, so a figure means something only beside the
others of the same run. Every round runs every task once, in alternating order; a task's ratio is
the median over the rounds of (baseline's time / its time) within a round. Above 1 is faster.

    tasks = {"ours": read_all, "theirs": remote(make_theirs, folder)}
    print(markdown(compare(tasks, items=192, baseline="theirs"), unit="site"))
"""

import atexit
import importlib.metadata
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import NamedTuple

import psutil

Task = Callable[[], object]


class Timing(NamedTuple):
    """Of one task. CPU is user and system time of the process and all below it."""

    name: str
    cpu_ms: float  # milliseconds an item, median over the rounds
    wall_ms: float
    cpu_ratio: float  # baseline / this, median over the rounds
    cpu_spread: tuple[float, float]  # least and largest of these ratios
    wall_ratio: float


def compare(
    tasks: Mapping[str, Task], items: int, baseline: str, rounds: int = 5, warm_up: bool = True
) -> list[Timing]:
    """Times the tasks, which handle `items` items a call, in the order of `tasks`.

    With warm_up each task runs once unmeasured. Raises KeyError for a baseline not among the tasks.
    """
    cpu: dict[str, list[float]] = {name: [] for name in tasks}
    wall: dict[str, list[float]] = {name: [] for name in tasks}
    reference = cpu[baseline], wall[baseline]
    for number in range(-1 if warm_up else 0, rounds):
        names = list(tasks) if number % 2 else list(reversed(tasks))
        for name in names:
            before, started = cpu_seconds(), time.perf_counter()
            tasks[name]()
            took = cpu_seconds() - before, time.perf_counter() - started
            if number >= 0:
                cpu[name].append(1000 * took[0] / items)
                wall[name].append(1000 * took[1] / items)
    results = []
    for name in tasks:
        ratios = [
            # A task shorter than the clock of CPU time (10 ms on Linux) has no ratio.
            [b / mine if mine else float("nan") for b, mine in zip(base, own, strict=True)]
            for base, own in zip(reference, (cpu[name], wall[name]), strict=True)
        ]
        medians = (statistics.median(values) for values in (cpu[name], wall[name], ratios[0]))
        spread = min(ratios[0]), max(ratios[0])
        results.append(Timing(name, *medians, spread, statistics.median(ratios[1])))
    return results


def cpu_seconds() -> float:
    """User and system time of this process, its finished children and its living descendants."""
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


def command(arguments: Sequence[str]) -> Task:
    """The task of running a command to its end; its output is dropped, a failure is raised."""
    return lambda: subprocess.run(arguments, check=True, capture_output=True)


def markdown(timings: Sequence[Timing], unit: str, heading: str = "") -> str:
    """The results as a Markdown table."""
    lines = [
        f"| {heading} | CPU ms/{unit} | wall ms/{unit} | CPU, times faster | wall, times faster |",
        "|---|---|---|---|---|",
    ]
    for t in timings:
        low, high = t.cpu_spread
        lines.append(
            f"| {t.name} | {t.cpu_ms:.2f} | {t.wall_ms:.2f} | {t.cpu_ratio:.3g} ({low:.3g} to"
            f" {high:.3g}) | {t.wall_ratio:.3g} |"
        )
    return "\n".join(lines)


def describe(packages: Sequence[str], **settings: object) -> str:
    """What a table was measured with: machine, versions and settings, one line each."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    said = ", ".join(f"{name} {value}" for name, value in settings.items())
    load = os.getloadavg()[0]
    return (
        f"Machine: {cpus} cores, {platform.machine()}, {sys.platform}, load {load:.1f} at the start"
        f"\nVersions: Python {platform.python_version()}, {versions}\nSettings: {said}\n"
    )
