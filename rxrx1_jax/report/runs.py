"""Finished runs -> what a report needs of each: settings, results, curves and accuracies.

A run directory holds config.json, results.json, metrics.jsonl and predictions.parquet. Accuracies
are computed again from the predictions and must agree with results.json.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rxrx1_jax.config import FREE, flat
from rxrx1_jax.methods.statistics import Unit
from rxrx1_jax.report import files
from rxrx1_jax.report.files import ReportError
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
# Settings in which runs of one table may differ: what it compares, and where or how fast they ran.
# data.name: a screen holds name and version, however the run wrote them.
DIFFERING = {
    *("data.name", "data.fold", "data.protocol", "data.normalisation", "data.cell_type"),
    *FREE,
}
DATA = ("dataset.data", "dataset.data_fingerprint")  # fingerprints: today's, that of version 0.2
UNFINISHED = "start it again with the same command; it resumes at its last checkpoint"


class Screen(NamedTuple):
    """What must be equal for two runs to stand in one table."""

    name: str
    version: str
    source: str  # one of table1.SOURCES
    classes: int
    image_size: int
    model: str


class FinishedRun(NamedTuple):
    """A run as reports see it: what it wrote, read and checked."""

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
    def unit(self) -> Unit:
        """World, fold and seed: what its figures are keyed by."""
        return Unit(self.results["data"]["name"], self.results["fold"], self.results["seed"])

    @property
    def cell_type(self) -> str:
        """The cell type trained on, or "all"."""
        return self.results["cell_type"]


def load_runs(paths: list[Path]) -> dict[Screen, list[FinishedRun]]:
    """Reads the runs and groups them by what they measure.

    Raises ReportError naming the run, or the two runs of a screen whose settings disagree.
    """
    screens: dict[Screen, list[FinishedRun]] = {}
    seen: dict[tuple[Any, ...], Path] = {}
    for path in paths:
        run = load_run(path)
        if run.screen in screens:
            first = screens[run.screen][0]
            check_same_settings(
                first.path, _settings_to_share(first), path, _settings_to_share(run)
            )
        key = (run.screen, run.row, run.cell_type, run.unit.fold)
        if key in seen:
            raise ReportError(
                f"{path} and {seen[key]} are both fold {run.unit.fold} of {row_label(run.row)}, "
                f"cell type {run.cell_type}, {run.screen.model}: expected one run per fold; name "
                "one of them"
            )
        seen[key] = path
        screens.setdefault(run.screen, []).append(run)
    return screens


def load_run(path: Path) -> FinishedRun:
    if not path.is_dir():
        raise ReportError(f"{path}: no such directory; expected the workdir of a finished run")
    if not (path / "config.json").exists():
        raise ReportError(
            f"{path}: not a run directory (no config.json); expected a --workdir of rxrx1_jax.main"
        )
    for name in ("results.json", "predictions.parquet", "metrics.jsonl"):
        if not (path / name).exists():
            raise ReportError(f"{path}: unfinished run (no {name}); {UNFINISHED}")
    config = files.read_config(path / "config.json")
    results = files.read_results(path / "results.json")
    if results["protocol"] == "wilds":
        raise ReportError(
            f"{path}: protocol wilds has no row in Table 1, it classifies controls too and has "
            f"other test sites; expected runs of {', '.join(PROTOCOLS)}: leave it out, its "
            "accuracies are in its results.json, the leaderboard's in configs/wilds.py"
        )
    step, total = results["step"], results["total_steps"]
    if step < total:  # evaluated at a checkpoint on the way
        raise ReportError(f"{path}: unfinished run (step {step} of {total}); {UNFINISHED}")
    accuracy = accuracies(files.read_predictions(path / "predictions.parquet"))
    for unit in ("site", "well"):
        stated = results["accuracy"][unit]["all"]
        if not math.isclose(stated, accuracy[unit]["all"], abs_tol=1e-6):
            raise ReportError(
                f"{path}: results.json says accuracy {stated:.4f} by {unit}, predictions.parquet "
                f"gives {accuracy[unit]['all']:.4f}; {files.EVALUATE}"
            )
    return FinishedRun(path, config, results, files.read_metrics(path / "metrics.jsonl"), accuracy)


def shared_of(runs: Iterable[FinishedRun]) -> float:
    """Test sites per training site, the largest of the runs: what `statistics.compare` takes."""
    data = [run.results["data"] for run in runs]
    return max((d["test_sites"] / d["train_sites"] for d in data), default=0.0)


def row_label(row: tuple[str, str]) -> str:
    protocol, normalisation = row
    remark = NORMALISATIONS.get(normalisation, normalisation)
    return PROTOCOLS.get(protocol, protocol) + (f", {remark}" if remark else "")


def check_same_settings(
    first: Path, one: Mapping[str, Any], second: Path, two: Mapping[str, Any]
) -> None:
    """Raises ReportError for the first of these settings, {"section.name": value}, that differs."""
    for field in sorted(one.keys() & two.keys()):  # versions describe the data by other fields
        if one[field] != two[field]:
            raise ReportError(
                f"{second} has {field}={two[field]!r}, {first} has {one[field]!r}: the runs of one"
                " table must agree in it; name the others separately"
            )


def _settings_to_share(run: FinishedRun) -> dict[str, Any]:
    """{"section.name": value}. Of "dataset", which describes the data, only their fingerprint."""
    return {
        field: value
        for field, value in flat(run.config).items()
        if field not in DIFFERING
        and (not field.startswith("dataset.") or field in DATA)
    }
