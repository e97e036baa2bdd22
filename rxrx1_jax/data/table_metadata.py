"""The metadata of a screen as `Sites`: from a release, Kaggle's or WILDS's files, or a table.

Files of a release go through the builder's reader, with all its checks.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rxrx1_jax.config import user_path
from rxrx1_jax.data.builder.release import kaggle, metadata, storage
from rxrx1_jax.data.images import METADATA, TEXT, DatasetError, Sites, structured
from rxrx1_jax.data.table_ids import parts_of

KAGGLE = [name for name in storage.TABLES if name != "metadata.csv"]
EXPECTED = (
    f"expected metadata.csv, or the archive with it ({kaggle.METADATA_URL}, 1.3 MB), or Kaggle's"
    f" {', '.join(KAGGLE)}"
)


def read_metadata(path: str | os.PathLike, unit: str = "site") -> Sites:
    """The columns METADATA of all sites or wells, in the order of the file.

    Args:
      path: metadata.csv of the release or of WILDS, also packed by gzip or zip; the folder that
        has it; or Kaggle's folder, archive, or one of its four tables, beside the others. Kaggle
        lists wells; both sites of each are taken to exist.
      unit: "site" or "well". Of a well, site_id is the well's id and site is 1.

    Raises ValueError: names file, line and field; OSError.
    """
    path = user_path(path)
    tables = path.parent if path.name in KAGGLE else path
    if not (tables.is_dir() or tables.suffix.lower() == ".zip"):
        found = _sites_of(path.read_bytes(), str(path))
    else:
        held = storage.Storage(tables)
        if path.name not in KAGGLE and held.holds("metadata.csv"):
            found = _sites_of(held.read("metadata.csv"), held.describe("metadata.csv"))
        elif any(held.holds(name) for name in KAGGLE):
            wells = [well.site for well in kaggle.read_wells(held).values()]
            found = [
                site._replace(site=i, site_id=f"{site.well_id}_{i}") for site in wells
                for i in map(int, metadata.SITES)
            ]  # fmt: skip
        else:
            raise DatasetError(f"{path}: holds no table of sites; {EXPECTED}")
    columns = zip(*found, strict=True)
    sites = structured(dict(zip(METADATA, columns, strict=True)))
    return sites if unit == "site" else as_wells(sites)


def _sites_of(data: bytes, source: str) -> list[Any]:
    read = metadata.read_metadata(data, source, metadata.WILDS_DATASETS)
    return [site for _, site in read.values()]


def as_wells(sites: Sites) -> Sites:
    """A row per well, in the order of their first sites."""
    _, first = np.unique(sites["well_id"], return_index=True)
    wells = sites[np.sort(first)].copy()
    wells["site_id"], wells["site"] = wells["well_id"], 1
    return wells


def metadata_in(
    table: pa.Table, given: Mapping[str, str], unit: str, ids: np.ndarray, path: Path
) -> Sites:
    """The metadata that a table of embeddings has itself.

    Args:
      given: our name of a column: its name in the table.
      ids: str [n] of `unit`.

    What an id says (experiment, plate, well, site, cell type) is taken from there; well_type and
    sirna_id are needed.
    """
    needed = [name for name in ("well_type", "sirna_id") if name not in given]
    if needed:
        raise DatasetError(
            f"{path}: no columns {' and '.join(needed)}, and no metadata was given; {EXPECTED}"
        )
    columns = parts_of(ids, unit, path)
    columns |= {"dataset": [""] * len(ids), "sirna": [""] * len(ids)}
    for name in ("cell_type", "dataset", "well_type", "sirna", "sirna_id"):
        if name in given:
            columns[name] = _column(table[given[name]], name, f"{path}, column {given[name]}")
    types = sorted(set(columns["well_type"]) - set(metadata.WELL_TYPES))
    if types:
        raise DatasetError(
            f"{path}, column {given['well_type']}: found {types[0]!r}; expected one of"
            f" {', '.join(metadata.WELL_TYPES)}"
        )
    return structured({name: columns[name] for name in METADATA})


def _column(values: pa.ChunkedArray, name: str, where: str) -> list:
    found = values.to_pylist()
    if name in TEXT:
        odd, expected = [value for value in found if not isinstance(value, str)], "text"
    else:
        numbers = [_whole(value) for value in found]
        odd = [value for value, number in zip(found, numbers, strict=True) if number is None]
        found, expected = numbers, "a whole number"
    if odd:
        also = "" if name in TEXT else "; names of siRNAs are no ids: give the metadata file"
        raise DatasetError(f"{where}: found {odd[0]!r}; expected {expected} in every row{also}")
    return found


def _whole(value: Any) -> int | None:
    try:
        return int(value) if float(value) % 1 == 0 else None
    except (TypeError, ValueError):
        return None
