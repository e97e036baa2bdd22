"""Tries methods on trained runs and says whether they help: `python -m rxrx1_jax.correct RUN...`.

Each run is a directory of `rxrx1_jax.main`. Its network embeds the sites once; each method then
predicts the test sites, and RUN/corrections/METHOD.parquet keeps what it predicted. The table
compares methods within the same budget of information, paired with the uncorrected network; methods
that transform embeddings are paired with the same classifier of embeddings as they are. Runs that
differ in more than fold and seed have a table for each of their settings.

    python -m rxrx1_jax.correct --embeddings=FILE --metadata=FILE --out=DIR

does it with embeddings of any network: the official ones, or your own. Methods are tried over the
folds of --protocol, and DIR/index.html is a page with accuracy, gains, and how much batch and
biology the embeddings hold. What is computed is kept in DIR: the same command goes on. Neither
images nor a network are needed, so methods that change the network are not tried. Methods can be
chained: tvn_plate+lda.
"""

import csv
import signal
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from rxrx1_jax.config import flat, user_path
from rxrx1_jax.data.files import write_text
from rxrx1_jax.methods import corrections
from rxrx1_jax.methods.catalogue import METHODS, find, reference
from rxrx1_jax.methods.evidence import BUDGETS, EXTERNAL, budget_of
from rxrx1_jax.methods.statistics import Score, Unit, compare, holm, worst_experiment
from rxrx1_jax.report import command, files
from rxrx1_jax.report.runs import differing, label_of, unit_of
from rxrx1_jax.report.tables import ADJUSTED, Cell, Table, Value, gain, percent
from rxrx1_jax.training import predictions
from rxrx1_jax.training.run_dir import read_settings

BASE = "none"
CAPTION = "Accuracy of the test sites, %"


def summary(
    runs: Mapping[Unit, Mapping[str, pa.Table]], shared: float, caption: str = CAPTION,
    uses: frozenset[str] = frozenset(),
) -> Table:  # fmt: skip
    """The table of {run: {method: predictions}}, grouped by what was seen.

    shared: as in `compare`. uses: what the training of the networks saw, as `Method.uses`.
    """
    tried = dict.fromkeys(name for tables in runs.values() for name in tables)
    names = [name for name in tried if all(name in tables for tables in runs.values())]
    scores = {
        name: _scores({unit: tables[name] for unit, tables in runs.items()}) for name in names
    }
    gains = {
        name: compare(scores[name][0], scores[reference(name)][0], shared)
        for name in names if name != BASE and reference(name) in scores
    }  # fmt: skip
    adjusted = dict(zip(gains, holm([found.p for found in gains.values()]), strict=True))
    rows: list[list[Cell]] = []
    inside = uses - {"external"}
    for budget in BUDGETS:
        members = [name for name in names if budget_of(find(name).uses | inside) == budget]
        outside = f"{EXTERNAL}, " if "external" in uses and budget != EXTERNAL else ""
        rows += [[outside + budget]] if members else []
        for name in members:
            rows.append([name, *map(percent, scores[name]), "", ""])
            if name in gains:
                rows[-1][-2:] = gain(gains[name]), Value(adjusted[name], 3)
    head = ["method", "by site", "by well", "worst experiment", "gain by site, points", ADJUSTED]
    return Table(caption, head, rows)


def _scores(tables: Mapping[Unit, pa.Table]) -> list[Score]:
    """By site, by well, and by site of the worst experiment."""
    found = {unit: predictions.accuracies(table) for unit, table in tables.items()}
    return [
        {unit: a["site"]["all"] for unit, a in found.items()},
        {unit: a["well"]["all"] for unit, a in found.items()},
        {unit: worst_experiment(a["site"]["experiment"])[1] for unit, a in found.items()},
    ]


def _shared(run: Path) -> float:
    """Test sites per training site."""
    try:
        with open(run / "split.csv", newline="", encoding="utf-8") as file:
            roles = Counter(row["role"] for row in csv.DictReader(file))
        return roles["test"] / roles["train"]
    except (OSError, ValueError, KeyError, ZeroDivisionError) as error:
        raise files.ReportError(
            f"{run}/split.csv: expected a column role with train and test ({error}); "
            f"{files.RESTORE}"
        ) from error


