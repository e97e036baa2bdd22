"""The runs of a search, what each draw gave, and which draw of a method is chosen."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from rxrx1_jax import main as main_lib
from rxrx1_jax.leaderboard import jobs as jobs_lib
from rxrx1_jax.leaderboard.methods import Methods, MethodsError
from rxrx1_jax.leaderboard.options import Asked
from rxrx1_jax.leaderboard.scores import Job, Outcome
from rxrx1_jax.search.space import all_draws, drawn, name_of
from rxrx1_jax.training import run_dir, sweep, workers
from rxrx1_jax.training.sweep import Plan
from rxrx1_jax.training.workers import DONE, Ending, Worker

FOLDER = "tuning"  # of the runs of a draw, in the folder of its settings
DIVERGED = "diverged"


class Draw(NamedTuple):
    """Settings that were drawn for a method, and what their runs gave."""

    number: int
    settings: dict[str, Any]  # field -> value, of what is searched; of draw 0 once it is trained
    paths: tuple[Path, ...]  # of its runs
    accuracy: float  # by site, mean over the runs; NaN where one of them is not complete
    why: str  # it is not, DIVERGED for one that never will be


Draws = Mapping[str, Sequence[Draw]]  # of each method, from 0 on


def make_jobs(methods: Methods, draws: int, asked: Asked, tuning: Sequence[str]) -> list[Job]:
    """The runs of all draws, draw by draw: on the first fold and seed of each of `asked`'s worlds
    or, where there are some, of the tuning worlds.

    Raises MethodsError: a method whose dataset is its own, which tuning worlds cannot be.
    """
    jobs = jobs_lib.make_jobs(
        all_draws(methods, draws), tuning or asked.worlds, asked.folds[:1], asked.seeds[:1],
        asked.own,
    )  # fmt: skip
    for job in jobs:
        if tuning and job.unit.world not in tuning:
            raise MethodsError(f"TRAINED[{job.trained!r}] sets data.name: no world is tuned on")
    return [
        job._replace(assessed=(), folder="/".join(filter(None, (FOLDER, job.folder))))
        for job in jobs
    ]


def work(
    methods: Methods, draws: int, jobs: list[Job], config: ConfigDict, options: argparse.Namespace
) -> list[Outcome]:
    """Trains the runs of `jobs` that are not done yet. Returns what became of them.

    A run that diverged is done: a high learning rate is a draw like any other.
    Raises ValueError: a draw that the data or the settings do not allow.
    """
    plans = jobs_lib.make_plans(config, all_draws(methods, draws), jobs, options.workdir)
    for plan in plans.values():
        if plan.obstacle:
            raise ValueError(f"{plan.path}: {plan.obstacle}")
    arguments, reasons = main_lib.arguments_of_config(options), dict[Path, str]()

    def train(plan: Plan, worker: Worker) -> Ending:
        end = sweep.train_one(plan, arguments, worker, sweep.log_of(plan.path))
        return Ending(DONE) if _has_diverged(plan.path) else end

    if not options.collect:
        team = workers.deal(options.workers)[: len(plans)]
        reasons = sweep.do_all(list(plans.values()), _is_done, train, team)
    return [
        outcome._replace(why=DIVERGED) if _has_diverged(plan.path) else outcome
        for outcome, plan in zip(jobs_lib.outcomes(plans, reasons), plans.values(), strict=True)
    ]


def read(methods: Methods, draws: int, found: Sequence[Outcome], workdir: Path, role: str) -> Draws:
    """What the runs of each draw gave.

    role: of the sites that a draw is judged by: "val", or of tuning worlds "test".
    """

    def accuracy(outcome: Outcome) -> float:
        results = outcome.run.results if outcome.run else {}
        part = results if role == "test" else results.get("other_sets", {}).get(role, {})
        return part["accuracy"]["site"]["all"] if part else np.nan

    def one(method: str, number: int) -> Draw:
        mine = [o for o in found if o.job.trained == name_of(method, number)]
        paths = tuple(o.job.path(workdir) for o in mine)
        # A run that is left to do comes before one that never will be done.
        why = min({o.why for o in mine if o.why}, key=lambda why: why == DIVERGED, default="")
        mean = float(np.mean([accuracy(outcome) for outcome in mine]))
        settings = drawn(methods, method, number)
        if number == 0 and mine[0].run:
            settings = {field: mine[0].run.config[field] for field in methods.search[method]}
        return Draw(number, settings, paths, mean, why)

    return {method: [one(method, i) for i in range(draws)] for method in methods.trained}


def is_judged(draw: Draw) -> bool:
    return draw.why in ("", DIVERGED)


def choose(draws: Draws) -> dict[str, int]:
    """{method: number of its draw with the highest accuracy}, the first of equals.

    One that diverged is below all others.
    """
    return {
        method: int(np.argmax(np.nan_to_num([draw.accuracy for draw in of], nan=-1)))
        for method, of in draws.items()
    }


def with_chosen(methods: Methods, choice: Mapping[str, int]) -> Methods:
    """The methods of the leaderboard: each with its chosen settings, in place of its own in all
    that the methods file asks of it; then with its own, where they were not chosen."""
    name = {method: name_of(method, draw) for method, draw in choice.items()}
    chosen = {
        name[method]: changed | drawn(methods, method, choice[method])
        for method, changed in methods.trained.items()
    }
    trained = chosen | methods.trained
    return methods._replace(
        trained=trained,
        corrections=dict.fromkeys(trained, ())
        | {name[method]: of for method, of in methods.corrections.items()},
        gap=tuple(name[method] for method in methods.gap),
        budgets=methods.budgets | {name[m]: budget for m, budget in methods.budgets.items()},
        controls={
            control: of._replace(expected={name[m]: must for m, must in of.expected.items()})
            for control, of in methods.controls.items()
        },
    )


def _is_done(path: Path) -> bool:
    return run_dir.is_complete(path) or _has_diverged(path)


def _has_diverged(path: Path) -> bool:
    return (path / run_dir.DIVERGED).exists()
