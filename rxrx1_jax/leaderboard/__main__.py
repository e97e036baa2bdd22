"""Do methods help, and by how much: methods x folds x seeds by one command, to one page.

    python -m rxrx1_jax.leaderboard --config=demo --methods=leaderboard \\
        --workdir=runs/leaderboard --workers=2

runs or resumes every run, tries the corrections on them, and writes the table (leaderboard.md) and
the page (index.html) to WORKDIR/report. --collect does only the latter, with what is there. The
same command goes on after a kill; what is complete is not run again. Any field of the config can be
changed, as for rxrx1_jax.main.

A run is `python -m rxrx1_jax.main` in WORKDIR/METHOD/PROTOCOL-FOLD-SEED (of a control:
WORKDIR/controls/CONTROL/METHOD/...), followed by `python -m rxrx1_jax.leaderboard.assess`; what
both say is in PROTOCOL-FOLD-SEED.log beside it. A run that fails leaves the others alone and is
listed with its reason. --workers=N runs N at once on an equal share of the cores each (small
networks on a CPU; on an accelerator leave it at 1).
"""

import functools
import signal
import sys
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rxrx1_jax import main as main_lib  # its --config and --workdir mean the same here
from rxrx1_jax.data import records, splits
from rxrx1_jax.leaderboard import assess, page
from rxrx1_jax.leaderboard.methods import Methods, load
from rxrx1_jax.leaderboard.scores import Job, Outcome
from rxrx1_jax.methods.statistics import Unit
from rxrx1_jax.report.runs import load_run
from rxrx1_jax.training import processes, run_dir, sweep
from rxrx1_jax.training.sweep import Plan, Worker

GAP_PROTOCOLS = ("random_site", "random_well")
CONTROL_PROTOCOLS = ("batch", "random_site")


def make_jobs(methods: Methods, world: str, folds: list[int], seeds: list[int]) -> list[Job]:
    """All runs. Fold by fold and seed by seed, so that early tables have every method.

    The random splits, the controls and the diagnosis are made with the first seed alone.

    Args:
      world: name of the dataset, where neither a method nor a control sets another.
    """

    def job(name: str, protocol: str, fold: int, seed: int, control: str = "") -> Job:
        chosen = overrides_of(methods, name, control).get("data.name", world)
        return Job(control, name, protocol, Unit(chosen, fold, seed))

    jobs = []
    for seed in seeds:
        for fold in folds:
            for name in methods.trained:
                diagnosis = (assess.DIAGNOSIS,) if seed == seeds[0] else ()
                asked = (*diagnosis, *methods.corrections[name])
                jobs.append(job(name, "batch", fold, seed)._replace(assessed=asked))
            if seed != seeds[0]:
                continue
            jobs += [job(name, p, fold, seed) for name in methods.gap for p in GAP_PROTOCOLS]
            jobs += [
                job(name, protocol, fold, seed, control)
                for control, (_, expected) in methods.controls.items()
                for name in expected
                for protocol in CONTROL_PROTOCOLS
            ]
    return jobs


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
    def dataset(name: str) -> records.Records:
        return records.Records(records.find_dataset(config.data.dir, name))

    plans = {}
    for job in jobs:
        overrides = overrides_of(methods, job.trained, job.control) | {
            "data.protocol": job.protocol, "data.fold": job.unit.fold, "train.seed": job.unit.seed,
        }  # fmt: skip
        path = job.path(workdir)
        try:
            plans[job] = sweep.make_plan(config, dataset(job.unit.world), path, overrides)
        except records.DatasetError as error:
            plans[job] = Plan(path, overrides, 0, str(error))
    return plans


def is_done(job: Job, path: Path) -> bool:
    return run_dir.is_complete(path) and assess.is_assessed(path, job.assessed)


def do(job: Job, plan: Plan, arguments: list[str], worker: Worker, refused: dict[Any, str]) -> str:
    """Trains and assesses one run; returns why it could not, empty if it could.

    refused: {(control, trained): why} of methods whose settings were; added to. Their other runs
    are not started.
    """
    method = (job.control, job.trained)
    log = plan.path.with_name(f"{plan.path.name}.log")
    plan.path.parent.mkdir(parents=True, exist_ok=True)
    if not run_dir.is_complete(plan.path):
        if method in refused:
            return refused[method]
        try:
            reason = sweep.train_one(plan, arguments, worker, log)
        except sweep.Refused as error:
            refused[method] = reason = error.reason
        if reason:
            return reason
    if assess.is_assessed(plan.path, job.assessed):
        return ""
    command = ["-m", "rxrx1_jax.leaderboard.assess", str(plan.path), "--methods", *job.assessed]
    status, last = sweep.child(command, plan.path, worker, log)
    return last if status is None else sweep.ending(status, last) if status else ""


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
    log = plan.path.with_name(f"{plan.path.name}.log")
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    if not lines or not lines[-1].startswith("error: "):
        return ""
    return f"at its last start: {lines[-1].removeprefix('error: ')}"


def main(argv: list[str]) -> int:
    parser = main_lib.Parser("rxrx1_jax.leaderboard", __doc__ or "")
    parser.add_argument("--methods", required=True,
                        help="the methods file: `leaderboard`, which is ours, or a path")
    parser.add_argument("--folds", default="0,1,2", help="folds; 0,1,2 unless given")
    parser.add_argument("--seeds", default="0,1", help="values of train.seed; 0,1 unless given")
    parser.add_argument("--workers", type=int, default=1, help="runs at once, on a share of cores")
    parser.add_argument("--collect", action="store_true", help="only make table and page")
    options = parser.parse(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # else children would go on alone
    workdir: Path = options.workdir
    try:
        config = main_lib.read_config(options)
        folds, seeds = _numbers("folds", options.folds), _numbers("seeds", options.seeds)
        methods = load(options.methods, config)
        wrong = [fold for fold in folds if fold >= splits.FOLDS]
        if wrong:
            raise ValueError(f"--folds has {wrong[0]}: expected 0 to {splits.FOLDS - 1}")
        records.find_dataset(config.data.dir, config.data.name)
        jobs = make_jobs(methods, config.data.name, folds, seeds)
        plans = make_plans(config, methods, jobs, workdir)
        reasons: dict[Path, str] = {}
        if not options.collect:
            arguments, refused = main_lib.arguments_of_config(options), dict[Any, str]()
            job_at = {plan.path: job for job, plan in plans.items()}
            reasons = sweep.do_all(
                list(plans.values()),
                lambda path: is_done(job_at[path], path),
                lambda plan, worker: do(job_at[plan.path], plan, arguments, worker, refused),
                options.workers,
            )
        found = outcomes(plans, reasons)
        text, written, remarks = page.write(methods, found, workdir / "report")
        print("\n".join(["", text, *remarks, f"Page: {written}"]))
        return int(any(outcome.run is None for outcome in found))
    except (run_dir.RunError, records.DatasetError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return processes.EXIT_CODE


def _numbers(name: str, text: str) -> list[int]:
    values = text.split(",")
    if not all(value.isdecimal() for value in values):
        raise ValueError(f"--{name}={text}: expected numbers like 0,1")
    return sorted({int(value) for value in values})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
