"""Many runs by one command: each in a process of its own, resumed or skipped, one or more at once.

A run is `python -m rxrx1_jax.main` with some fields of the config changed. A lock beside each run
keeps two commands that share a directory from running the same one.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from rxrx1_jax import config as config_lib
from rxrx1_jax.data import splits
from rxrx1_jax.data.images import Images
from rxrx1_jax.training import run_dir
from rxrx1_jax.training.fingerprints import describe_data


class Plan(NamedTuple):
    """One run, and what its settings and the data say of it before it is started."""

    path: Path
    overrides: dict[str, Any]  # field of the config -> value
    train_sites: int
    obstacle: str  # why these data allow no such run; empty where they do


class Refused(SystemExit):
    """A run was refused before it began, and has said why (`reason`)."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(status)
        self.reason = reason


class Worker:
    """What runs one child process at a time, and can be stopped from another thread."""

    def __init__(self, cores: frozenset[int] | None = None) -> None:
        self.cores = cores  # that children may use; None: those of this process
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None
        self._stopped = False

    def start(self, command: list[str], **options: Any) -> subprocess.Popen[str]:
        """`subprocess.Popen`, on the worker's cores. Raises KeyboardInterrupt after `stop`."""
        with self._lock:
            if self._stopped:
                raise KeyboardInterrupt
            self._child = subprocess.Popen(command, text=True, errors="replace", **options)
            if self.cores is not None:  # before the child makes threads, which inherit them
                os.sched_setaffinity(self._child.pid, self.cores)
            return self._child

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            if self._child is not None:
                self._child.terminate()


def make_plan(
    config: ConfigDict, dataset: Images, path: Path, overrides: Mapping[str, Any]
) -> Plan:
    """Splits the data for a run, and compares its settings with those at `path` if it exists.

    Raises:
      RunError: the run there has other settings or data.
    """
    settings = config.copy_and_resolve_references()
    config_lib.change(settings, overrides)
    size, obstacle = 0, ""
    try:
        config_lib.check(settings)
        split = splits.configured(dataset.sites, settings.data)
        size, batch = len(split.train), settings.optim.batch_size
        if size < batch:
            obstacle = f"{size} training sites, fewer than optim.batch_size={batch}"
    except (config_lib.ConfigError, splits.SplitError) as error:
        obstacle = str(error)
    if not obstacle and (path / "config.json").exists():
        classes = splits.classes_of(dataset.sites, settings.data.protocol)
        data = describe_data(dataset, split, classes)
        run_dir.check_run(path, settings, data)
    return Plan(path, dict(overrides), size, obstacle)


def workers_on_shares(count: int) -> list[Worker]:
    """`count` workers; several have an equal share of this process's cores each.

    Small networks leave most of a second core idle: one run per core is faster than runs in turn.

    Raises ValueError where there are fewer cores than workers, or the system cannot bind them.
    """
    if count == 1:
        return [Worker()]
    if not hasattr(os, "sched_setaffinity"):
        raise ValueError(f"--workers={count}: this system cannot bind a process to cores; use 1")
    cores = sorted(os.sched_getaffinity(0))
    if count > len(cores):
        raise ValueError(f"--workers={count}: there are {len(cores)} cores; use as many or fewer")
    return [Worker(frozenset(cores[i::count])) for i in range(count)]


def do_all(
    plans: list[Plan],
    done: Callable[[Path], bool],
    work: Callable[[Plan, Worker], str],
    workers: int = 1,
) -> dict[Path, str]:
    """Does `work` for the plans that are neither `done` nor impossible, with the time left.

    Args:
      work: gives the reason why it could not be done, empty if it was.
      workers: how many at once.

    Returns:
      {path: reason} of those that could not be done.

    Whatever `work` raises ends the others, too, and is raised again.
    """
    reasons: dict[Path, str] = {}
    waiting = [plan for plan in plans if not plan.obstacle and not done(plan.path)]
    print(f"{len(waiting)} of {len(plans)} runs to do", flush=True)
    seconds, sites = 0.0, 0  # of the runs that were done here from their first step
    team, left = workers_on_shares(workers), sum(plan.train_sites for plan in waiting)
    queue, busy = list(waiting), dict[Future[str], tuple[Plan, Worker, bool, float]]()
    free = list(team)
    with ThreadPoolExecutor(workers) as pool:
        try:
            while queue or busy:
                while queue and free:
                    plan, worker = queue.pop(0), free.pop()
                    text = f"\nrun {plans.index(plan) + 1} of {len(plans)}: {plan.path}"
                    if sites:
                        rest = left * seconds / sites / workers
                        text += f", about {timedelta(seconds=round(rest))} left"
                    print(text, flush=True)
                    begun = (plan, worker, not plan.path.exists(), time.monotonic())
                    busy[pool.submit(work, plan, worker)] = begun
                for future in wait(busy, return_when=FIRST_COMPLETED).done:
                    plan, worker, fresh, started = busy.pop(future)
                    free.append(worker)
                    left -= plan.train_sites
                    if reason := future.result():
                        reasons[plan.path] = reason
                        print(f"{plan.path}: {reason}", flush=True)
                    elif fresh:
                        seconds += time.monotonic() - started
                        sites += plan.train_sites
        except BaseException:
            for worker in team:
                worker.stop()
            raise
    return reasons


def train_one(
    plan: Plan, arguments: list[str], worker: Worker | None = None, log: Path | None = None
) -> str:
    """Runs or resumes one run; returns why it did not complete, empty if it did.

    Args:
      arguments: of rxrx1_jax.main, before those of the plan.
      log: file for what the run says; None: it says it here.

    Raises Refused if it was refused before it began; it has said why.
    """
    command = ["-m", "rxrx1_jax.main", *arguments, f"--workdir={plan.path}"]
    command += [f"--config.{field}={value}" for field, value in plan.overrides.items()]
    status, last = child(command, plan.path, worker or Worker(), log)
    if status is None:
        return last
    if run_dir.is_complete(plan.path):
        return ""
    if status > 0 and last.startswith("error: ") and not plan.path.exists():
        raise Refused(status, last.removeprefix("error: "))
    return ending(status, last)


def ending(status: int, last: str) -> str:
    """Why a child ended, of its exit status and the last line that it wrote to stderr."""
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    return last.removeprefix("error: ") or f"ended with status {status}"


def child(
    arguments: list[str], path: Path, worker: Worker, log: Path | None = None
) -> tuple[int | None, str]:
    """Runs Python with `arguments` while holding the lock of the run at `path`.

    Returns its exit status and the last line that it wrote to stderr; (None, why) where another
    process holds the lock.
    """
    last = ""
    with contextlib.ExitStack() as stack:
        try:
            lock = stack.enter_context(run_dir.lock(path.with_name(f".{path.name}.lock")))
        except run_dir.Locked:
            return None, "another process is at it"
        # Line by line, so that the child's two streams and this process's lines stay in order.
        with open(log or os.devnull, "a", buffering=1, errors="replace") as file:
            # The child inherits the lock, and so keeps it should this process be killed alone.
            with worker.start(
                [sys.executable, *arguments], stderr=subprocess.PIPE, pass_fds=[lock],
                stdout=file if log else None,
                env=os.environ | {"JAX_NUM_PROCESSES": "1"},  # in a cluster, too, a run by itself
            ) as process:  # fmt: skip
                assert process.stderr is not None
                try:
                    for line in process.stderr:
                        (file if log else sys.stderr).write(line)
                        last = line.strip() or last
                except BaseException:
                    process.terminate()
                    process.communicate()
                    raise
    return process.returncode, last
