"""How much batch and how much biology embeddings hold: `python -m rxrx1_jax.diagnose RUN...`.

Looks at the positive-control wells: the same siRNAs on every plate, and no class of the network.
The embeddings of the run are computed if RUN/embeddings.parquet does not have them. For them as
they are, and after each method that changes embeddings, the table has means over cell types with
two experiments or more:

"""

import sys
from pathlib import Path

from rxrx1_jax.config import user_path
from rxrx1_jax.data.files import write_text
from rxrx1_jax.methods import diagnosis
from rxrx1_jax.methods.diagnosis import COLUMNS, digits
from rxrx1_jax.report import command
from rxrx1_jax.report.tables import NOTHING, Cell, Table

NOTES = f"""
{diagnosis.CAUTION}
The methods are fitted on the wells that are looked at, which takes the first below chance: where
the mean of every experiment is zero, leaving wells out shifts it the other way."""


def run_table(path: Path, data_dir: Path | None, place: Path) -> Table:
    """The table of one run; what it needs is written to `place`."""
    run = command.open_run(path, data_dir)
    embeddings = run.embeddings(folder=place)
    rows: list[list[Cell]] = []
    for name, figures in diagnosis.diagnose(embeddings, run.planted_sirnas()):
        rows.append([name, *(_cell(figures.get(column), digits(column)) for column in COLUMNS)])
    caption = f"{path}, positive-control wells; chance in brackets"
    return Table(caption, ["embeddings", *COLUMNS], rows)


def _cell(found: tuple[float, float] | None, places: int) -> str:
    if found is None:
        return NOTHING
    mean, chance = found
    return f"{mean:.{places}f} ({chance:.{places}f})"


def main() -> int:
    width = max(map(len, COLUMNS))
    explained = [f"  {name:{width}}  {about}" for name, about in COLUMNS.items()]
    about = (__doc__ or "") + "\n".join(explained)
    parser = command.Parser("diagnose", about, epilog=NOTES)
    parser.add_argument(
        "--out", type=user_path, metavar="DIR",
        help="folder for the tables (diagnosis.md) and what is computed, in place of the runs",
    )  # fmt: skip
    options = parser.parse_args()

    def work() -> None:
        texts = []
        for run, place in zip(
            options.runs, command.places(options.runs, options.out), strict=True
        ):
            texts.append(run_table(run, options.data_dir, place).markdown())
            print(texts[-1])
        if options.out:
            write_text(options.out / "diagnosis.md", "\n".join(texts))

    return command.run(work)


if __name__ == "__main__":
    sys.exit(main())
