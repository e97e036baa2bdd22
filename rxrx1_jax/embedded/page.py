"""The page of a table of embeddings: one folder with index.html, pictures and tables."""

import importlib.metadata
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rxrx1_jax.data.embeddings import Embeddings
from rxrx1_jax.data.files import write_text
from rxrx1_jax.embedded import judging, tables
from rxrx1_jax.embedded.jobs import Job
from rxrx1_jax.embedded.tables import Row
from rxrx1_jax.leaderboard import embedding_map, figures
from rxrx1_jax.methods import evidence
from rxrx1_jax.methods.evidence import BUDGETS, Method
from rxrx1_jax.report.figures import by_experiment, dots, experiments_of
from rxrx1_jax.report.page import Page, ToldPage, written_by
from rxrx1_jax.report.tables import Cell, Table

TITLE = "RxRx1 embeddings: does a correction help on unseen experiments?"
ELSEWHERE = (
    "The network that made these embeddings was trained elsewhere, maybe on these very experiments."
    " Then the test experiments are not unseen, and a gain here is no gain of the paper's task."
    " Compare rows of this page with each other only."
)
OWN = "The network that made these embeddings was trained on training sites of this split alone."
PACKAGES = ("rxrx1_jax", "numpy", "scipy", "scikit-learn", "jax")


class Judged(NamedTuple):
    """What the page is made of."""

    table: Embeddings
    methods: Mapping[str, Method]
    rows: Sequence[Row]
    results: Mapping[Job, Mapping[str, Any]]
    protocol: str  # of the tables but that of the gap
    remarks: Sequence[str] = ()  # of the reader of the table


def write(judged: Judged, out: Path) -> tuple[str, Path]:
    """Writes OUT/embeddings.md, index.html, pictures and tables. Returns the text and the page."""
    page = ToldPage(TITLE, out)
    rows, protocol = judged.rows, judged.protocol

    page.say(tables.headline(rows, protocol), "result")
    page.say(_described(judged))
    page.say(ELSEWHERE if any(row.external for row in rows) else OWN)
    left_out = [f"{job.name}: {of['refused']}" for job, of in judged.results.items()
                if of["refused"]]  # fmt: skip
    if notes := [*judged.remarks, *left_out]:
        page.say_items(notes)
    page.show("accuracy", tables.accuracy_table(rows, protocol), "Accuracy")
    _gains(judged, page)
    page.show("cell-types", tables.parts_table(rows, protocol, "cell_type"))
    _experiments(judged, page)
    tables.parts_table(rows, protocol, "experiment").write(out, "experiments")
    page.show("gap", tables.gap_table(rows), "Gap")
    held = tables.embeddings_table(judged.results, judged.methods, rows, protocol)
    page.show("embeddings", held, "Embeddings")
    _maps(judged, page)
    page.heading("Methods")
    page.glossary({row.name: _explained(judged.methods[row.name]) for row in rows})
    page.table("made-with", _made_with(judged.table))
    text = "\n".join(page.texts)
    write_text(out / "embeddings.md", text)
    return text, page.write()


def _described(judged: Judged) -> str:
    n, d = judged.table.x.shape
    units = [unit for row in judged.rows for unit in row.accuracy.get(judged.protocol, {})]
    folds = ", ".join(str(fold) for fold in sorted({unit.fold for unit in units}))
    file = judged.table.source.get("file", "in memory")
    found = judging.evidence_of(judged.table, judged.protocol, units[0].fold)
    return (
        f"{Path(file).name}: {n:,} {judged.table.unit}s of"
        f" {len(np.unique(judged.table.sites['experiment']))} experiments, {d} numbers each. Folds"
        f" {folds}, in the first {(found.role == 'train').sum():,} {judged.table.unit}s to train on"
        f" and {(found.role == 'test').sum():,} to test; {len(found.classes):,} siRNAs (chance"
        f" {100 / len(found.classes):.2g} %)."
    )


