"""The files of a run that a person can touch: one reader, with a schema for each kind of file.

A fault is one line: the file, the place in it, what was expected, and what to do.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv, types

from rxrx1_jax import config
from rxrx1_jax.data.files import parse_json


class ReportError(ValueError):
    """A run directory that cannot be reported on; the message is one line."""


class Kind(NamedTuple):
    expected: str
    fits: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(least: float) -> Kind:
    return Kind(
        "a whole number" + (f", {least} or more" if least > -2**31 else ""),
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least,
    )


TEXT = Kind("text", lambda value: isinstance(value, str))
NUMBER = Kind("a number", _is_number)
FRACTION = Kind("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1)

# "section.name" -> what it holds. That of config.json is `config.FIELDS`.
RESULTS = {
    **{f"data.{name}": TEXT for name in ("name", "version", "source")},
    **{f"data.{name}": _whole(1) for name in ("classes", "image_size")},
    **{f"data.{name}": _whole(1) for name in ("train_sites", "test_sites")},
    **{name: TEXT for name in ("protocol", "cell_type", "normalisation", "model")},
    **{name: _whole(0) for name in ("fold", "epochs", "step", "total_steps")},
    **{"seed": _whole(-(2**31)), "loss": NUMBER},
    **{"accuracy.site.all": FRACTION, "accuracy.well.all": FRACTION},
}
SETTINGS = {  # field of results.json -> the setting that it repeats
    **{name: f"data.{name}" for name in ("protocol", "fold", "cell_type", "normalisation")},
    **{"model": "model.name", "epochs": "optim.epochs", "seed": "train.seed"},
}
ENVIRONMENT = {  # each where it is there
    "devices": Kind("a list", lambda value: isinstance(value, list)),
    "packages": Kind("an object", lambda value: isinstance(value, dict)),
}
METRICS = {  # of each line
    "step": _whole(0),
    "epoch": Kind("0 or more", lambda value: _is_number(value) and 0 <= value < math.inf),
}

_STRING = Kind("text", lambda column: types.is_string(column) or types.is_large_string(column))
_INTEGER = Kind("whole numbers", types.is_integer)
_INTEGERS = Kind(
    "lists of whole numbers",
    lambda column: types.is_list(column) and types.is_integer(column.value_type),
)
PREDICTIONS = {
    **{name: _STRING for name in ("site_id", "well_id", "cell_type", "experiment")},
    **{name: _INTEGER for name in ("label", "prediction", "well_prediction")},
    "top5": _INTEGERS,
}

EVALUATE = "evaluate the run again (--mode=evaluate)"
RESTORE = "restore it as the run wrote it"


def read_config(path: Path) -> dict[str, Any]:
    """{"section.name": value} of a config.json of any version; "dataset" as it was written."""
    content = read_json(path, RESTORE)
    dataset = content.get("dataset", {}) if isinstance(content, dict) else None
    if not isinstance(dataset, dict):
        raise ReportError(f"{path}: not the settings of a run, expected sections; {RESTORE}")
    try:
        return config.flat(config.upgrade(content)) | config.flat({"dataset": dataset})
    except config.ConfigError as error:
        raise ReportError(f"{path}: {error}; {RESTORE}") from error


def read_results(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a results.json, which must agree with the run's settings."""
    content = read_json(path, EVALUATE)
    _check(path, content, RESULTS, EVALUATE)
    said = {name: (content[name], settings[field]) for name, field in SETTINGS.items()}
    said["data.name"] = content["data"]["name"], settings["data.name"].partition(":")[0]
    for name, (value, of_config) in said.items():
        if value != of_config:
            raise ReportError(
                f"{path}: field {name!r} is {value!r}, config.json has {of_config!r}; {EVALUATE}"
            )
    return content


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Entries of a metrics.jsonl by step. Version 0.2 could repeat a step: the later one counts."""
    entries: dict[tuple[int, bool], dict[str, Any]] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        do, where = "remove the line", f"line {number}: "
        try:
            entry = parse_json(line) if line else {}
        except ValueError as error:
            raise ReportError(f"{path}: {where}not JSON; {do}") from error
        schema = dict.fromkeys(entry if isinstance(entry, dict) else (), NUMBER) | METRICS
        if line:
            _check(path, entry, schema, do, where)
            entries[entry["step"], "test_accuracy" in entry] = entry
    return [entries[key] for key in sorted(entries)]


def read_environment(path: Path) -> dict[str, Any]:
    """The content of an environment.json; empty where there is none."""
    do = f"{RESTORE}, or remove it"
    content = read_json(path, do) if path.exists() else {}
    if not isinstance(content, dict):
        raise ReportError(f"{path}: expected an object; {do}")
    _check(path, content, {k: kind for k, kind in ENVIRONMENT.items() if k in content}, do)
    return content


def read_predictions(path: Path, do: str = EVALUATE) -> pa.Table:
    """The columns of PREDICTIONS, of one site or more, each once."""
    try:
        schema = pq.read_schema(path)
        for name, kind in PREDICTIONS.items():
            if name not in schema.names:
                raise ReportError(f"{path}: no column {name!r}; {do}")
            found = schema.field(name).type
            if not kind.fits(found):
                raise ReportError(
                    f"{path}: column {name!r} is {found}, expected {kind.expected}; {do}"
                )
        named = ["sirna"] if "sirna" in schema.names else []  # of all real runs
        table = pq.read_table(path, columns=[*PREDICTIONS, *named])
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ReportError(f"{path}: not a Parquet file ({reason}); {do}") from error
    for name in PREDICTIONS:
        nulls = table[name].null_count
        if name == "top5":
            nulls += pc.list_flatten(table[name]).null_count
        if not len(table) or nulls:
            raise ReportError(
                f"{path}: column {name!r} has {nulls} missing values in {len(table)} rows, "
                f"expected one row or more and none missing; {do}"
            )
    sizes = pc.unique(pc.list_value_length(table["top5"])).to_pylist()
    if len(sizes) != 1 or not sizes[0]:
        raise ReportError(f"{path}: column 'top5' has lists of lengths {sizes}; {do}")
    names, counts = pc.value_counts(table["site_id"]).flatten()
    if len(twice := names.filter(pc.greater(counts, 1))):
        raise ReportError(f"{path}: column 'site_id' has {twice[0]} more than once; {do}")
    return table


def read_training_wells(path: Path) -> dict[int, int]:
    """{sirna_id: number of training wells} by a run's metadata.csv; empty where there is none."""
    if not path.exists():
        return {}
    options = csv.ConvertOptions(
        include_columns=["well_id", "sirna_id", "role"], column_types={"sirna_id": pa.int32()}
    )
    try:
        sites = csv.read_csv(path, convert_options=options)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ReportError(f"{path}: not the sites of a run ({reason}); {RESTORE}") from error
    trained = sites.filter(pc.equal(sites["role"], "train"))
    wells = trained.group_by("sirna_id").aggregate([("well_id", "count_distinct")])
    return dict(zip(*(wells[name].to_pylist() for name in ("sirna_id", "well_id_count_distinct")),
                    strict=True))  # fmt: skip


def read_json(path: Path, do: str) -> Any:
    """do: what a user can do about a fault."""
    try:
        return parse_json(path.read_bytes())
    except ValueError as error:
        raise ReportError(f"{path}: not JSON ({error}); {do}") from error


def _check(
    path: Path, content: Any, schema: Mapping[str, Kind], do: str, where: str = ""
) -> None:
    """Raises ReportError for the first field that `content` lacks or that holds something else."""
    for field, kind in schema.items():
        value = content
        for name in field.split("."):
            if not isinstance(value, dict) or name not in value:
                raise ReportError(
                    f"{path}: {where}no field {field!r}, expected {kind.expected}; {do}"
                )
            value = value[name]
        if not kind.fits(value):
            shown = repr(value) if len(repr(value)) < 60 else f"{repr(value)[:57]}..."
            raise ReportError(
                f"{path}: {where}field {field!r} is {shown}, expected {kind.expected}; {do}"
            )
