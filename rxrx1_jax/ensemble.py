"""The mean of trained runs, and their files for WILDS or Kaggle: `python -m rxrx1_jax.ensemble`.

    python -m rxrx1_jax.ensemble RUN [RUN ...] --out=DIR [--orientations]
    python -m rxrx1_jax.ensemble RUN RUN RUN --out=DIR --submission=wilds
    python -m rxrx1_jax.ensemble RUN [RUN ...] --out=DIR --submission=kaggle

Each RUN is a directory of rxrx1_jax.main, all of one split: runs that differ in seed, network or
training. Their probabilities are averaged site by site. DIR gets index.html with the accuracy of
each run and of the mean, log_probs.parquet (the mean of all treatment sites) and
predictions.parquet (the test sites). What a run lacks is predicted first, and kept in DIR/RUN: the
same command goes on there.

--submission=wilds writes DIR/rxrx1, a file per run and set, as WILDS's evaluate.py reads them.
--submission=kaggle writes DIR/submission.csv from the mean: a treatment for each test well.
"""

import sys

from rxrx1_jax.config import user_path
from rxrx1_jax.data import splits
from rxrx1_jax.methods import ensembles, submissions
from rxrx1_jax.methods.evidence import SEEN, budget_of
from rxrx1_jax.report import command, files
from rxrx1_jax.training import predictions


def main() -> int:
    parser = command.Parser("ensemble", __doc__ or "")
    parser.add_argument("--out", type=user_path, required=True, metavar="DIR",
                        help="folder for the page and the files")  # fmt: skip
    parser.add_argument(
        "--orientations",
        action="store_true",
        help="each run's mean over the eight orientations of an image",
    )
    parser.add_argument("--submission", choices=("wilds", "kaggle"), help="write its files, too")
    parser.add_argument("--decide", choices=submissions.DECISIONS, default="",
                        help="Kaggle's wells by the design of the screen, too")  # fmt: skip
    options = parser.parse_args()
    if options.decide and options.submission != "kaggle":
        parser.error(f"--decide={options.decide}: expected with --submission=kaggle")

    def work() -> None:
        changes = {"eval.orientations": True} if options.orientations else {}
        runs = [command.open_run(path, options.data_dir, changes) for path in options.runs]
        ensembles.check_runs(runs)
        first = runs[0]
        if options.submission == "wilds":
            submissions.check_wilds(runs)
        elif options.submission == "kaggle":
            sites = first.setup.images.sites
            role = splits.site_roles(first.setup.split, len(sites))
            submissions.check_kaggle(first.path, sites, role, options.decide)
        trained = files.read_training_wells(first.path / "metadata.csv")

        places, found = command.places(options.runs, options.out), []
        for number, (run, place) in enumerate(zip(runs, places, strict=True), start=1):
            print(f"{number} of {len(runs)}: {run.path}", file=sys.stderr, flush=True)
            found.append(run.log_probs(place))
        ensembles.check_files(found)
        mean = ensembles.write_mean(found, options.out)
        budget = budget_of({use for run in runs for use in run.uses})
        remarks = [f"Budget of the runs: {budget}: {SEEN[budget]}."]
        if options.submission == "wilds":
            remarks += submissions.wilds(options.out / "rxrx1", runs, found)
        elif options.submission == "kaggle":
            remarks += submissions.kaggle(options.out / "submission.csv", mean, options.decide)

        tables = {p.name: ensembles.test_table(file) for p, file in zip(places, found, strict=True)}
        folders = {p.name: run.path for p, run in zip(places, runs, strict=True)}
        predicted = ensembles.test_table(mean)
        predictions.write_predictions(options.out / "predictions.parquet", predicted)
        if len(runs) > 1:
            tables[f"mean of {len(runs)} runs"] = predicted

        from rxrx1_jax.report import ensemble  # here: --help needs no matplotlib

        chance = 1 / len(mean.classes)
        text, page = ensemble.write_page(options.out, tables, folders, trained, chance, remarks)
        print(text, f"Page: {page}", sep="\n")

    return command.run(work)


if __name__ == "__main__":
    sys.exit(main())
