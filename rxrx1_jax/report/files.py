"""The files of a run that a person can touch: one reader, with a schema for each kind of file.

A fault is one line: the file, the field, what was expected, and what to do.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import types

from rxrx1_jax import config


class ReportError(ValueError):
    """A run directory that cannot be reported on; the message is one line."""


class Kind(NamedTuple):
    expected: str
    fits: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(least: int) -> Kind:
    return Kind(
        f"a whole number, {least} or more",
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
    **{name: _whole(0) for name in ("fold", "seed", "epochs", "step", "total_steps")},
    **{"loss": NUMBER, "accuracy.site.all": FRACTION, "accuracy.well.all": FRACTION},
}
METRICS = {"step": _whole(0), "epoch": NUMBER}  # of each line

_STRING = Kind("text", lambda column: types.is_string(column) or types.is_large_string(column))
_INTEGER = Kind("whole numbers", types.is_integer)
_INTEGERS = Kind(
    "lists of whole numbers",
    lambda column: types.is_list(column) and types.is_integer(column.value_type),
)
PREDICTIONS = {
    **{name: _STRING for name in ("well_id", "cell_type", "experiment")},
    **{name: _INTEGER for name in ("label", "prediction", "well_prediction")},
    "top5": _INTEGERS,
}

EVALUATE = "evaluate the run again (--mode=evaluate)"


def read_config(path: Path) -> dict[str, Any]:
    """{section: {name: value}} of a config.json of any version, and "dataset" as it was written."""
    do = "restore it as the run wrote it"
    content = _json(path, do)
    dataset = content.get("dataset", {}) if isinstance(content, dict) else None
    if not isinstance(dataset, dict):
        raise ReportError(f"{path}: not the settings of a run, expected sections of fields; {do}")
    try:
        return config.upgrade(content).to_dict() | {"dataset": dataset}
    except config.ConfigError as error:
        raise ReportError(f"{path}: {error}; {do}") from error


def read_results(path: Path) -> dict[str, Any]:
    """The content of a results.json."""
    content = _json(path, EVALUATE)
    _check(path, content, RESULTS, EVALUATE)
    return content


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Entries of a metrics.jsonl by step. A resumed run repeats steps: the later entry counts."""
    entries: dict[tuple[int, bool], dict[str, Any]] = {}
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # cut short when the run was killed; the resumed run wrote the step again
        schema = dict.fromkeys(entry if isinstance(entry, dict) else (), NUMBER) | METRICS
        _check(path, entry, schema, "remove the line", f"line {number}: ")
        entries[entry["step"], "test_accuracy" in entry] = entry
    return [entries[key] for key in sorted(entries)]


def read_predictions(path: Path) -> pa.Table:
    """The columns of PREDICTIONS, of one site or more."""
    try:
        schema = pq.read_schema(path)
        for name, kind in PREDICTIONS.items():
            if name not in schema.names:
                raise ReportError(f"{path}: no column {name!r}; {EVALUATE}")
            found = schema.field(name).type
            if not kind.fits(found):
                raise ReportError(
                    f"{path}: column {name!r} is {found}, expected {kind.expected}; {EVALUATE}"
                )
        table = pq.read_table(path, columns=list(PREDICTIONS))
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ReportError(f"{path}: not a Parquet file ({reason}); {EVALUATE}") from error
    for name in PREDICTIONS:
        if not len(table) or table[name].null_count:
            raise ReportError(
                f"{path}: column {name!r} has {table[name].null_count} missing values of "
                f"{len(table)}, expected one or more and none missing; {EVALUATE}"
            )
    if len(pc.unique(pc.list_value_length(table["top5"]))) != 1:
        raise ReportError(f"{path}: column 'top5' has lists of unequal length; {EVALUATE}")
    return table


def _json(path: Path, do: str) -> Any:
    try:
        return json.loads(path.read_text())
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
