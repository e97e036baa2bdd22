"""How much batch and how much biology embeddings hold: `python -m rxrx1_jax.diagnose RUN...`.

Looks at the positive-control wells: the same siRNAs on every plate, and no class of the network.
The embeddings of the run are computed if RUN/embeddings.parquet does not have them. For them as
they are, and after each method that changes embeddings, the table has means over cell types with
two experiments or more:

"""

import argparse
import sys
from pathlib import Path

from rxrx1_jax.data.records import DatasetError
from rxrx1_jax.methods import diagnosis
from rxrx1_jax.methods.diagnosis import COLUMNS, digits
from rxrx1_jax.report.tables import Cell, Table
from rxrx1_jax.training.run import Run
from rxrx1_jax.training.run_dir import RunError

NOTES = f"""
{diagnosis.CAUTION}
The methods are fitted on the wells that are looked at, which takes the first below chance: where
the mean of every experiment is zero, leaving wells out shifts it the other way."""


def run_table(workdir: Path) -> Table:
    """The table of one run. Raises RunError, DatasetError, OSError, ValueError: one line."""
    run = Run.open(workdir)
    rows: list[list[Cell]] = []
    for name, figures in diagnosis.diagnose(run.embeddings(), run.planted_sirnas()):
        rows.append([name, *(_cell(figures.get(column)) for column in COLUMNS)])
    caption = f"{workdir}, positive-control wells; chance in brackets"
    return Table(caption, ["embeddings", *COLUMNS], rows)


def _cell(found: tuple[float, float] | None) -> str:
    if found is None:
        return "-"
    mean, chance = found
    return f"{mean:.{digits(chance)}f} ({chance:.{digits(chance)}f})"


def main() -> None:
    width = max(map(len, COLUMNS))
    explained = [f"  {name:{width}}  {about}" for name, about in COLUMNS.items()]
    parser = argparse.ArgumentParser(
        prog="python -m rxrx1_jax.diagnose", description=__doc__ + "\n".join(explained),
        epilog=NOTES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="directories of runs")
    for run in parser.parse_args().runs:
        try:
            print(run_table(run).markdown())
        except (RunError, DatasetError, OSError, ValueError) as error:
            sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
