"""Runs -> Table 1, accuracy by split and cell type beside the paper's, and other tables."""

from typing import NamedTuple

from rxrx1_jax.methods.statistics import Score, difference, ratio, worst_experiment
from rxrx1_jax.report.runs import NORMALISATIONS, PROTOCOLS, FinishedRun, Screen, row_label
from rxrx1_jax.report.tables import Cell, Table, Value, percent

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
HEAD = ["", "folds", *COLUMNS.values()]
SPREAD_NOTE = (
    "Mean ± sd over folds (n - 1; a single fold has no ±). Differences (points) and ratios are "
    "over the folds that both rows have."
)


class Line(NamedTuple):
    """A line of the table: for each of COLUMNS the accuracy of each run."""

    row: tuple[str, str]
    scores: list[Score]

    @property
    def folds(self) -> list[int]:
        return sorted({unit.fold for score in self.scores for unit in score})

    def cells(self) -> list[Cell]:
        """The label, the folds, and each cell as mean ± sd, with its n where a fold lacks it."""
        folds = self.folds
        values = (
            percent(score)._replace(n=len(score) if len(score) < len(folds) else 0)
            for score in self.scores
        )
        return [row_label(self.row), " ".join(map(str, folds)), *values]


def lines_of(runs: list[FinishedRun], unit: str, separate: bool = False) -> list[Line]:
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
        scores: list[Score] = []
        for column in COLUMNS:
            source = column if separate else "all"
            mine = [run for run in runs if run.row == row and run.cell_type == source]
            if column == "all" or separate:
                scores.append({run.unit: run.accuracy[unit]["all"] for run in mine})
            else:
                # A fold whose test set lacks the cell type has no figure for it.
                kinds = {run.unit: run.accuracy[unit]["cell_type"] for run in mine}
                scores.append({k: of[column] for k, of in kinds.items() if column in of})
        if any(scores[1:] if separate else scores):
            lines.append(Line(row, scores))
    return lines


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
        label = row_label(line.row)
        points = (percent(difference(*pair), signed=True) for pair in pairs)
        rows.append([f"{label} - batch", "", *points])
        rows.append([f"{label} / batch", "", *(Value(ratio(*pair), 2) for pair in pairs)])
    return rows


def accuracy_table(runs: list[FinishedRun], unit: str, separate: bool) -> Table:
    """Accuracy by split and cell type; by site the paper's figures stand below."""
    lines = lines_of(runs, unit, separate)
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
        rows += [[f"The paper ({PAPER_DATA})"], *_paper_rows()]
    how = "" if unit == "site" else " (mean log-probability over its sites)"
    kind = "separate models, each trained on that cell type alone"
    if not separate:
        kind = "a break-down of one model trained on all of them"
    caption = f"Test accuracy (%) by {unit}{how}; cell types: {kind}"
    return Table(caption, HEAD, rows, notes)


def paper_table(runs: list[FinishedRun]) -> Table:
    """The paper's Table 1: its two splits by site, each row above the paper's own.

    A cell without runs is a dash. The runs are of one normalisation.
    """
    parts_of = {line.row: line for line in lines_of(runs, "site")}
    separate = {line.row: line for line in lines_of(runs, "site", separate=True)}
    nothing: list[Score] = [{} for _ in COLUMNS]
    ours, parts = [], []
    for protocol in ("batch", "random_site"):
        row = (protocol, runs[0].row[1])
        parts.append(parts_of.get(row, Line(row, nothing)))
        # `lines_of` leaves out a row that has runs on all cell types alone.
        only_all = Line(row, parts[-1].scores[:1] + nothing[1:])
        ours.append(separate.get(row, only_all))
    here = [line.cells() for line in ours] + gaps(ours)
    rows: list[list[Cell]] = []
    for own, (label, *cells) in zip(here, _paper_rows(), strict=True):
        rows += [own, [f"The paper: {label}", *cells]]
    rows += [[f"{label}, model on all cell types", *cells]
             for label, *cells in (line.cells() for line in parts)]  # fmt: skip
    notes = [
        SPREAD_NOTE + " Cell types: separate models, each trained on that cell type alone; in the "
        "last two rows a break-down of the model trained on all."
    ]
    return Table("Table 1. Test accuracy by site, %", HEAD, rows, notes)


def settings_table(runs: list[FinishedRun]) -> Table:
    """Data, settings and results of each run."""
    head = [
        *("run", "split", "cell type", "fold", "seed", "train sites", "test sites", "epochs"),
        *("batch size", "learning rate", "site %", "well %", "top-5 %", "lowest experiment"),
        *("its %", "loss"),
    ]
    rows: list[list[Cell]] = []
    for run in sorted(runs, key=lambda run: (row_label(run.row), run.cell_type, run.unit)):
        data, optim, accuracy = run.results["data"], run.config["optim"], run.accuracy
        lowest, value = worst_experiment(accuracy["site"]["experiment"])
        whole = (run.unit.fold, run.unit.seed, data["train_sites"], data["test_sites"],
                 run.results["epochs"])  # fmt: skip
        rows.append([
            run.path.resolve().name, row_label(run.row), run.cell_type,
            *(Value(number, 0) for number in whole),
            *(Value(optim[name], None) for name in ("batch_size", "learning_rate")),
            *(Value(100 * accuracy[unit]["all"]) for unit in ("site", "well")),
            Value(100 * accuracy["top5"]), lowest, Value(100 * value),
            Value(run.results["loss"], 3),
        ])  # fmt: skip
    return Table("Data and settings of each run", head, rows)


def beside_paper(screen: Screen, runs: list[FinishedRun]) -> Table:
    """What keeps the figures of the two from being one."""
    source = SOURCES.get(screen.source, screen.source)
    crop = runs[0].config["data"]["crop"]
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
        ["network", screen.model, "ResNet-50"],
        ["epochs", f"{runs[0].results['epochs']:,}", "not known"],
        ["±", "sample standard deviation over folds", "not said"],
    ]
    return Table("Here and in the paper", ["", "here", "the paper"], rows)


def tables(screen: Screen, runs: list[FinishedRun]) -> list[Table]:
    """Accuracy by site and by well, and what was measured here and in the paper."""
    kinds = sorted({run.cell_type != "all" for run in runs})  # a break-down, separate models
    found = [accuracy_table(runs, unit, kind) for kind in kinds for unit in ("site", "well")]
    return [*found, beside_paper(screen, runs)]


def describe(screen: Screen, runs: list[FinishedRun]) -> str:
    """Sentences that say what the figures were measured on."""

    def span(values: list[int]) -> str:
        low, high = min(values), max(values)
        return f"{low:,}" if low == high else f"{low:,} to {high:,}"

    folds = ", ".join(str(fold) for fold in sorted({run.unit.fold for run in runs}))
    data = [run.results["data"] for run in runs]
    return (
        f"Measured on {screen.name} {screen.version}: {SOURCES.get(screen.source, screen.source)}. "
        f"{screen.classes:,} classes (chance {100 / screen.classes:.1f} %), "
        f"{screen.image_size} x {screen.image_size} px, {span([d['train_sites'] for d in data])} "
        f"training and {span([d['test_sites'] for d in data])} test sites per run. "
        f"Model {screen.model}, {runs[0].results['epochs']:,} epochs; folds {folds}."
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


def _row_order(row: tuple[str, str]) -> list[tuple[int, str]]:
    """By normalisation, then protocol, in the order of their tables; unknown ones last."""
    pairs = zip(reversed(row), (NORMALISATIONS, PROTOCOLS), strict=True)
    return [([*known, name].index(name), name) for name, known in pairs]
