"""Finished runs -> what a report needs of each, and which of them are repetitions of one another.

A run directory holds config.json, results.json, metrics.jsonl and predictions.parquet. Accuracies
are computed again from the predictions and must agree with results.json.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from rxrx1_jax.config import FREE
from rxrx1_jax.data import splits, taught
from rxrx1_jax.methods.statistics import Score, Unit
from rxrx1_jax.report import files
from rxrx1_jax.report.files import ReportError
from rxrx1_jax.training.predictions import accuracies, firsts_of_wells
from rxrx1_jax.training.run_dir import runs_near

PROTOCOLS = {
    "batch": "Batch",
    "random_site": "Random (by site)",
    "random_well": "Random, by well (strict)",
    "official": "Official split",
    "wilds": "WILDS split (controls are classes too)",
}
# plate_control is the paper's normalisation, so its rows carry no remark.
NORMALISATIONS = {
    "plate_control": "",
    "plate_negative_control": "negative controls of the plate",
    "plate_control_robust": "controls of the plate, robust",
    "experiment_control": "controls of the experiment",
    "global_control": "controls of all training experiments",
    "site": "each site by itself",
    "none": "no normalisation",
}
REPETITION = {"data.fold", "data.seed", "train.seed"}
ORIENTATIONS = "eval.orientations"  # the evaluation of a run may differ from its settings in it
# data.name: a screen holds name and version, however the run wrote them. The others change how a
# run is watched or begun.
NO_EFFECT = {
    *FREE, "data.name", "train.log_every", "train.eval_every", "train.checkpoint_every",
    "train.parent",
} - {ORIENTATIONS}  # fmt: skip
TASK = ("data.protocol", "data.cell_type")  # with fold and seed they make the split
TABLE1 = {*TASK, "data.normalisation"}  # what Table 1 compares
DATA = ("dataset.data", "dataset.data_fingerprint")  # fingerprints: today's, that of version 0.2
WELL_COLUMNS = ("well_id", "label", "well_prediction", "sirna")
UNFINISHED = "start it again with the same command; it resumes at its last checkpoint"


class Screen(NamedTuple):
    """Data that a section of the page is about."""

    name: str
    version: str
    source: str  # one of table1.SOURCES
    classes: int
    image_size: int


class FinishedRun(NamedTuple):
    """A run as reports see it: what it wrote, read and checked."""

    path: Path
    config: dict[str, Any]  # {"section.name": value}
    results: dict[str, Any]
    metrics: list[dict[str, Any]]  # by step, of train and test entries
    accuracy: dict[str, Any]  # fractions, as `predictions.accuracies` gives them
    environment: dict[str, Any]
    test: str  # fingerprint of the test sites and their labels
    wells: pa.Table  # a row of the predictions for each test well
    trained: dict[int, int]  # {sirna_id: training wells}; empty where the run does not say

    @property
    def screen(self) -> Screen:
        data = self.results["data"]
        return Screen(*(data[name] for name in Screen._fields))

    @property
    def row(self) -> tuple[str, str]:
        """(protocol, normalisation): the row of Table 1."""
        return self.config["data.protocol"], self.config["data.normalisation"]

    @property
    def unit(self) -> Unit:
        return unit_of(self.config)

    @property
    def training(self) -> list[float]:
        """The last accuracy on training batches that it logged; empty without one."""
        return [entry["train_accuracy"] for entry in self.metrics if "train_accuracy" in entry][-1:]

    @property
    def uses(self) -> frozenset[str]:
        """What its training saw beside its training sites."""
        return taught.uses(self.config)

    @property
    def cell_type(self) -> str:
        """The cell type trained on, or "all"."""
        return self.config["data.cell_type"]


class Group(NamedTuple):
    """Runs that differ in fold and seeds alone: a row of a table."""

    label: str
    settings: dict[str, Any]  # in which groups differ
    of_table1: bool  # whether the groups are rows of Table 1
    runs: list[FinishedRun]

    def score(self, of: Callable[[Mapping[str, Any]], float]) -> Score:
        return {run.unit: of(run.accuracy) for run in self.runs}

    @property
    def by_site(self) -> Score:
        return self.score(lambda accuracy: accuracy["site"]["all"])

    @property
    def training(self) -> Score:
        return {run.unit: value for run in self.runs for value in run.training}

    @property
    def task(self) -> list[Any]:
        return [self.runs[0].config[field] for field in TASK]

    @property
    def method(self) -> dict[str, Any]:
        return {name: value for name, value in self.settings.items() if name not in TASK}


def load_runs(paths: Sequence[Path]) -> dict[Screen, list[FinishedRun]]:
    """Reads the runs, each once, by what they measure.

    Raises ReportError: a run that cannot be read, or two that must not be compared.
    """
    screens: dict[Screen, list[FinishedRun]] = {}
    for path in {path.resolve(): path for path in paths}.values():
        run = load_run(path)
        screens.setdefault(run.screen, []).append(run)
    for runs in screens.values():
        _check_comparable(runs)
    return screens


def as_worlds(screens: Mapping[Screen, Sequence[FinishedRun]]) -> dict[Screen, list[FinishedRun]]:
    """One section of runs on several datasets, each a world. Their experiments bear its name.

    Raises ReportError: datasets of other designs, or two names of the same data.
    """
    (first, *others), known = screens, dict[tuple[str, str], Path]()
    for screen in others:
        if screen[2:] != first[2:]:
            raise ReportError(
                f"--worlds: {first.name} has {first.classes} classes, {first.image_size} px"
                f" ({first.source}), {screen.name} {screen.classes}, {screen.image_size} px"
                f" ({screen.source}): expected worlds of one design; report them separately"
            )
    found = list[FinishedRun]()
    for screen, runs in screens.items():
        for data in {(f, run.config[f]) for run in runs for f in DATA if f in run.config}:
            if known.setdefault(data, runs[0].path) != runs[0].path:
                raise ReportError(
                    f"--worlds: {known[data]} and {runs[0].path} hold the same data: expected"
                    " independent screens; leave one out"
                )
        for run in runs:
            site = run.accuracy["site"]
            named = {f"{name} of {screen.name}": x for name, x in site["experiment"].items()}
            accuracy = run.accuracy | {"site": site | {"experiment": named}}
            found.append(run._replace(accuracy=accuracy))
    return {first: found}


def load_run(path: Path) -> FinishedRun:
    if not (path / "config.json").exists():
        raise ReportError(f"{path}: no run (no config.json); expected {runs_near(path)}")
    for name in ("results.json", "predictions.parquet", "metrics.jsonl"):
        if not (path / name).exists():
            raise ReportError(f"{path}: unfinished run (no {name}); {UNFINISHED}")
    config = files.read_config(path / "config.json")
    results = files.read_results(path / "results.json", config)
    config[ORIENTATIONS] = bool(results.get("orientations"))
    step, total = results["step"], results["total_steps"]
    if step < total:  # evaluated at a checkpoint on the way
        raise ReportError(f"{path}: unfinished run (step {step} of {total}); {UNFINISHED}")
    table = files.read_predictions(path / "predictions.parquet")
    accuracy = accuracies(table)
    said = {"test sites": (results["data"]["test_sites"], len(table))}
    said |= {
        f"accuracy by {unit}": (results["accuracy"][unit]["all"], accuracy[unit]["all"])
        for unit in ("site", "well")
    }
    for what, (stated, found) in said.items():
        if not math.isclose(stated, found, abs_tol=1e-6):
            raise ReportError(
                f"{path}: results.json has {what} {stated:.6g}, predictions.parquet gives "
                f"{found:.6g}; {files.EVALUATE}"
            )
    if results["accuracy"] != accuracy:
        raise ReportError(
            f"{path}: results.json has other accuracies of cell types or experiments than "
            f"predictions.parquet gives; {files.EVALUATE}"
        )
    tested = table.select(["site_id", "label"]).sort_by("site_id")
    test = hashlib.blake2b("\n".join(tested["site_id"].to_pylist()).encode(), digest_size=8)
    test.update(tested["label"].to_numpy().astype(np.int64).tobytes())
    metrics = files.read_metrics(path / "metrics.jsonl")
    environment = files.read_environment(path / "environment.json")
    trained = files.read_training_wells(path / "metadata.csv")
    columns = [name for name in WELL_COLUMNS if name in table.column_names]
    wells = table.select(columns).take(firsts_of_wells(table))
    return FinishedRun(
        path, config, results, metrics, accuracy, environment, test.hexdigest(), wells, trained
    )


def group(runs: Sequence[FinishedRun], as_table1: bool = True) -> list[Group]:
    """Runs of a screen by the settings in which they differ; as rows of Table 1 where they can be.

    Raises ReportError: two runs of a group are of the same fold and seeds.
    """
    fields = differing([run.config for run in runs])
    of_table1 = as_table1 and set(fields) <= TABLE1 and all(r.row[0] != "wilds" for r in runs)
    if of_table1:
        runs = sorted(runs, key=lambda run: row_order(run.row))
        fields = [field for field in fields if field != "data.cell_type"]  # columns of Table 1
    named: dict[str, Group] = {}
    for run in runs:
        label = "" if of_table1 else label_of(run.config, fields)
        label = label or row_label(run.row)
        settings = {field: run.config[field] for field in fields}
        mine = named.setdefault(label, Group(label, settings, of_table1, [])).runs
        for other in mine:
            if (other.unit, other.cell_type) == (run.unit, run.cell_type):
                raise ReportError(
                    f"{run.path} and {other.path} have the same settings, fold and seed: expected "
                    "one of them; leave the other out"
                )
        mine.append(run)
    return list(named.values())


def differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The fields in which methods or tasks differ; not those that only tell repetitions apart."""
    return [
        field for field in configs[0]
        if not field.startswith("dataset.") and field not in REPETITION | NO_EFFECT
        and len({config[field] for config in configs}) > 1
    ]  # fmt: skip


