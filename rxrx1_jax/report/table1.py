"""Runs -> the numbers of Table 1: accuracy by protocol and cell type, per fold."""

import statistics
from typing import NamedTuple

from rxrx1_jax.report.runs import NORMALISATIONS, PROTOCOLS, Run, Screen, row_label

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
    f"real RxRx1, {PAPER_CLASSES:,} classes, {PAPER_IMAGE_SIZE} px, ResNet-50; cell types are "
    "separate models"
)

class Line(NamedTuple):
    """A line of the table: for each of COLUMNS the accuracy in % of each fold, {fold: %}."""

    row: tuple[str, str]
    cells: list[dict[int, float]]

    @property
    def folds(self) -> list[int]:
        return sorted(set().union(*self.cells))

    def texts(self) -> list[str]:
        """The label, the folds, and each cell as mean ± sd, with its n where a fold lacks it."""
        cells = [
            spread(list(cell.values()))
            + (f" (n = {len(cell)})" if 0 < len(cell) < len(self.folds) else "")
            for cell in self.cells
        ]
        return [row_label(self.row), " ".join(str(fold) for fold in self.folds), *cells]


def table(runs: list[Run], unit: str, separate: bool = False) -> list[Line]:
    """The lines of Table 1 for the runs of one screen.

    Args:
      runs: of one screen.
      unit: "site" or "well".
      separate: False: every column from the runs on all cell types (a break-down of one model).
        True: "All" from these, and each cell type from the runs trained on it alone (the paper's);
        rows without such runs are left out.
    """
    lines = []
    for row in sorted({run.row for run in runs}, key=_row_order):
        cells = []
        for column in COLUMNS:
            source = column if separate else "all"
            accuracy = {
                run.fold: run.accuracy[unit]
                for run in sorted(runs, key=lambda run: run.fold)
                if run.row == row and run.cell_type == source
            }
            if column == "all" or separate:
                values = {fold: a["all"] for fold, a in accuracy.items()}
            else:
                # A fold whose test set lacks the cell type has no figure for it.
                values = {
                    fold: a["cell_type"][column]
                    for fold, a in accuracy.items()
                    if column in a["cell_type"]
                }
            cells.append({fold: 100 * value for fold, value in values.items()})
        if any(cells[1:] if separate else cells):
            lines.append(Line(row, cells))
    return lines


def has_separate_models(runs: list[Run]) -> bool:
    return any(run.cell_type != "all" for run in runs)


def gaps(lines: list[Line], unit: str) -> list[tuple[str, list[str], list[str]]]:
    """Random against batch at the same normalisation: (label, gap in points, ratio) of each column.

    The gap is paired by fold (mean ± sd over the folds both have); the ratio is that of the means
    over these folds. By well, random_site is left out (`gap_note` says why).
    """
    by_row = {line.row: line for line in lines}
    found = []
    for line in lines:
        protocol, normalisation = line.row
        batch = by_row.get(("batch", normalisation))
        if batch is None or not protocol.startswith("random"):
            continue
        if unit == "well" and protocol == "random_site":
            continue
        points, ratios = [], []
        for random_cell, batch_cell in zip(line.cells, batch.cells, strict=True):
            folds = sorted(random_cell.keys() & batch_cell.keys())
            points.append(spread([random_cell[f] - batch_cell[f] for f in folds], sign=True))
            below = sum(batch_cell[f] for f in folds)
            ratios.append(f"{sum(random_cell[f] for f in folds) / below:.2f}" if below else "–")
        found.append((row_label(line.row), points, ratios))
    return found


def gap_note(lines: list[Line], unit: str) -> str:
    """The footnote for what `gaps` leaves out of these lines; empty where that is nothing."""
    if len(gaps(lines, unit)) == len(gaps(lines, "site")):
        return ""
    return (
        f"{PROTOCOLS['random_site']} is not compared with batch here: most of its test wells have "
        "one test site, those of the other splits two."
    )


def spread(values: list[float], sign: bool = False) -> str:
    """Mean ± sample standard deviation (n - 1), one decimal; a single value has no ±."""
    if not values:
        return "–"
    mean = f"{statistics.fmean(values):{'+' if sign else ''}.1f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"


def describe(screen: Screen, runs: list[Run]) -> list[str]:
    """Sentences that say what the figures were measured on."""

    def span(values: list[int]) -> str:
        low, high = min(values), max(values)
        return f"{low:,}" if low == high else f"{low:,} to {high:,}"

    folds = ", ".join(str(fold) for fold in sorted({run.fold for run in runs}))
    data = [run.results["data"] for run in runs]
    return [
        f"Measured on {screen.name} {screen.version}: {SOURCES.get(screen.source, screen.source)}.",
        f"{screen.classes:,} classes (chance {100 / screen.classes:.1f} %), "
        f"{screen.image_size} x {screen.image_size} px, {span([d['train_sites'] for d in data])} "
        f"training and {span([d['test_sites'] for d in data])} test sites a run.",
        f"Model {screen.model}, {runs[0].results['epochs']:,} epochs; folds {folds}.",
    ]


def beside_paper(screen: Screen, runs: list[Run]) -> list[tuple[str, str, str]]:
    """(what, here, in the paper) of all that keeps the figures of the two from being one."""
    source = SOURCES.get(screen.source, screen.source)
    crop = runs[0].config["data"].get("crop", 0)
    cropped = f", cropped to {crop} px" if crop else ""
    chance, chance_of_paper = (f"{100 / n:.1f} %" for n in (screen.classes, PAPER_CLASSES))
    return [
        ("data", f"{screen.name} {screen.version}: {source}", "42 of the 51 experiments of RxRx1"),
        (
            "classes",
            f"{screen.classes:,} (chance {chance})",
            f"{PAPER_CLASSES:,} (chance {chance_of_paper})",
        ),
        ("image size", f"{screen.image_size} px{cropped}", f"{PAPER_IMAGE_SIZE} px"),
        ("network", screen.model, "ResNet-50"),
        ("epochs", f"{runs[0].results['epochs']:,}", "not known"),
        ("±", "sample standard deviation over folds", "not said"),
    ]


def _row_order(row: tuple[str, str]) -> tuple[int, int, str, str]:
    protocols, normalisations = list(PROTOCOLS), list(NORMALISATIONS)
    protocol, normalisation = row
    return (
        normalisations.index(normalisation) if normalisation in normalisations else 99,
        protocols.index(protocol) if protocol in protocols else 99,
        *row,
    )
