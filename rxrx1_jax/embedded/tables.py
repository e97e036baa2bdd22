"""The tables of embeddings: accuracy and gains, cell types, the gap, batch and biology."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rxrx1_jax.embedded import judging
from rxrx1_jax.embedded.jobs import FIGURES, Job
from rxrx1_jax.methods import diagnosis
from rxrx1_jax.methods.catalogue import METHODS
from rxrx1_jax.methods.evidence import BUDGETS, EXTERNAL, SEEN, Method
from rxrx1_jax.methods.statistics import (
    Comparison,
    Score,
    Unit,
    compare,
    difference,
    holm,
    ratio,
)
from rxrx1_jax.report import comparison
from rxrx1_jax.report.runs import PROTOCOLS
from rxrx1_jax.report.tables import ADJUSTED, Cell, Links, Table, Value, gain, percent

COLUMNS = diagnosis.COLUMNS | judging.COLUMNS


class Row(NamedTuple):
    name: str
    budget: str  # of BUDGETS, what the method itself may see
    reference: str  # name of the method that it is compared with; "" where there is none
    accuracy: Mapping[str, Mapping[Unit, dict[str, Any]]]  # split -> as predictions.accuracies
    shared: float  # test sites per training site
    external: bool  # whether the embeddings may know the test sites

    def score(self, protocol: str, part: Any = lambda a: a["site"]["all"]) -> Score:
        return {unit: part(found) for unit, found in self.accuracy.get(protocol, {}).items()}


def reference(method: Method) -> str:
    """The name of its classifier (and decision) without transforms; "" where it has none."""
    for name, plain in METHODS.items():
        if (
            method.transforms and plain.classify is method.classify and not plain.transforms
            and (plain.adapt, plain.decide) == (None, method.decide)
        ):  # fmt: skip
            return name
    return ""


def rows_of(
    results: Mapping[Job, Mapping[str, Any]], methods: Mapping[str, Method],
    references: Mapping[str, str], world: str,
) -> list[Row]:  # fmt: skip
    """A row per method with an accuracy, by budget, then in the order of the methods."""
    rows = []
    for name, method in methods.items():
        done = {job: of for job, of in results.items() if job.method == name and "accuracy" in of}
        accuracy: dict[str, dict[Unit, Any]] = {}
        for job, of in done.items():
            accuracy.setdefault(job.split, {})[Unit(world, job.fold, 0)] = of["accuracy"]
        if done:
            shared = max(of["shared"] for of in done.values())
            external = any(of["external"] for of in done.values())
            rows.append(
                Row(name, method.budget, references.get(name, ""), accuracy, shared, external)
            )
    return sorted(rows, key=lambda row: BUDGETS.index(row.budget))


def gains(rows: Sequence[Row], protocol: str) -> dict[str, tuple[Score, Comparison]]:
    """{row: (differences, comparison)} with the row that reads out as it does."""
    scores = {row.name: row.score(protocol) for row in rows}
    found = {}
    for row in rows:
        pairs = difference(scores[row.name], scores.get(row.reference, {}))
        found[row.name] = pairs, compare(pairs, dict.fromkeys(pairs, 0.0), row.shared)
    return found


def budget_of(row: Row) -> str:
    """What stands over its rows."""
    outside = f"{EXTERNAL}, " if row.external and row.budget != EXTERNAL else ""
    seen = "the embedding of the site" if row.budget == BUDGETS[0] else SEEN[row.budget]
    return f"{outside}{row.budget}: {seen}"


def _grouped(rows: Sequence[Row], cells: Mapping[str, list[Cell]]) -> list[list[Cell]]:
    """The cells of each row below its budget, its name first, linked to what explains it."""
    found: list[list[Cell]] = []
    last = ""
    for row in rows:
        found += [[budget_of(row)]] if budget_of(row) != last else []
        last = budget_of(row)
        found.append([Links(((row.name, f"#method-{row.name}"),)), *cells[row.name]])
    return found


def accuracy_table(rows: Sequence[Row], protocol: str) -> Table:
    compared = gains(rows, protocol)
    adjusted = dict(zip(compared, holm([c.p for _, c in compared.values()]), strict=True))
    cells: dict[str, list[Cell]] = {
        row.name: [
            percent(row.score(protocol)), gain(compared[row.name][1]),
            Value(adjusted[row.name], 3),
            *(percent(row.score(protocol, part)) for part in comparison.FIGURES.values()),
        ]
        for row in rows
    }  # fmt: skip
    notes = [
        comparison.NOTE.replace(" of the means over seeds", ""),
        "Gain: accuracy by site minus that of the same classifier of the embeddings as they are, on"
        " the same fold, in points. Folds share training data, so its t interval is that of Nadeau"
        " and Bengio (2003). Of fewer than three folds there is none (–)."
        f" {ADJUSTED}: adjusted for all rows of the table.",
    ]
    head = ["method", "by site", comparison.GAIN, ADJUSTED, *comparison.FIGURES]
    return Table(f"Accuracy, {PROTOCOLS[protocol].lower()} split, %", head,
                 _grouped(rows, cells), notes)  # fmt: skip


def parts_table(rows: Sequence[Row], protocol: str, part: str) -> Table:
    """Accuracy by site of each "cell_type" or "experiment"."""
    names = sorted({
        name for row in rows for a in row.accuracy.get(protocol, {}).values()
        for name in a["site"][part]
    })  # fmt: skip
    cells: dict[str, list[Cell]] = {}
    for row in rows:
        cells[row.name] = []
        for name in names:
            found = {unit: a["site"][part][name] for unit, a in row.accuracy[protocol].items()
                     if name in a["site"][part]}  # fmt: skip
            cells[row.name].append(percent(found))
    what = part.replace("_", " ")
    caption = f"Accuracy by site of each {what}, {PROTOCOLS[protocol].lower()} split, %"
    return Table(caption, ["method", *names], _grouped(rows, cells))


def gap_table(rows: Sequence[Row]) -> Table | None:
    """Random against batch split, where there are both."""
    random = [name for name in ("random_site", "random_well") if any(r.score(name) for r in rows)]
    if not random or not any(row.score("batch") for row in rows):
        return None
    names = [PROTOCOLS[name].lower() for name in random]
    cells: dict[str, list[Cell]] = {}
    for row in rows:
        batch = row.score("batch")
        cells[row.name] = [percent(row.score(name)) for name in ("batch", *random)]
        for other in map(row.score, random):
            found = compare(other, batch, row.shared)
            cells[row.name] += [gain(found), Value(ratio(other, batch), 2)]
    head = ["method", "batch", *names]
    head += [f"{name} {sign} batch" for name in names for sign in "-/"]
    notes = [
        "By site. In the random split by site the other site of a test well may have been trained"
        " on; in that by well both are held out. Differences in points, paired by fold."
    ]
    return Table("The gap: random against batch split, %", head, _grouped(rows, cells), notes)


def embeddings_table(
    results: Mapping[Job, Mapping[str, Any]], methods: Mapping[str, Method], rows: Sequence[Row],
    protocol: str,
) -> Table | None:  # fmt: skip
    """Batch and biology in the embeddings after each method's transforms."""
    found = {job.method: of["figures"] for job, of in results.items()
             if job.split == FIGURES and "figures" in of}  # fmt: skip
    if not found:
        return None
    shown = [name for name in COLUMNS if any(name in of for of in found.values())]
    accuracy = {row.name: percent(row.score(protocol)) for row in rows}
    chance: dict[str, float] = {}
    lines: list[list[Cell]] = []
    for name, of in found.items():
        chance |= {column: pair[1] for column, pair in of.items()}
        measured = (
            Value(of[column][0] if column in of else math.nan, diagnosis.digits(column))
            for column in shown
        )
        shown_as = name if methods[name].transforms else "as they are"
        lines.append([shown_as, *measured, accuracy.get(name, "")])
    of_chance = (Value(chance.get(column, math.nan), diagnosis.digits(column)) for column in shown)
    lines.append(["chance", *of_chance, ""])
    notes = [
        "Within cell types, means over them. Positive-control wells, which are no classes, but in"
        " the columns called active, which are of the treatments. Methods whose embeddings are"
        " the same stand once.",
        *(f"{name}: {COLUMNS[name]}." for name in shown),
        diagnosis.CAUTION,
    ]
    head = ["embeddings", *shown, "accuracy by site, %"]
    return Table("Batch and biology in the embeddings", head, lines, notes)


def headline(rows: Sequence[Row], protocol: str) -> str:
    """The result in a sentence; no row is chosen by its rank."""
    found = {name: one for name, (_, one) in gains(rows, protocol).items()}
    return comparison.told_apart(found, "no correction", "folds")
