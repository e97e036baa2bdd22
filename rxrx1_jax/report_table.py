"""Finished runs -> the numbers of Table 1: accuracy by protocol and cell type, per fold.

A run directory holds config.json, results.json, metrics.jsonl and predictions.parquet. Accuracies
are computed again from the predictions and must agree with results.json.
"""

import json
import math
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from rxrx1_jax.predictions import accuracies
from rxrx1_jax.settings import FREE, flat

# Column key -> heading. Cell types in the paper's order and spelling.
COLUMNS = {"all": "All", "HUVEC": "HUVEC", "RPE": "RPE", "HEPG2": "HepG2", "U2OS": "U2OS"}
PROTOCOLS = {
    "batch": "Batch",
    "random_site": "Random (by site)",
    "random_well": "Random, by well (strict)",
    "official": "Official split",
}
# plate_control is the paper's normalisation, so its rows carry no remark.
NORMALISATIONS = {
    "plate_control": "",
    "experiment_control": "controls of the experiment",
    "global_control": "controls of all training experiments",
    "site": "each site by itself",
    "none": "no normalisation",
}
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

PREDICTION_COLUMNS = [
    *("well_id", "cell_type", "experiment"),
    *("label", "prediction", "top5", "well_prediction"),
]
RESULTS_FIELDS = (
    *("data", "name", "version", "source", "classes", "image_size", "train_sites", "test_sites"),
    *("protocol", "fold", "cell_type", "normalisation", "model", "epochs", "seed", "loss"),
    *("step", "total_steps"),
)
# Settings in which runs of one table may differ: what it compares, and where or how fast they ran.
# data.name: a screen holds name and version, however the run wrote them.
DIFFERING = {
    *("data.name", "data.fold", "data.protocol", "data.normalisation", "data.cell_type"),
    *FREE,
}
UNFINISHED = "start it again with the same command, which goes on from its last checkpoint"


class ReportError(ValueError):
    """A run directory that cannot be reported on; the message is one line."""


class Screen(NamedTuple):
    """What must be equal for two runs to stand in one table."""

    name: str
    version: str
    source: str  # one of SOURCES
    classes: int
    image_size: int
    model: str


class Run(NamedTuple):
    path: Path
    config: dict[str, Any]
    results: dict[str, Any]
    metrics: list[dict[str, Any]]  # by step, of train and test entries
    accuracy: dict[str, Any]  # fractions, as `predictions.accuracies` gives them

    @property
    def screen(self) -> Screen:
        data = self.results["data"]
        names = (data["name"], data["version"], data["source"])
        return Screen(*names, data["classes"], data["image_size"], self.results["model"])

    @property
    def row(self) -> tuple[str, str]:
        """(protocol, normalisation): the row of Table 1."""
        return self.results["protocol"], self.results["normalisation"]

    @property
    def fold(self) -> int:
        return self.results["fold"]

    @property
    def cell_type(self) -> str:
        """The cell type trained on, or "all"."""
        return self.results["cell_type"]


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


def load_runs(paths: list[Path]) -> dict[Screen, list[Run]]:
    """Reads the runs and groups them by what they measure.

    Raises ReportError naming the run, or the two runs of a screen whose settings disagree.
    """
    screens: dict[Screen, list[Run]] = {}
    seen: dict[tuple[Any, ...], Path] = {}
    for path in paths:
        run = load_run(path)
        if run.screen in screens:
            _check_same_settings(screens[run.screen][0], run)
        key = (run.screen, run.row, run.cell_type, run.fold)
        if key in seen:
            raise ReportError(
                f"{path} and {seen[key]} are both fold {run.fold} of {row_label(run.row)}, cell "
                f"type {run.cell_type}, {run.screen.model}: expected one run a fold; name one"
            )
        seen[key] = path
        screens.setdefault(run.screen, []).append(run)
    return screens


