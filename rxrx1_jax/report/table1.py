"""Runs -> Table 1, accuracy by split and cell type beside the paper's, and other tables."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rxrx1_jax.methods.statistics import Score, difference, ratio
from rxrx1_jax.report.runs import PROTOCOLS, FinishedRun, Group, Screen
from rxrx1_jax.report.tables import NOTHING, Cell, Links, Table, Value, percent

# Column key -> heading. Cell types in the paper's order and spelling.
COLUMNS = {"all": "All", "HUVEC": "HUVEC", "RPE": "RPE", "HEPG2": "HepG2", "U2OS": "U2OS"}
# Table 1 of Taylor et al., test accuracy in %, (mean, spread); the paper does not say which spread.
PAPER = {
    "Batch": [(44.1, 5.7), (56.7, 8.4), (31.2, 2.7), (30.8, 4.0), (2.4, 1.0)],
    "Random": [(52.8, 0.0), (68.9, 0.3), (40.0, 0.9), (39.7, 0.2), (22.0, 0.4)],
}
SOURCES = {
    "synthetic": "a synthetic screen with planted biology and batch effects, not the paper's "
    "images",
    "release": "real images",
}
PAPER_CLASSES, PAPER_IMAGE_SIZE = 1108, 512
PAPER_DATA = (
    f"The paper: real RxRx1, {PAPER_CLASSES:,} classes, {PAPER_IMAGE_SIZE} px, ResNet-50; cell "
    "types are separate models."
)
HEAD = ["split", "folds", *COLUMNS.values()]
SPREAD_NOTE = (
    "Mean ± sd over folds (n - 1; a single fold has no ±). Differences (points) and ratios are "
    "over the folds that both rows have."
)


class Line(NamedTuple):
    """A line of the table: for each of COLUMNS the accuracy of each run."""

    label: str
    row: tuple[str, str]
    scores: list[Score]
    links: Links  # to the runs, by fold

    def cells(self) -> list[Cell]:
        """The label, the folds, and each cell as mean ± sd, with its n where a fold lacks it."""
        n = len({unit for score in self.scores for unit in score})
        values = (
            percent(score)._replace(n=len(score) if len(score) < n else 0) for score in self.scores
        )
        return [self.label, self.links, *values]


def lines_of(groups: Sequence[Group], unit: str, separate: bool = False) -> list[Line]:
    """A line for each group.

    Args:
      unit: "site" or "well".
      separate: False: every column from the runs on all cell types (a break-down of one model).
        True: "All" from these, and each cell type from the runs trained on it alone (the paper's);
        groups without such runs are left out.
    """
    lines = []
    for label, _, of_table1, runs in groups:
        scores, used = list[Score](), list[FinishedRun]()
        for column in COLUMNS:
            source = column if separate else "all"
            mine = [run for run in runs if run.cell_type == source or not of_table1]
            used += [run for run in mine if run not in used]
            if column == "all" or separate:
                scores.append({run.unit: run.accuracy[unit]["all"] for run in mine})
            else:
                # A fold whose test set lacks the cell type has no figure for it.
                kinds = {run.unit: run.accuracy[unit]["cell_type"] for run in mine}
                scores.append({k: of[column] for k, of in kinds.items() if column in of})
        if any(scores[1:] if separate else scores):
            lines.append(Line(label, runs[0].row, scores, links(used)))
    return lines


def links(runs: Sequence[FinishedRun]) -> Links:
    """To the folder of a run of each fold, on all cell types where there is one."""
    found: dict[str, Path] = {}
    several = len({run.unit.world for run in runs}) > 1
    for run in sorted(runs, key=lambda run: (run.unit, run.cell_type != "all", run.cell_type)):
        found.setdefault(f"{run.unit.world}:" * several + str(run.unit.fold), run.path)
    return Links(tuple(found.items()))


def gaps(lines: list[Line]) -> list[list[Cell]]:
    """Rows for random against batch at the same normalisation: points, then the ratio of means.

    Both are over the folds that both have.
    """
    by_row = {line.row: line for line in lines}
    rows: list[list[Cell]] = []
    for line in lines:
        protocol, normalisation = line.row
        batch = by_row.get(("batch", normalisation))
        if batch is None or not protocol.startswith("random"):
            continue
        pairs = list(zip(line.scores, batch.scores, strict=True))
        points = (percent(difference(*pair), signed=True) for pair in pairs)
        rows.append([f"{line.label} - batch", "", *points])
        rows.append([f"{line.label} / batch", "", *(Value(ratio(*pair), 2) for pair in pairs)])
    return rows


def accuracy_table(groups: Sequence[Group], unit: str, separate: bool) -> Table:
    """Accuracy by split and cell type; by site the paper's figures stand below."""
    lines = lines_of(groups, unit, separate)
    compared, notes = gaps(lines), [SPREAD_NOTE]
    if unit == "well":
        fair = gaps([line for line in lines if line.row[0] != "random_site"])
        if len(fair) < len(compared):
            notes.append(
                f"{PROTOCOLS['random_site']} is not compared with batch here: most of its test"
                " wells have one test site, those of the other splits two."
            )
        compared = fair
    rows = [line.cells() for line in lines] + compared
    if unit == "site":  # the paper reports no accuracy by well
        rows += [["The paper"], *_paper_rows()]
        notes.append(PAPER_DATA)
    how = "" if unit == "site" else " (mean log-probability over its sites)"
    kind = "separate models, each trained on that cell type alone"
    if not separate:
        kind = "a break-down of one model trained on all of them"
    caption = f"Test accuracy (%) by {unit}{how}; cell types: {kind}"
    return Table(caption, HEAD, rows, notes)


def beside_paper(screen: Screen, runs: Sequence[FinishedRun]) -> Table:
    """What keeps the figures of the two from being one."""
    source = SOURCES.get(screen.source, screen.source)
    crop = runs[0].config["data.crop"]
    cropped = f", cropped to {crop} px" if crop else ""
    chance, chance_of_paper = (f"{100 / n:.1f} %" for n in (screen.classes, PAPER_CLASSES))
    rows: list[list[Cell]] = [
        ["data", f"{screen.name} {screen.version}: {source}", "42 of the 51 experiments of RxRx1"],
        [
            "classes",
            f"{screen.classes:,} (chance {chance})",
            f"{PAPER_CLASSES:,} (chance {chance_of_paper})",
        ],
        ["image size", f"{screen.image_size} px{cropped}", f"{PAPER_IMAGE_SIZE} px"],
        ["network", runs[0].config["model.name"], "ResNet-50"],
        ["epochs", f"{runs[0].config['optim.epochs']:,}", "not known"],
        ["±", "sample standard deviation over folds", "not said"],
    ]
    return Table("Here and in the paper", ["what", "here", "the paper"], rows)


def tables(screen: Screen, groups: Sequence[Group]) -> dict[str, Table]:
    """Accuracy by site and by well, and what was measured here and in the paper; by file name."""
    runs = [run for of in groups for run in of.runs]
    found = {}
    for separate in sorted({run.cell_type != "all" for run in runs}):
        for unit in ("site", "well"):
            name = f"by-{unit}{'-separate-models' if separate else ''}"
            found[name] = accuracy_table(groups, unit, separate)
    return found | {"beside-the-paper": beside_paper(screen, runs)}


def headline(groups: Sequence[Group]) -> str:
    """The result in a sentence: the gap if there are both splits, else the first row."""
    lines = [line for k in (False, True) for line in lines_of(groups, "site", k) if line.scores[0]]
    for label, _, gap, *_ in gaps(lines)[:1]:
        if isinstance(gap, Value) and not math.isnan(gap.value):
            return f"{str(label).removesuffix(' - batch')} is {gap.apart('batch')}."
    label, _, *values = (lines or lines_of(groups, "site", True))[0].cells()
    best = next(str(value) for value in values if str(value) != NOTHING)
    return f"{label}: {best} % of the test sites are named right."


def names_of(runs: Sequence[FinishedRun]) -> str:
    """Of their datasets, with versions."""
    return ", ".join(sorted({f"{run.screen.name} {run.screen.version}" for run in runs}))


def describe(screen: Screen, runs: Sequence[FinishedRun]) -> str:
    """Sentences that say what the figures were measured on."""

    def span(values: list[int]) -> str:
        low, high = min(values), max(values)
        return f"{low:,}" if low == high else f"{low:,} to {high:,}"

    folds = ", ".join(str(fold) for fold in sorted({run.unit.fold for run in runs}))
    models = ", ".join(sorted({run.config["model.name"] for run in runs}))
    data = [run.results["data"] for run in runs]
    return (
        f"Measured on {names_of(runs)}: {SOURCES.get(screen.source, screen.source)}. "
        f"{screen.classes:,} classes (chance {100 / screen.classes:.1f} %), "
        f"{screen.image_size} x {screen.image_size} px, {span([d['train_sites'] for d in data])} "
        f"training and {span([d['test_sites'] for d in data])} test sites per run. Network "
        f"{models}, {span([run.config['optim.epochs'] for run in runs])} epochs; folds {folds}."
    )


def _paper_rows() -> list[list[Cell]]:
    """Batch, Random, their difference and their ratio."""
    rows: list[list[Cell]] = [
        [label, "", *(Value(mean, sd=sd) for mean, sd in cells)] for label, cells in PAPER.items()
    ]
    pairs = [(r, b) for (r, _), (b, _) in zip(PAPER["Random"], PAPER["Batch"], strict=True)]
    rows.append(["Random - batch", "", *(Value(r - b, signed=True) for r, b in pairs)])
    rows.append(["Random / batch", "", *(Value(r / b, 2) for r, b in pairs)])
    return rows
