"""Names of sites and wells, however a table spells them -> ids of the release, and their rows.

    HUVEC-01_1_B02_1        site_id of the release, and HUVEC-01_1_B02, its well_id
    HUVEC-1, Plate1, B2     experiment, plate and well in columns of their own, and site or s1
    HUVEC-01/Plate1/B02_s1  the path of an image
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from rxrx1_jax.data.images import DatasetError

_EXPERIMENT = re.compile(r"([A-Za-z0-9]+)[-_ ]0*([0-9]+)")
_PLATE = re.compile(r"(?:(.*?)[-_ /]*)?(?:plate)?[-_ ]*0*([1-9][0-9]*)(?:\.0*)?", re.IGNORECASE)
_WELL = re.compile(r"([A-Za-z])0*([0-9]{1,2})")
_SITE = re.compile(r"(?:site|s|field|f)?[-_ ]*0*([0-9]+)(?:\.0*)?", re.IGNORECASE)
_ID = re.compile(
    r"(?:.*/)?([A-Za-z0-9]+-[0-9]+)[_/](?:plate)?([0-9]+)[_/]([A-Z][0-9]{1,2})"
    r"(?:[_/]s?([0-9]+))?(?:_w[0-9])?(?:\.[a-z]+)?",
    re.IGNORECASE,
)
SHAPES = {"site": "HUVEC-01_1_B02_1", "well": "HUVEC-01_1_B02"}
IDS = "site_id, or well_id, or experiment, plate, well (and site), also as Metadata_Plate ..."


class Ids(NamedTuple):
    """What the rows of a table are."""

    unit: str  # "site" or "well"
    ids: np.ndarray  # str [n]
    columns: frozenset[str]  # that say so


def ids_of(table: pa.Table, given: Mapping[str, str], path: Path) -> Ids:
    """The ids of a table's rows, as the release spells them.

    Args:
      given: our name of a column: its name in the table.

    Raises DatasetError: there are none, or some rows name sites and others wells.
    """
    if "site_id" in given:
        return _spelled(table, given["site_id"], "site", path)
    if {"plate", "well"} <= given.keys():
        composed = _composed(table, given, path)
        if composed is not None:
            return composed
    if "well_id" in given:
        return _with_site(_spelled(table, given["well_id"], "well", path), table, given, path)
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_string(column.type) and _ID.fullmatch(str(column[0])):
            return _spelled(table, name, "site", path)
    shown = ", ".join(table.column_names[:6]) + (", ..." if table.num_columns > 6 else "")
    raise DatasetError(
        f"{path}: no ids of sites or wells among the columns {shown}; expected {IDS}: add them"
    )


def parts_of(ids: np.ndarray, unit: str, path: Path) -> dict[str, list[Any]]:
    """The columns that ids of the release hold: site_id, well_id, experiment, plate ..."""
    found = [_ID.fullmatch(text) for text in ids.tolist()]
    if not all(found):
        odd = ids[[match is None for match in found].index(True)]
        raise DatasetError(f"{path}: found the id {odd!r}; expected one like {SHAPES[unit]}")
    parts = [match.groups() for match in found if match]
    return {
        "site_id": ids.tolist(),
        "well_id": [f"{experiment}_{plate}_{well}" for experiment, plate, well, _ in parts],
        "cell_type": [experiment.split("-")[0] for experiment, *_ in parts],
        "experiment": [experiment for experiment, *_ in parts],
        "plate": [int(plate) for _, plate, _, _ in parts],
        "well": [well for _, _, well, _ in parts],
        "site": [int(site or 1) for *_, site in parts],
    }


def _composed(table: pa.Table, given: Mapping[str, str], path: Path) -> Ids | None:
    """Ids of columns; None if nothing says which experiment a plate is of."""
    plates = [_PLATE.fullmatch(text) for text in _texts(table, given["plate"])]
    wells = [_WELL.fullmatch(text) for text in _texts(table, given["well"])]
    for name, found, expected in (("plate", plates, "1 or Plate1"), ("well", wells, "B02")):
        if not all(found):
            odd = table[given[name]][found.index(None)]
            raise DatasetError(
                f"{path}, column {given[name]}: found {str(odd)!r}; expected such as {expected}"
            )
    if "experiment" in given:
        experiments = _texts(table, given["experiment"])
    else:
        experiments = [match[1] or "" for match in plates if match]
        if not all(experiments):
            return None
    spelled = {text: _experiment(text) for text in set(experiments)}
    ids = [
        f"{spelled[experiment]}_{plate[2]}_{well[1].upper()}{int(well[2]):02}"
        for experiment, plate, well in zip(experiments, plates, wells, strict=True)
        if plate and well
    ]
    columns = frozenset(given[name] for name in ("experiment", "plate", "well") if name in given)
    return _with_site(Ids("well", np.array(ids), columns), table, given, path)


def _with_site(wells: Ids, table: pa.Table, given: Mapping[str, str], path: Path) -> Ids:
    """The sites of these wells, if a column names them."""
    name = given.get("site", "")
    if not name or table[name].null_count == len(table):
        return wells
    texts = _texts(table, name)
    found = [_SITE.fullmatch(text) for text in texts]
    if not all(found):
        odd = texts[found.index(None)]
        raise DatasetError(f"{path}, column {name}: found {odd!r}; expected 1 or 2")
    numbers = [int(match[1]) for match in found if match]
    ids = [f"{well}_{number}" for well, number in zip(wells.ids.tolist(), numbers, strict=True)]
    return Ids("site", np.array(ids), wells.columns | {name})


def _experiment(text: str) -> str:
    match = _EXPERIMENT.fullmatch(text)
    return f"{match[1].upper()}-{int(match[2]):02}" if match else text


def _spelled(table: pa.Table, column: str, unit: str, path: Path) -> Ids:
    """Ids as the release spells them; of another form, as they are."""
    texts = _texts(table, column)
    found = [_ID.fullmatch(text) for text in texts]
    if not all(found):
        return Ids(unit, np.array(texts), frozenset({column}))
    ids, sites = [], 0
    for experiment, plate, well, site in (match.groups() for match in found if match):
        name = f"{_experiment(experiment)}_{int(plate)}_{well[0].upper()}{int(well[1:]):02}"
        sites += site is not None
        ids.append(name if site is None else f"{name}_{int(site)}")
    if sites not in (0, len(ids)):
        raise DatasetError(
            f"{path}: {sites} of {len(ids)} ids name a site, the others a well; expected"
            f" {' or '.join(SHAPES.values())} in every row"
        )
    return Ids("site" if sites else "well", np.array(ids), frozenset({column}))


def _texts(table: pa.Table, name: str) -> list[str]:
    return ["" if value is None else str(value).strip() for value in table[name].to_pylist()]
