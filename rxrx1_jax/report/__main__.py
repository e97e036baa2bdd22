"""Finished runs -> which is better: tables, and a page of plots.

    python -m rxrx1_jax.report RUN... [--baseline RUN] [--out report/]

RUN is a workdir of rxrx1_jax.main. Runs that differ in split, fold, normalisation and cell type
make Table 1 of the paper, in its layout and beside its figures. Others are grouped by the settings
in which they differ, with folds and seeds as repetitions, and compared with the first, or with that
of --baseline.
"""

import sys
from pathlib import Path

from rxrx1_jax.config import user_path
from rxrx1_jax.report import command


def main(arguments: list[str] | None = None) -> int:
    parser = command.Parser("report", __doc__ or "")
    parser.add_argument("--baseline", type=user_path, metavar="RUN",
                        help="run of the method that the others are compared with")  # fmt: skip
    parser.add_argument("--worlds", action="store_true", help="runs on several datasets of one "
                        "design make one table; intervals are then over datasets")  # fmt: skip
    parser.add_argument("--out", type=user_path, default=Path("report"), metavar="DIR",
                        help="folder of the page (default: %(default)s)")  # fmt: skip
    options = parser.parse_args(arguments)

    def work() -> None:
        from rxrx1_jax.report import page, table1  # here: --help needs no matplotlib
        from rxrx1_jax.report.runs import as_worlds, load_runs

        command.check_writable("--out", options.out)
        more = [options.baseline] if options.baseline else []
        screens = load_runs([*options.runs, *more])
        if options.worlds:
            screens = as_worlds(screens)
        results = page.results_of(screens, options.baseline)
        written, remarks = page.write_page(results, options.out, options.data_dir)
        for screen, (result, groups, tables) in results.items():
            runs = [run for of in groups for run in of.runs]
            print(result, table1.describe(screen, runs), sep="\n", end="\n\n")
            print(*(table.markdown() for table in tables.values()), sep="\n")
        print(*remarks, f"Page: {written}", sep="\n")

    return command.run(work)


if __name__ == "__main__":
    sys.exit(main())