def label_of(config: Mapping[str, Any], fields: Sequence[str]) -> str:
    pairs = ((field, config[field]) for field in fields)
    return ", ".join(f"no {field}" if value == "" else f"{field}={value}" for field, value in pairs)


def unit_of(config: Mapping[str, Any]) -> Unit:
    """World, fold and seed. Folds of further draws of the split (data.seed) are counted on."""
    world, _, _ = config["data.name"].partition(":")
    fold = splits.FOLDS * config["data.seed"] + config["data.fold"]
    return Unit(world, fold, config["train.seed"])


def shared_of(runs: Iterable[FinishedRun]) -> float:
    """Test sites per training site, the largest of the runs: what `statistics.compare` takes."""
    data = [run.results["data"] for run in runs]
    return max((d["test_sites"] / d["train_sites"] for d in data), default=0.0)


def row_label(row: tuple[str, str]) -> str:
    protocol, normalisation = row
    remark = NORMALISATIONS.get(normalisation, normalisation)
    return PROTOCOLS.get(protocol, protocol) + (f", {remark}" if remark else "")


def row_order(row: tuple[str, str]) -> list[tuple[int, str]]:
    """By normalisation, then protocol, in the order of their tables; unknown ones last."""
    pairs = zip(reversed(row), (NORMALISATIONS, PROTOCOLS), strict=True)
    return [([*known, name].index(name), name) for name, known in pairs]


def _check_comparable(runs: Sequence[FinishedRun]) -> None:
    """Raises ReportError for the first two runs with other data, or other test sites of a fold."""
    first: dict[tuple[Any, ...], tuple[Path, str]] = {}
    for run in runs:
        task = [run.config[field] for field in TASK]
        held = {(field,): run.config[field] for field in DATA if field in run.config}
        for what, value in {**held, ("test sites", *task, *run.unit[:2]): run.test}.items():
            path, known = first.setdefault(what, (run.path, value))
            if value != known:
                raise ReportError(
                    f"{run.path} and {path} differ in {what[0]} ({value} and {known}): expected the"
                    " same; report them separately"
                )
