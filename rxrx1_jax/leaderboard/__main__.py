"""Do methods help, and by how much: methods x folds x seeds by one command, to one page.

    python -m rxrx1_jax.leaderboard --config=demo --methods=leaderboard \\
        --workdir=runs/leaderboard --workers=2

runs or resumes every run, tries the corrections on them, and writes the table (leaderboard.md) and
the page (index.html) to WORKDIR/report. --collect does only the latter, with what is there. The
same command goes on after a kill; what is complete is not run again. --task=I does the I-th run
alone, for a cluster (launch/slurm_sweep.sh, launch/sweep.yaml). Any field of the config can be
changed, as for rxrx1_jax.main.

--worlds=rxrx1/first,rxrx1/second makes all of it on each of several datasets, which must be of one
design and independent. Intervals are then over worlds. The world that the config names can be one
of them: its runs lie where they lie without --worlds.

A run is `python -m rxrx1_jax.main` in WORKDIR/METHOD/PROTOCOL-FOLD-SEED (of a further world:
METHOD/WORLD/PROTOCOL-FOLD-SEED; of a control: WORKDIR/controls/CONTROL/METHOD/...), followed by
`python -m rxrx1_jax.leaderboard.assess`; what both say is in PROTOCOL-FOLD-SEED.log beside it. A
run that fails leaves the others alone and is listed with its reason. --workers=N runs N at once on
an equal share of the cores, and of the GPUs: one each, or a part of one's memory. Unless given, one
run per GPU; on CPUs one.
"""

import sys
from pathlib import Path
from typing import Any

from rxrx1_jax import main as main_lib  # its --config and --workdir mean the same here
from rxrx1_jax.report import command
from rxrx1_jax.training import workers


def main(argv: list[str]) -> int:
    parser = main_lib.SweepParser("leaderboard", __doc__ or "")
    parser.add_argument("--methods", required=True,
                        help="the methods file: `leaderboard`, which is ours, or a path")
    parser.add_argument("--worlds", metavar="NAME,NAME", help="datasets; data.name unless given")
    parser.add_argument("--folds", default="0,1,2", help="folds; 0,1,2 unless given")
    parser.add_argument("--seeds", default="0,1", help="values of train.seed; 0,1 unless given")
    options = parser.parse(argv)
    workers.interrupt_by_signals()
    workdir: Path = options.workdir

    def work() -> int:
        from rxrx1_jax.data import splits  # here: --help needs none of these
        from rxrx1_jax.leaderboard import jobs as lib
        from rxrx1_jax.leaderboard import page, worlds
        from rxrx1_jax.leaderboard.methods import load
        from rxrx1_jax.training import sweep

        config = main_lib.read_config(options)
        command.check_writable("--workdir", workdir)
        folds, seeds = _numbers("folds", options.folds), _numbers("seeds", options.seeds)
        methods = load(options.methods, config)
        wrong = [fold for fold in folds if fold >= splits.FOLDS]
        if wrong:
            raise ValueError(f"--folds has {wrong[0]}: expected 0 to {splits.FOLDS - 1}")
        own = config.data.name
        chosen = worlds.check_worlds(options.worlds or own, config.data.dir)
        jobs = lib.make_jobs(methods, chosen, folds, seeds, own)
        if options.tasks:
            print(len(jobs))
            return 0
        jobs, team = main_lib.of_task(jobs, options.task), workers.deal(options.workers)
        plans = lib.make_plans(config, methods, jobs, workdir)
        reasons: dict[Path, str] = {}
        if not options.collect:
            arguments, refused = main_lib.arguments_of_config(options), dict[Any, str]()
            job_at = {plan.path: job for job, plan in plans.items()}
            reasons = sweep.do_all(
                list(plans.values()),
                lambda path: lib.is_done(job_at[path], path),
                lambda plan, worker: lib.do(
                    job_at[plan.path], plan, arguments, worker, refused, config.data.dir
                ),
                team[: len(plans)],
            )
        if options.task is not None:
            return sweep.tell(plans[jobs[0]], reasons)
        found = lib.outcomes(plans, reasons)
        text, written, remarks = page.write(methods, found, workdir / "report", config.data.dir)
        print("\n".join(["", text, *remarks, f"Page: {written}"]))
        return int(any(outcome.run is None for outcome in found))

    return command.run(work, workdir)


def _numbers(name: str, text: str) -> list[int]:
    values = text.split(",")
    if not all(value.isdecimal() for value in values):
        raise ValueError(f"--{name}={text}: expected numbers like 0,1")
    return sorted({int(value) for value in values})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
