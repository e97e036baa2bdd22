"""The runs of a leaderboard, done and shown: what its command does, and a search at its end."""

import argparse
from pathlib import Path

from ml_collections import ConfigDict

from rxrx1_jax import main as main_lib
from rxrx1_jax.leaderboard import jobs as lib
from rxrx1_jax.leaderboard import page
from rxrx1_jax.leaderboard.methods import Methods
from rxrx1_jax.leaderboard.scores import Job, Outcome
from rxrx1_jax.training import sweep, workers


def work(
    methods: Methods, jobs: list[Job], config: ConfigDict, options: argparse.Namespace, out: Path
) -> tuple[int, list[Outcome]]:
    """Does the runs, and writes the page to `out`; with a task, its run alone, and no page.

    Returns the status of the command, and what became of the runs that the page is of.
    """
    jobs, team = main_lib.of_task(jobs, options.task), workers.deal(options.workers)
    plans = lib.make_plans(config, methods, jobs, options.workdir)
    reasons = dict[Path, str]()
    if not options.collect:
        arguments = main_lib.arguments_of_config(options)
        reasons = lib.do_all(plans, arguments, team, config.data.dir)
    if options.task is not None:
        return sweep.tell(plans[jobs[0]], reasons), []
    found = lib.outcomes(plans, reasons)
    text, written, remarks = page.write(methods, found, out, config.data.dir)
    print("\n".join(["", text, *remarks, f"Page: {written}"]))
    return int(any(outcome.run is None for outcome in found)), found
