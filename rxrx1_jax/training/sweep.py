"""Many runs by one command: in child processes, resumed or skipped, one or more at once.

A run is `python -m rxrx1_jax.main` with some fields of the config changed. A child does run after
run, until one fails. A lock beside each run keeps two commands that share a directory from running
the same one. They share the list of runs: each takes the next one that is neither done nor held,
and none ends before every run is done or has failed.
"""

import contextlib
import functools
import time
from collections import deque
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
from rxrx1_jax.training.locks import Locked, lock
from rxrx1_jax.training.workers import DONE, FAILED, KILLED, REFUSED, Ending, Worker, ending

PAUSE = 5.0  # seconds until a run that another process holds is looked at again
FAILURES = 3  # of runs begun here, one after the other, after which no more are begun


class Plan(NamedTuple):
    """One run, and what its settings and the data say of it before it is started."""

    path: Path
    overrides: dict[str, Any]  # field of the config -> value
    train_sites: int
    obstacle: str  # why these data allow no such run; empty where they do


class Planner:
    """Makes the plans of runs that change one config, on the same images; draws each split once."""

    def __init__(self, config: ConfigDict, images: Images) -> None:
        self._config, self._images = config, images
        self._split = functools.cache(self._draw)
        self._data = functools.cache(self._describe)

    def __call__(self, path: Path, overrides: Mapping[str, Any]) -> Plan:
        """The plan of a run; its settings are compared with those at `path` if it exists.

        Raises RunError: the run there has other settings or data.
        """
        from rxrx1_jax.training import initial  # here: --help needs no JAX

        settings = self._config.copy_and_resolve_references()
        config_lib.change(settings, overrides)
        asked = tuple(settings.data[name] for name in splits.SETTINGS)
        try:
            config_lib.check(settings)
            size, batch = len(self._split(*asked).train), settings.optim.batch_size
        except (config_lib.ConfigError, splits.SplitError) as error:
            return Plan(path, dict(overrides), 0, str(error))
        if size < batch:
            few = f"{size} training sites, fewer than optim.batch_size={batch}"
            return Plan(path, dict(overrides), size, few)
        if (path / "config.json").exists():
            found = self._data(*asked) | initial.fingerprint(settings.model.init)
            run_dir.check_run(path, settings, found)
        return Plan(path, dict(overrides), size, "")

    def _draw(self, *asked: Any) -> splits.Split:
        return splits.configured(self._images.sites, dict(zip(splits.SETTINGS, asked, strict=True)))

    def _describe(self, *asked: Any) -> dict[str, Any]:
        protocol = asked[splits.SETTINGS.index("protocol")]
        classes = splits.classes_of(self._images.sites, protocol)
        return describe_data(self._images, self._split(*asked), classes)


def do_all(
    plans: list[Plan],
    done: Callable[[Path], bool],
    work: Callable[[Plan, Worker], Ending],
    team: list[Worker],
) -> dict[Path, str]:
    """Does `work` for the plans that are neither `done` nor impossible, with the time left.

    A run is looked at under its lock, when its turn comes: other commands may work at the same
    list. What one of them holds goes to the end of the queue until it is done or free. A run that a
    signal ended gets a second try. A machine on which nothing works stops after FAILURES.

    Args:
      team: who works, each at one run at a time.

    Returns:
      {path: reason} of those that could not be done.

    Whatever `work` raises ends the others, too, and is raised again.
    """
    todo = Queue([plan for plan in plans if not plan.obstacle and not done(plan.path)], done)
    at_once = f", {len(team)} at once" * (len(team) > 1)
    print(f"{len(todo.waiting)} of {len(plans)} runs to do{at_once}", flush=True)
    reasons, failures = dict[Path, str](), 0
    free, busy = list(team), dict[Future[Ending], tuple[Turn, Worker]]()
    with contextlib.ExitStack() as locks, ThreadPoolExecutor(len(team)) as pool:
        for worker in team:
            locks.callback(worker.end)
        try:
            while todo.waiting or busy:
                while free and (turn := todo.take(locks)):
                    plan, worker = turn.plan, free.pop()
                    left = todo.left([plan, *(turn.plan for turn, _ in busy.values())])
                    about = f", about {timedelta(seconds=round(left / len(team)))} left"
                    place = f"run {plans.index(plan) + 1} of {len(plans)}: {plan.path}"
                    print(f"\n{place}{about if left else ''}", flush=True)
                    worker.lock = turn.lock
                    busy[pool.submit(work, plan, worker)] = turn, worker
                if todo.waiting and not busy:
                    time.sleep(PAUSE)
                asked = PAUSE if free and todo.waiting else None
                for future in wait(busy, asked, FIRST_COMPLETED).done:
                    (turn, worker), end = busy.pop(future), future.result()
                    turn.release.close()
                    free.append(worker)
                    path = turn.plan.path
                    if end.how == DONE:
                        failures = 0
                        reasons.pop(path, None)
                        todo.timed(turn)
                        continue
                    again = end.how == KILLED and path not in reasons
                    reason = end.reason.removeprefix(f"{path}: ")
                    print(f"{path}: {reason}{'; once more later' * again}", flush=True)
                    if again:
                        todo.waiting.append(turn.plan)
                    reasons[path] = reason
                    failures += turn.fresh and end.how in (FAILED, KILLED)
                    if failures >= FAILURES and todo.waiting:
                        why = f"not started: {failures} runs in a row failed before it"
                        print(why, flush=True)
                        reasons = {plan.path: why for plan in todo.waiting} | reasons
                        todo.waiting.clear()
        except BaseException:
            for worker in team:
                worker.stop()
            raise
    return reasons