def load_run(path: Path) -> Run:
    if not path.is_dir():
        raise ReportError(f"{path}: no such directory; expected the workdir of a finished run")
    if not (path / "config.json").exists():
        raise ReportError(
            f"{path}: not a run directory (no config.json); expected a --workdir of rxrx1_jax.main"
        )
    for name in ("results.json", "predictions.parquet", "metrics.jsonl"):
        if not (path / name).exists():
            raise ReportError(f"{path}: unfinished run (no {name}); {UNFINISHED}")
    config, results = (_read_json(path / name) for name in ("config.json", "results.json"))
    for key in RESULTS_FIELDS:
        if key not in results and key not in results.get("data", ()):
            raise ReportError(f"{path / 'results.json'}: no field {key!r}; evaluate the run again")
    if results["protocol"] == "wilds":
        raise ReportError(
            f"{path}: protocol wilds has no row in Table 1, it classifies controls too and has "
            f"other test sites; expected runs of {', '.join(PROTOCOLS)}: leave it out, its "
            "accuracies are in its results.json, the leaderboard's in configs/wilds.py"
        )
    step, total = results["step"], results["total_steps"]
    if step < total:  # evaluated at a checkpoint on the way
        raise ReportError(f"{path}: unfinished run (step {step} of {total}); {UNFINISHED}")
    accuracy = accuracies(_read_predictions(path / "predictions.parquet"))
    for unit in ("site", "well"):
        stated = results.get("accuracy", {}).get(unit, {}).get("all", math.nan)
        if not math.isclose(stated, accuracy[unit]["all"], abs_tol=1e-6):
            raise ReportError(
                f"{path}: results.json says accuracy {stated:.4f} by {unit}, predictions.parquet "
                f"gives {accuracy[unit]['all']:.4f}; run --mode=evaluate again"
            )
    return Run(path, config, results, _read_metrics(path / "metrics.jsonl"), accuracy)


def row_label(row: tuple[str, str]) -> str:
    protocol, normalisation = row
    remark = NORMALISATIONS.get(normalisation, normalisation)
    return PROTOCOLS.get(protocol, protocol) + (f", {remark}" if remark else "")


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


def _check_same_settings(first: Run, second: Run) -> None:
    """Raises ReportError for the first setting that two runs of one table must not differ in."""
    one, two = _settings_to_share(first), _settings_to_share(second)
    for field in sorted(one.keys() | two.keys()):
        if one.get(field) != two.get(field):
            raise ReportError(
                f"{second.path} has {field}={two.get(field)!r}, {first.path} has "
                f"{one.get(field)!r}: runs of one table must agree in it; report them separately"
            )


def _settings_to_share(run: Run) -> dict[str, Any]:
    """{"section.name": value}. Of "dataset", which describes the data, only its fingerprint."""
    return {
        field: value
        for field, value in flat(run.config).items()
        if field not in DIFFERING
        and (not field.startswith("dataset.") or field == "dataset.data_fingerprint")
    }


def _row_order(row: tuple[str, str]) -> tuple[int, int, str, str]:
    protocols, normalisations = list(PROTOCOLS), list(NORMALISATIONS)
    protocol, normalisation = row
    return (
        normalisations.index(normalisation) if normalisation in normalisations else 99,
        protocols.index(protocol) if protocol in protocols else 99,
        *row,
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ReportError(f"{path}: not JSON ({error}); evaluate the run again") from error


def _read_predictions(path: Path) -> pa.Table:
    try:
        return pq.read_table(path, columns=PREDICTION_COLUMNS)
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ReportError(f"{path}: unreadable ({reason}); run --mode=evaluate again") from error


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    """Entries in the order of steps. A resumed run repeats steps: the later entry counts."""
    entries: dict[tuple[int, bool], dict[str, Any]] = {}
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
            entries[entry["step"], "test_accuracy" in entry] = entry
        except (ValueError, KeyError, TypeError):
            continue  # cut short when the run was killed; the resumed run wrote the step again
    return [entries[key] for key in sorted(entries)]
