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

from rxrx1_jax import main as main_lib  # its --config and --workdir mean the same here
from rxrx1_jax.leaderboard import options as options_lib
from rxrx1_jax.report import command
from rxrx1_jax.training import workers


def main(argv: list[str]) -> int:
    parser = options_lib.Parser("leaderboard", __doc__ or "")
    parser.add_argument("--methods", required=True,
                        help="the methods file: `leaderboard`, which is ours, or a path")
    options = parser.parse(argv)
    workers.interrupt_by_signals()

    def work() -> int:
        from rxrx1_jax.leaderboard.jobs import make_jobs  # here: --help needs none of these
        from rxrx1_jax.leaderboard.methods import load
        from rxrx1_jax.leaderboard.work import work

        config = main_lib.read_config(options)
        command.check_writable("--workdir", options.workdir)
        methods = load(options.methods, config)
        jobs = make_jobs(methods, *options_lib.read(options, config))
        if options.tasks:
            print(len(jobs))
            return 0
        return work(methods, jobs, config, options, options.workdir / "report")[0]

    return command.run(work, options.workdir)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
