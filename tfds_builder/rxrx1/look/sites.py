"""The table of sites, made again from the records: for datasets of version 1, and for `verify`."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tensorflow_datasets as tfds
from tqdm import tqdm

from .. import machine, table
from ..examples import StoredImage, locate
from . import stored


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
    files = {
        f: n for name in info.splits for f, n in stored.experiment_files(builder, name).items()
    }
    shape = info.features["image"].shape
    total = sum(files.values())
    records: list[tuple[int, dict[str, Any], StoredImage]] = []
    with tqdm(total=total, desc="Reading", unit=" sites") as bar:
        for number, (file, expected) in enumerate(files.items()):
            before = len(records)
            for fields, image in _read(file, shape):
                records.append((number, fields, image))
                bar.update()
            if len(records) - before != expected:
                raise stored.DatasetError(
                    f"{file}: {len(records) - before} records, expected {expected} by"
                    " dataset_info.json; restore the file or build the dataset again"
                )
    for row, (_, fields, _) in zip(_release_rows(records, info.metadata), records, strict=True):
        fields["release_row"] = row
    sizes = {file.name: file.stat().st_size for file in files}
    entry = table.write(table.make(records, shape[0]), folder, sizes, shape[1])
    path = folder / "metadata.json"
    metadata = json.loads(path.read_text()) | {"table": entry}
    machine.write_whole(path, json.dumps(metadata).encode())
    return folder / table.FILE


def _read(file: Path, shape: Sequence[int]) -> Iterator[tuple[dict[str, Any], StoredImage]]:
    def work(record: bytes) -> tuple[dict[str, Any], StoredImage]:
        fields = stored.parse(record)
        stream = fields.pop("image")
        return fields, locate(record, stream, stored.inflate(stream, shape))

    try:
        yield from machine.map_in_order(work, stored.read_records(file))
    except (LookupError, ValueError) as error:
        if isinstance(error, stored.DatasetError):
            raise
        raise stored.DatasetError(
            f"{file}: a record is no site ({error}); restore the file or build the dataset again"
        ) from error


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


def read_table(builder: tfds.core.DatasetBuilder) -> pa.Table | None:
    """The table of the dataset; None where it has none. Raises DatasetError, OSError."""
    if "table" not in builder.info.metadata:
        return None
    path = Path(builder.data_path) / table.FILE
    if table.digest(path.read_bytes()) != builder.info.metadata["table"]["sha256"]:
        raise stored.DatasetError(f"{path}: its SHA-256 is not the one in metadata.json")
    return pq.read_table(path)


def table_faults(
    found: pa.Table,
    files: Sequence[Path],
    metadata: Mapping[str, Any],
    records: Sequence[tuple[Path, Mapping[str, Any], StoredImage]],
) -> list[str]:
    """Rows of one experiment's files against its records: the first difference of a column."""
    listed = dict(metadata["table"]["files"])
    sizes = {file: file.stat().st_size for file in files}
    faults = [
        f"{file}: {size} bytes, {listed.get(file.name)} by metadata.json's table"
        for file, size in sizes.items()
        if size != listed.get(file.name)
    ]
    if faults:
        return faults
    numbers = {name: number for number, name in enumerate(listed)}
    shards = pa.array([numbers[file.name] for file in files], pa.int32())
    rows = found.filter(pc.is_in(found["shard"], shards))
    ours = ((numbers[file.name], {**of, "release_row": -1}, image) for file, of, image in records)
    again = table.make(ours, len(records[0][2].pixel_sum), ".tfrecord-" in files[0].name)
    if len(rows) != len(again):
        return [f"{table.FILE}: {len(rows)} rows of {files[0].name}, {len(again)} records"]
    for name in sorted(set(again.column_names) - {"release_row"}):
        columns = (again["site_id"], rows[name], again[name])
        for site, said, is_ in zip(*(column.to_pylist() for column in columns), strict=True):
            if said != is_:
                faults.append(f"{table.FILE}: {name} of {site} is {said}, the record gives {is_}")
                break
    return faults
