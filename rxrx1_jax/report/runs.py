"""Finished runs -> what a report needs of each: settings, results, curves and accuracies.

A run directory holds config.json, results.json, metrics.jsonl and predictions.parquet. Accuracies
are computed again from the predictions and must agree with results.json.
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from rxrx1_jax.config import FREE, flat
from rxrx1_jax.training.predictions import accuracies

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
    source: str  # one of report_table.SOURCES
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
