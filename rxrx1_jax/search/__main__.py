"""Searches the settings of methods with an equal budget, then judges the methods with them.

    python -m rxrx1_jax.search screening --draws=8 --config=demo:val_experiments=1 --folds=0,1 \\
        --workdir=runs/search --workers=2

METHODS is a methods file: `screening` or `leaderboard`, which are ours (configs/), or a path. Its
SEARCH says from what the settings of each method are drawn. Every method of TRAINED gets the same
number of plain random draws. Draw 0 is the method's own settings. A draw depends on nothing but
the names of method and field and its number, so every host makes the same list.

Each draw is trained on the first fold and seed. The highest accuracy by site chooses: of the
validation experiments (data.val_experiments, of each cell type), which no fold may test. Or, with
--tuning_worlds=NAME,NAME, of the test sites of datasets that are not scored.

Then come the runs of a leaderboard (python -m rxrx1_jax.leaderboard): each method with its chosen
settings and, for comparison, with its own, on all training experiments. The test sites are looked
at then, and choose nothing. WORKDIR/report has what was drawn, chosen and gained;
WORKDIR/report/leaderboard the methods beside each other. --collect only writes these.

The runs of a draw are WORKDIR/METHOD-drawN/tuning/batch-FOLD-SEED; METHOD alone is draw 0. More
draws later use those that are there. Kills, several hosts, --workers, --tasks and --task=I are as
in the leaderboard. A task of the leaderboard's runs does or awaits the draws that are left. A run
whose loss is not finite counts as a draw. What else fails is tried again by the same command:
nothing is chosen before every draw is done.
"""

import sys

from rxrx1_jax import main as main_lib  # its --config and --workdir mean the same here
from rxrx1_jax.leaderboard import options as options_lib
from rxrx1_jax.report import command
from rxrx1_jax.training import workers


def main(argv: list[str]) -> int:
    parser = options_lib.Parser("search", __doc__ or "")
    parser.add_argument("methods", metavar="METHODS", help="the methods file, with SEARCH")
    parser.add_argument("--draws", required=True, type=main_lib.at_least(1), metavar="N",
                        help="draws of each method, its own settings among them")  # fmt: skip
    parser.add_argument("--tuning_worlds", metavar="NAME,NAME",
                        help="datasets that choose, in place of validation experiments")
    options = parser.parse(argv)
    workers.interrupt_by_signals()

    def work() -> int:
        from rxrx1_jax.leaderboard import jobs as jobs_lib  # here: --help needs none of these
        from rxrx1_jax.leaderboard.methods import load
        from rxrx1_jax.leaderboard.scores import Outcome
        from rxrx1_jax.leaderboard.work import work
        from rxrx1_jax.search import judges, page, space, trials

        config, workdir = main_lib.read_config(options), options.workdir
        command.check_writable("--workdir", workdir)
        methods = load(options.methods, config)
        space.check(options.methods, methods, config)
        asked = options_lib.read(options, config)
        judge = judges.read(options, config, asked)
        tried = trials.make_jobs(methods, options.draws, asked, judge.worlds)
        # As many as there can be: a method that keeps its own settings has fewer.
        every = trials.with_chosen(methods, dict.fromkeys(methods.trained, 1))
        count = len(tried) + len(jobs_lib.make_jobs(every, *asked))
        if options.tasks:
            print(count)
            return 0
        (number, *_) = main_lib.of_task(range(count), options.task)
        alone = options.task is not None
        mine = [tried[number]] if alone and number < len(tried) else tried
        found = trials.work(methods, options.draws, mine, config, options)
        if alone and number < len(tried):
            print(f"{found[0].job.path(workdir)}: {found[0].why or 'complete'}")
            return int(found[0].why not in ("", trials.DIVERGED))
        draws = trials.read(methods, options.draws, found, workdir, judge.role)
        judged = all(trials.is_judged(draw) for of in draws.values() for draw in of)
        choice, status, runs = trials.choose(draws) if judged else {}, 1, list[Outcome]()
        if judged:
            board = trials.with_chosen(methods, choice)
            jobs = jobs_lib.make_jobs(board, *asked)
            if alone:
                options.task -= len(tried)
                if options.task >= len(jobs):
                    print("nothing to do: a method keeps its own settings")
                    return 0
            if not judge.worlds:  # all training experiments
                options.fields["data.val_experiments"] = "0"
                config = main_lib.read_config(options)
            status, runs = work(board, jobs, config, options, workdir / "report" / "leaderboard")
        elif alone:
            print(f"{sum(bool(o.why) for o in found)} runs of draws are not done", file=sys.stderr)
        if not alone:
            text, written = page.write(draws, choice, runs, judge.about, workdir / "report")
            print(f"\n{text}\nPage: {written}")
        return status

    return command.run(work, options.workdir)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
