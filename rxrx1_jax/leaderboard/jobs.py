"""The runs that a leaderboard asks for, and what becomes of each."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rxrx1_jax.data import records
from rxrx1_jax.leaderboard import assess
from rxrx1_jax.leaderboard.methods import Methods
from rxrx1_jax.leaderboard.scores import Job, Outcome
from rxrx1_jax.methods.statistics import Unit
from rxrx1_jax.report.runs import load_run
from rxrx1_jax.training import run_dir, sweep
from rxrx1_jax.training.sweep import Plan
from rxrx1_jax.training.workers import DONE, REFUSED, Ending, Worker, ending

CONTROL_PROTOCOLS = ("batch", "random_site")


def make_jobs(
    methods: Methods, worlds: Sequence[str], folds: list[int], seeds: list[int], own: str = ""
) -> list[Job]:
    """All runs. Seed by seed, fold by fold and world by world, so that early tables have every
    method.

    The random splits, the controls and the diagnosis are made with the first seed alone.

    Args:
      worlds: names of datasets, where neither a method nor a control sets another.
      own: the one whose runs have no folder for their world; the first unless given.
    """
    own = own or worlds[0]

    def job(name: str, protocol: str, unit: Unit, control: str = "") -> Job:
        chosen = overrides_of(methods, name, control).get("data.name")
        folder = "" if chosen or unit.world == own else unit.world
        return Job(control, name, protocol, unit._replace(world=chosen or unit.world), (), folder)

    jobs = []
    for seed in seeds:
        for unit in (Unit(world, fold, seed) for fold in folds for world in worlds):
            for name in methods.trained:
                diagnosis = (assess.DIAGNOSIS,) if seed == seeds[0] else ()
                asked = (*diagnosis, *methods.corrections[name])
                jobs.append(job(name, "batch", unit)._replace(assessed=asked))
            if seed != seeds[0]:
                continue
            jobs += [job(name, p, unit) for name in methods.gap for p in methods.protocols]
            jobs += [
                job(name, protocol, unit, control)
                for control, (_, expected) in methods.controls.items()
                for name in expected
                for protocol in CONTROL_PROTOCOLS
            ]
    return list(dict.fromkeys(jobs))  # one that sets its dataset is the same in every world


def overrides_of(methods: Methods, trained: str, control: str) -> dict[str, Any]:
    """{field of the config: value} of a method, under a control if there is one."""
    return methods.trained[trained] | (methods.controls[control].overrides if control else {})


def make_plans(
    config: ConfigDict, methods: Methods, jobs: list[Job], workdir: Path
) -> dict[Job, Plan]:
    """The plan of each job; one whose dataset is missing has that for an obstacle.

    Raises RunError where a run has other settings or data than today's.
    """

    @functools.cache
    def planner(name: str) -> sweep.Planner:
        return sweep.Planner(config, records.open_images(config.data.dir, name))

    plans = {}
    for job in jobs:
        overrides = overrides_of(methods, job.trained, job.control) | {
            "data.name": job.unit.world,
            "data.protocol": job.protocol, "data.fold": job.unit.fold, "train.seed": job.unit.seed,
        }  # fmt: skip
        path = job.path(workdir)
        try:
            plans[job] = planner(job.unit.world)(path, overrides)
        except records.DatasetError as error:
            plans[job] = Plan(path, overrides, 0, str(error))
    return plans


def do_all(
    plans: dict[Job, Plan], arguments: list[str], team: list[Worker], data_dir: str
) -> dict[Path, str]:
    """Trains and assesses what is not done yet. Returns {path: reason} of what could not be.

    arguments: of rxrx1_jax.main, before those of the plans.
    """
    refused, job_at = dict[Any, str](), {plan.path: job for job, plan in plans.items()}
    return sweep.do_all(
        list(plans.values()),
        lambda path: is_done(job_at[path], path),
        lambda plan, worker: do(job_at[plan.path], plan, arguments, worker, refused, data_dir),
        team[: len(plans)],
    )


def is_done(job: Job, path: Path) -> bool:
    return run_dir.is_complete(path) and assess.is_assessed(path, job.assessed)


def do(
    job: Job, plan: Plan, arguments: list[str], worker: Worker, refused: dict[Any, str],
    data_dir: str,
) -> Ending:  # fmt: skip
    """Trains and assesses one run.

    refused: {(control, trained, world): why} of methods whose settings were; added to. Their other
    runs are not started.
    """
    method = (job.control, job.trained, job.unit.world)
    log = sweep.log_of(plan.path)
    if not run_dir.is_complete(plan.path):
        if method in refused:
            return Ending(REFUSED, refused[method])
        trained = sweep.train_one(plan, arguments, worker, log)
        if trained.how == REFUSED:
            refused[method] = trained.reason
        if trained.how != DONE:
            return trained
    if assess.is_assessed(plan.path, job.assessed):
        return Ending(DONE)
    command = ["-m", "rxrx1_jax.leaderboard.assess", str(plan.path), f"--data_dir={data_dir}"]
    status, heard = worker.run([*command, "--methods", *job.assessed], log)
    return ending(status, heard) if status else Ending(DONE)


def outcomes(plans: dict[Job, Plan], reasons: dict[Path, str]) -> list[Outcome]:
    """What became of each job, for the page."""
    found = []
    for job, plan in plans.items():
        complete = not plan.obstacle and run_dir.is_complete(plan.path)
        why = plan.obstacle
        if not why and not is_done(job, plan.path):
            state = "not finished" if (plan.path / "config.json").exists() else "not started"
            why = reasons.get(plan.path, "" if complete else _last_error(plan) or state)
        found.append(Outcome(job, load_run(plan.path) if complete else None, why))
    return found


def _last_error(plan: Plan) -> str:
    """What the last attempt at a run ended with, if that was an error that it named."""
    log = sweep.log_of(plan.path)
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    if not lines or not lines[-1].startswith("error: "):
        return ""
    return f"at its last start: {lines[-1].removeprefix('error: ')}"
