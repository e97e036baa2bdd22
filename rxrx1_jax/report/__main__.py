"""Finished runs -> Table 1 of the paper, in its layout and beside its figures, and a page of plots.

    python -m rxrx1_jax.report RUNS... [--out report/]

RUNS are workdirs of rxrx1_jax.main: any mixture of protocols, folds, normalisations and cell types.
Runs on the same data with the same model share a table; all their other settings must agree.
"""

import argparse
import sys
from pathlib import Path

from rxrx1_jax.report import table1
from rxrx1_jax.report.files import ReportError
from rxrx1_jax.report.page import write_page
from rxrx1_jax.report.runs import load_runs


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m rxrx1_jax.report", description="Table 1 and a page of plots from runs."
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS", help="workdirs of runs")
    parser.add_argument(
        "--out", type=Path, default=Path("report"), help="folder of the page (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    try:
        screens = load_runs(options.runs)
    except ReportError as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    for screen, runs in screens.items():
        print(table1.describe(screen, runs), end="\n\n")
        print(*(table.text() for table in table1.tables(screen, runs)), sep="\n")
    try:
        page, remarks = write_page(screens, options.out)
    except OSError as error:
        print(f"report: cannot write the page to {options.out}: {error}", file=sys.stderr)
        return 2
    print(*remarks, f"Page: {page}", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