def _gains(judged: Judged, page: Page) -> None:
    rows, protocol = judged.rows, judged.protocol
    found = tables.gains(rows, protocol)
    shown = {name: of for name, (_, of) in found.items() if of.n}
    if shown:
        highest = max(shown, key=lambda name: shown[name].mean)
        lowest = min(shown, key=lambda name: shown[name].mean)
        page.picture(
            "gains",
            figures.gain_dots(found, {row.name: row.budget for row in rows}, "no correction"),
            f"Gains of {len(shown)} corrections over none: from {100 * shown[lowest].mean:+.1f}"
            f" points ({lowest}) to {100 * shown[highest].mean:+.1f} ({highest}).",
            "Gain by site over the same classifier of the embeddings as they are. Large marks:"
            " mean; lines: 95 % interval; small marks: folds. Beyond"
            f" {figures.LINEAR} points the axis is logarithmic. Colours: what a method may see.",
        )


def _experiments(judged: Judged, page: Page) -> None:
    rows, protocol = judged.rows, judged.protocol
    first: dict[tuple[bool, str], Row] = {}
    for row in rows:
        first.setdefault((not row.reference, row.budget), row)
    accuracies = {row.name: list(row.accuracy.get(protocol, {}).values()) for row in first.values()}
    series = by_experiment(accuracies)
    names = experiments_of(series)
    classes = judging.classes_of(judged.table.sites, protocol)
    page.picture(
        "experiments",
        dots(names, series, 100 / len(classes)),
        f"Accuracy by site of {len(names)} test experiments under {len(series)} methods.",
        "Large marks: mean over the folds that test the experiment; small ones: folds. Shown: the"
        " first method of each budget, and the first classifier without a correction. All are in"
        " experiments.csv.",
    )


def _maps(judged: Judged, page: Page) -> None:
    """The positive controls of a cell type, as they are and after the first correction."""
    name = next((row.name for row in judged.rows if row.reference and row.budget == BUDGETS[1]),
                next((row.name for row in judged.rows if row.reference), ""))  # fmt: skip
    if not name:
        return
    row = next(row for row in judged.rows if row.name == name)
    fold = min(unit.fold for unit in row.accuracy[judged.protocol])
    raw = judging.evidence_of(judged.table, judged.protocol, fold)
    after = judging.corrected(judged.methods[name], raw)
    wells = raw.sites["well_type"] == "positive_control"
    counts = {c: len(np.unique(raw.sites["experiment"][wells & (raw.sites["cell_type"] == c)]))
              for c in np.unique(raw.sites["cell_type"]).tolist()}  # fmt: skip
    cell_type = max(counts, key=lambda name: counts[name])
    mine = wells & (raw.sites["cell_type"] == cell_type)
    if counts[cell_type] < 2 or len(np.unique(raw.sites["sirna_id"][mine])) < 2:
        return
    unseen = set(raw.sites["experiment"].tolist())
    unseen -= set(raw.sites["experiment"][raw.role == "train"].tolist())
    stages = [("as they are", raw.x[mine]), (name, after.x[mine])]
    for column, one in (("experiment", "an experiment"), ("sirna_id", "a siRNA")):
        page.picture(
            f"map-{column.removesuffix('_id')}",
            embedding_map.figure(stages, raw.sites[mine], column, unseen),
            f"Two maps of the embeddings of {cell_type}, as they are and after {name}, where a"
            f" colour is {one}.",
            f"A colour and a shape are {one}. Left: the embeddings as they are; right: after"
            f" {name}. Where a correction works, experiments mix and siRNAs part. Marks: the mean"
            f" embedding of a siRNA in an experiment, of the positive controls of {cell_type}, on"
            " the first two principal components of each map. Hollow: experiments not trained on."
            f" The first {embedding_map.SHOWN} are coloured.",
        )


def _explained(method: Method) -> tuple[str, Path | None]:
    stages = [*method.transforms, method.classify, method.decide]
    first = getattr(stages[0], "function", stages[0])
    try:
        source = inspect.getsourcefile(first)  # type: ignore[arg-type]
    except TypeError:
        source = None
    return method.about or "a method of yours", Path(source or evidence.__file__)


def _made_with(table: Embeddings) -> Table:
    rows: list[list[Cell]] = [[what, str(value)] for what, value in table.source.items() if value]
    versions = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return Table("Made with", ["what", "value"], [*rows, ["packages", ", ".join(versions)],
                 *written_by()])  # fmt: skip
