"""The table of sites, made again from the records: for datasets of version 1, and for `verify`."""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow_datasets as tfds
from tqdm import tqdm

from .. import machine, table
from ..examples import StoredImage
from ..release import metadata
from . import stored

Entry = tuple[Path, dict[str, Any], StoredImage]  # file, fields of the record, its image


def write_table(builder: tfds.core.DatasetBuilder) -> Path:
    """Writes `sites.parquet` beside the records, and its checksum into metadata.json.

    Every record is read and compared with its checksum. A kill leaves the dataset as it was, or
    with a table that metadata.json does not know yet: then the same command writes it again.

    Returns:
      The path of the table.

    Raises:
      DatasetError: a damaged file, by name; or records that are no TFRecords.
    """
    info, folder = builder.info, Path(builder.data_path)
    if info.file_format.value != "tfrecord":
        raise stored.DatasetError(
            f"{folder} is stored as {info.file_format.value}, training reads tfrecord; build the"
            " dataset with --file_format=tfrecord"
        )
    records: list[tuple[int, dict[str, Any], StoredImage]] = []
    numbers: dict[Path, int] = {}  # of the files
    for name in tqdm(info.splits, "Reading", unit=" experiments"):
        entries, faults = read_experiment(builder, name)
        for fault in itertools.chain(*faults.values()):
            raise stored.DatasetError(f"{fault}; restore the file or build the dataset again")
        for file in stored.experiment_files(builder, name):
            numbers[file] = len(numbers)
        records += ((numbers[file], fields, image) for file, fields, image in entries)
    for row, (_, fields, _) in zip(_release_rows(records, info.metadata), records, strict=True):
        fields["release_row"] = row
    sizes = {file.name: file.stat().st_size for file in numbers}
    channels, size, _ = info.features["image"].shape
    entry = table.write(table.make(records, channels), folder, sizes, size)
    path = folder / "metadata.json"
    described = json.loads(path.read_text()) | {"table": entry}
    machine.write_whole(path, json.dumps(described).encode())
    return folder / table.FILE


def read_experiment(
    builder: tfds.core.DatasetBuilder, experiment: str
) -> tuple[list[Entry], dict[str, list[str]]]:
    """All records of a split in order, those with an image, and {check: what is wrong}."""
    info, entries, seen = builder.info, [], set()
    faults: dict[str, list[str]] = {"checksums": [], "features": [], "images": []}
    for file, expected in stored.experiment_files(builder, experiment).items():
        number = -1
        try:
            found = stored.read_sites(file, info.features["image"].shape)
            for number, (fields, image, fault) in enumerate(found):
                key = str(fields.get("site_id", "no site_id"))
                where = f"{file}, record {number}, {key}"
                if key in seen:
                    faults["features"].append(f"{where}: the second record of this site")
                seen.add(key)
                if fields:
                    faults["features"] += _site_faults(fields, where, experiment, info)
                if image:
                    entries.append((file, fields, image))
                else:
                    faults["images" if fields else "features"].append(f"{where}: {fault}")
            if number + 1 != expected:
                faults["checksums"].append(f"{file}: {number + 1} records, expected {expected}")
        except (stored.DatasetError, OSError) as error:
            faults["checksums"].append(str(error))
    return entries, faults


def _site_faults(
    fields: Mapping[str, Any], where: str, experiment: str, info: tfds.core.DatasetInfo
) -> list[str]:
    """What a record of split `experiment` says that cannot be; [] if it is sane."""
    faults = []
    for name, feature in info.features.items():
        value = fields.get(name)
        kind = str if isinstance(feature, tfds.features.Text) else int
        if name == "image":
            continue  # `inflate` looks at it
        if feature.shape:
            numbers = np.asarray(value if isinstance(value, np.ndarray) else np.nan)
            if numbers.shape != feature.shape or not ((numbers >= 0) & (numbers <= 255)).all():
                faults.append(f"{name}: found {value}, expected {feature.shape} of 0 to 255")
        elif not isinstance(value, kind):
            faults.append(f"{name}: found {value!r}, expected {kind.__name__}")
    if not faults:
        row = {name: str(fields[name]) for name in metadata.COLUMNS}
        try:
            site = metadata.read_site(row, where, metadata.WILDS_DATASETS, named=False)
        except metadata.ReleaseError as error:
            return [str(error)]
        for name, expected in (
            ("experiment", experiment), ("row", site.row), ("column", site.column),
        ):  # fmt: skip
            if fields[name] != expected:
                faults.append(f"{name}: found {fields[name]!r}, expected {expected!r}")
    return [f"{where}, field {fault}" for fault in faults]


def _release_rows(records: Sequence[table.Record], metadata: Mapping[str, Any]) -> list[int]:
    """Rows of metadata.csv; -1 for parts of a release, whose gaps the records do not show."""
    part = metadata.get("selection") or metadata.get("config", {}).get("present_only")
    if part or metadata["layout"] == "kaggle":
        return [-1] * len(records)
    # The release lists test experiments first. Those of `val` are test experiments there.
    names = ("experiment", "plate", "well", "site")
    keys = [(f["dataset"] == "train", *(f[name] for name in names)) for _, f, _ in records]
    rows = np.empty(len(records), np.int64)
    rows[sorted(range(len(keys)), key=keys.__getitem__)] = np.arange(len(keys))
    return rows.tolist()


def table_faults(
    found: pa.Table, files: Sequence[Path], listed: Sequence[str], records: Sequence[Entry]
) -> list[str]:
    """Rows of some of the `listed` files against their records: the first of each column."""
    numbers = {name: number for number, name in enumerate(listed)}
    shards = pa.array([numbers[file.name] for file in files], pa.int32())
    rows = found.filter(pc.is_in(found["shard"], shards))
    ours = ((numbers[file.name], {**of, "release_row": -1}, image) for file, of, image in records)
    again = table.make(ours, len(records[0][2].pixel_sum), ".tfrecord-" in files[0].name)
    if len(rows) != len(again):
        return [f"{table.FILE}: {len(rows)} rows of {files[0].name}, {len(again)} records"]
    faults = []
    for name in sorted(set(again.column_names) - {"release_row"}):
        columns = (again["site_id"], rows[name], again[name])
        for site, said, is_ in zip(*(column.to_pylist() for column in columns), strict=True):
            if said != is_:
                faults.append(f"{table.FILE}: {name} of {site} is {said}, the record gives {is_}")
                break
    return faults