def tell(plan: Plan, reasons: Mapping[Path, str]) -> int:
    """Says what became of the one run of a task. Returns its status: 0 if it is done, or cannot
    be."""
    print(f"{plan.path}: {plan.obstacle or reasons.get(plan.path, 'complete')}")
    return int(plan.path in reasons)


class Turn(NamedTuple):
    """A run that is worked at."""

    plan: Plan
    lock: int  # its descriptor
    release: contextlib.ExitStack
    fresh: bool  # nothing of it was there
    begun: float


class Queue:
    """The runs that are left to do, those that others hold last; and how long they take."""

    def __init__(self, plans: list[Plan], done: Callable[[Path], bool]) -> None:
        self.waiting, self._done = deque(plans), done
        self._look = dict[Path, float]()  # when a run that was held is looked at again
        self._theirs, self._ours = dict[Path, int](), dict[Path, int]()  # training sites
        self._seconds, self._sites = 0.0, 0  # of runs that were done here from their first step
        self._told = False

    def take(self, locks: contextlib.ExitStack) -> Turn | None:
        """The next run that is free, locked until `locks` or its `release` is closed."""
        for _ in range(len(self.waiting)):
            plan = self.waiting.popleft()
            if self._look.get(plan.path, 0) > time.monotonic():
                self.waiting.append(plan)
                continue
            release = locks.enter_context(contextlib.ExitStack())
            try:
                number = release.enter_context(lock(lock_of(plan.path)))
            except Locked:
                self._look[plan.path] = time.monotonic() + PAUSE
                self._theirs[plan.path] = plan.train_sites
                self.waiting.append(plan)
                continue
            if self._done(plan.path):
                release.close()
                self._theirs[plan.path] = plan.train_sites
                continue
            self._theirs.pop(plan.path, None)
            self._ours[plan.path] = plan.train_sites
            return Turn(plan, number, release, not plan.path.exists(), time.monotonic())
        if self.waiting and not self._told:
            self._told = True
            paths = ", ".join(str(plan.path) for plan in self.waiting)
            print(f"waiting for other processes, which are at {paths}", flush=True)
        return None

    def timed(self, turn: Turn) -> None:
        if turn.fresh:
            self._seconds += time.monotonic() - turn.begun
            self._sites += turn.plan.train_sites

    def left(self, begun: list[Plan]) -> float:
        """Seconds of one worker for what is left to this process; 0: not known.

        Other processes take as large a part of the rest as of what was begun so far.
        """
        if not self._sites:
            return 0.0
        ours, theirs = sum(self._ours.values()), sum(self._theirs.values())
        free = sum(plan.train_sites for plan in self.waiting if plan.path not in self._theirs)
        own = free * ours / (ours + theirs) + sum(plan.train_sites for plan in begun)
        return own * self._seconds / self._sites


def lock_of(path: Path) -> Path:
    """The file that is locked by who works at the run at `path`."""
    return path.with_name(f".{path.name}.lock")


def log_of(path: Path) -> Path:
    """The file for what children say of the run at `path`."""
    return path.with_name(f"{path.name}.log")


def train_one(plan: Plan, arguments: list[str], worker: Worker, log: Path | None = None) -> Ending:
    """Trains or resumes one run.

    Args:
      arguments: of rxrx1_jax.main, before those of the plan.
      log: file for what the run says; None: it says it here.
    """
    command = ["-m", "rxrx1_jax.main", *arguments, f"--workdir={plan.path}"]
    command += [f"--config.{field}={value}" for field, value in plan.overrides.items()]
    # The flags of a backend are of a whole process.
    status, heard = worker.run(command, log, alone="train.deterministic" in plan.overrides)
    if run_dir.is_complete(plan.path):
        return Ending(DONE)
    if heard.error and not plan.path.exists():
        return Ending(REFUSED, heard.error)
    return ending(status, heard)