def _table(options: Namespace) -> None:
    """Of --embeddings."""
    from rxrx1_jax.data import reading, tables  # here: --help needs none of these
    from rxrx1_jax.embedded import command as embedded
    from rxrx1_jax.embedded import page

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # else workers would go on alone
    command.check_writable("--out", options.out)
    folds = [int(fold) if fold.isdecimal() else -1 for fold in options.folds.split(",")]
    asked = embedded.asked_for(
        options.methods or embedded.usable(), options.protocol.split(","), folds,
        options.val_experiments,
    )  # fmt: skip
    found = tables.read(options.embeddings, options.metadata or "")
    for remark in found.remarks:
        print(remark, file=sys.stderr)
    workers = options.workers or min(reading.cores(), embedded.MOST_WORKERS)
    judged = embedded.judge(found.embeddings, asked, options.out, workers, found.remarks)
    text, written = page.write(judged, options.out)
    print("\n".join([text, f"Page: {written}"]))
    if options.write:
        folder = options.out / "corrected"
        for path in embedded.write_corrected(judged, options.write, folder):
            print(f"Corrected: {path}")


def main() -> int:
    width = max(map(len, METHODS))
    lines = [f"  {name:{width}}  {method.about}" for name, method in METHODS.items()]
    parser = command.Parser(
        "correct", __doc__ or "", "*", epilog="methods:\n" + "\n".join(lines)
    )
    parser.add_argument(
        "--methods", nargs="+", default=[], metavar="METHOD",
        help="names of the list below, or module.name of your own (default: all that apply)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=user_path, metavar="DIR",
        help="folder for the tables (corrections.md) and what is computed, in place of the runs",
    )  # fmt: skip
    table = parser.add_argument_group("of a table of embeddings, in place of runs")
    table.add_argument("--embeddings", type=user_path, metavar="FILE", help="CSV, TSV, Parquet,"
                       " .h5ad, zip or gzip: a row per site or well, with its id")  # fmt: skip
    table.add_argument("--metadata", type=user_path, metavar="FILE",
                       help="of the screen, where the table has none: the release's, or Kaggle's")
    table.add_argument("--protocol", default="batch", metavar="SPLIT,...",
                       help="batch (default), random_well, random_site, official; the others give"
                       " the gap to the first")  # fmt: skip
    table.add_argument("--folds", default="0,1,2", help="0,1,2 unless given")
    table.add_argument("--val_experiments", type=int, default=0, metavar="N",
                       help="of each cell type, that methods with a grid choose by; 0 unless given")
    table.add_argument("--workers", type=int, default=0, help="processes (default: a core each)")
    table.add_argument("--write", metavar="STYLE", choices=("official", "pycytominer", "h5ad"),
                       help="write the corrected embeddings to DIR/corrected, too: as official,"
                       " pycytominer or h5ad")  # fmt: skip
    options = parser.parse_args()
    if bool(options.runs) == bool(options.embeddings):
        parser.error("expected either RUN... or --embeddings=FILE")
    if options.embeddings:
        if not options.out:
            parser.error("--embeddings goes with --out=DIR")
        return command.run(lambda: _table(options))
    options.methods = options.methods or list(METHODS)

    def work() -> None:
        partners = [[reference(name), name] for name in options.methods]  # a wrong name is told now
        names = list(dict.fromkeys([BASE, *(name for pair in partners for name in pair)]))
        places = command.places(options.runs, options.out)
        configs = [flat(read_settings(run)) for run in options.runs]
        fields = differing(configs)
        shares = {run: _shared(run) for run in options.runs}
        asked: dict[str, dict[Unit, tuple[Path, Path]]] = {}
        for run, place, config in zip(options.runs, places, configs, strict=True):
            mine = asked.setdefault(label_of(config, fields), {})
            if mine.setdefault(unit_of(config), (run, place)) != (run, place):
                raise ValueError(f"{run}: fold and seed of another run; expected one run of each")
        texts = []
        for label, runs in asked.items():
            tables, uses = {}, frozenset[str]()
            for unit, (run, place) in runs.items():
                print(run, file=sys.stderr, flush=True)
                opened = command.open_run(run, options.data_dir)
                uses |= opened.uses
                tables[unit] = corrections.predictions_of(opened, names, place)
            shared = max(shares[run] for run, _ in runs.values())
            worlds = sorted({unit.world for unit in runs})
            several = f"over worlds {', '.join(worlds)}" if len(worlds) > 1 else ""
            caption = "; ".join(filter(None, (CAPTION, label, several)))
            texts.append(summary(tables, shared, caption, uses).markdown())
        print("\n".join(texts))
        if options.out:
            write_text(options.out / "corrections.md", "\n".join(texts))

    return command.run(work)


if __name__ == "__main__":
    sys.exit(main())
