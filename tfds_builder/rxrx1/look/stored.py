"""The records of a built dataset as they lie in its files, for `verify` and `show`.

TFRecord and ArrayRecord files are both read record by record, so that a fault has a place.
"""

import contextlib
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import deflate
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from tensorflow_datasets.core.utils.version import list_all_versions

from .. import table
from ..examples import StoredImage, locate
from ..machine import map_in_order

METADATA = ("source", "layout", "partitions", "control_pixels", "control_statistics")


class DatasetError(ValueError):
    """A dataset that is missing or damaged; says where, what was expected, what to do."""


def open_dataset(folder: Path) -> tfds.core.DatasetBuilder:
    """The dataset in `folder`, .../rxrx1/CONFIG/VERSION, or the newest version in .../CONFIG.

    Raises DatasetError: none there, its description damaged, or not RxRx1 as our builder writes it.
    """
    versions = list_all_versions(folder)
    if versions and not (folder / "dataset_info.json").is_file():
        folder /= str(versions[-1])
    if not (folder / "dataset_info.json").is_file():
        raise DatasetError(
            f"{folder} holds no dataset_info.json; name the folder that `tfds build` finished,"
            " DATA_DIR/rxrx1/CONFIG/VERSION"
        )
    for path in folder.iterdir():  # to open a pipe would be to wait for ever
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise DatasetError(f"{path} is a named pipe, socket or device, expected a file")
    try:
        builder = tfds.builder_from_directory(folder)
        features = builder.info.features
        missing = {"image", "site_id", "experiment", "control_mean"} - set(features or ())
        metadata = builder.info.metadata or {}
    except Exception as error:  # TFDS lets the errors of several parsers through
        raise DatasetError(
            f"{folder}: its JSON files cannot be read ({error}); restore them from a copy, or"
            " build the dataset again"
        ) from error
    unknown = [name for name in METADATA if name not in metadata]
    if missing or unknown:
        what = ", ".join(sorted(missing)) or f"{', '.join(unknown)} in metadata.json"
        raise DatasetError(f"{folder} is not RxRx1 as tfds_builder/rxrx1 writes it: no {what}")
    return builder


def experiment_files(builder: tfds.core.DatasetBuilder, experiment: str) -> dict[Path, int]:
    """{file: how many records it must hold} of one split, in order."""
    split = builder.info.splits[experiment]
    lengths = map(int, split.shard_lengths)
    return dict(zip(map(Path, split.filepaths), lengths, strict=True))


def table_entry(builder: tfds.core.DatasetBuilder) -> dict[str, Any]:
    """What metadata.json says of the table of sites. Raises DatasetError where there is none."""
    if "table" not in builder.info.metadata:
        raise DatasetError(
            f"{builder.data_path} has no {table.FILE}; write it first:"
            f" python -m tfds_builder.rxrx1 table {builder.data_path}"
        )
    return builder.info.metadata["table"]


def read_table(builder: tfds.core.DatasetBuilder) -> pa.Table:
    """The table of sites; `record` is the position in the file. Raises DatasetError, OSError."""
    path = Path(builder.data_path) / table.FILE
    digest = table_entry(builder)["sha256"]
    if table.digest(path.read_bytes()) != digest:
        raise DatasetError(f"{path}: its SHA-256 is not the one in metadata.json")
    sites = pq.read_table(path)
    shards = sites["shard"].to_numpy()
    return sites.append_column("record", [np.arange(len(shards)) - np.searchsorted(shards, shards)])


def read_images(
    builder: tfds.core.DatasetBuilder, rows: Iterable[Mapping[str, Any]]
) -> Iterator[np.ndarray]:
    """The image of each row of the table, uint8 [C, H, W].

    Raises DatasetError: names the file and the site whose image is damaged.
    """
    files = [Path(builder.data_path) / name for name, _ in table_entry(builder)["files"]]
    shape = builder.info.features["image"].shape
    for row in rows:
        file = files[row["shard"]]
        try:
            if row["offset"] < 0:
                with contextlib.closing(ArrayRecordReader(str(file))) as reader:
                    stream = parse(reader.read([row["record"]])[0])["image"]
            else:
                with file.open("rb") as opened:
                    stream = os.pread(opened.fileno(), row["size"], row["offset"])
            yield inflate(stream, shape)
        except (ValueError, RuntimeError) as error:
            raise DatasetError(f"{file}, {row['site_id']}: {error}; run verify on it") from error


def read_records(file: Path) -> Iterator[bytes]:
    """The records of a file in order, each compared with its checksum.

    Raises DatasetError: names the file and the first record, counted from 0, that is damaged.
    """
    number = 0
    try:
        if ".array_record-" in file.name:
            with contextlib.closing(ArrayRecordReader(str(file))) as reader:
                for number in range(reader.num_records()):
                    yield reader.read([number])[0]
        else:
            for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
                yield record
                number += 1
    except (tf.errors.OpError, ValueError, RuntimeError) as error:
        reason = re.sub(r"\{\{.*?\}\} |' failed with| \[Op:.*", "", str(error).splitlines()[0])
        raise DatasetError(f"{file}: record {number} is damaged ({reason})") from error


def parse(record: bytes) -> dict[str, Any]:
    """A tf.train.Example: text -> str, one integer -> int, floats -> float32 [n], image -> bytes.

    Raises ValueError: not an Example, or a feature that holds none or several values.
    """
    try:
        example = tf.train.Example.FromString(record)
    except Exception as error:  # protobuf's DecodeError, whose module differs between versions
        raise ValueError(f"not a tf.train.Example ({error})") from error
    fields: dict[str, Any] = {}
    for name, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        values: Sequence[Any] = getattr(feature, kind).value if kind else ()
        if kind == "float_list":
            fields[name] = np.array(values, np.float32)
            continue
        if len(values) != 1:
            raise ValueError(f"feature {name} holds {len(values)} values, expected 1")
        text = kind == "bytes_list" and name != "image"
        fields[name] = values[0].decode() if text else values[0]
    return fields


def inflate(stream: bytes, shape: Sequence[int]) -> np.ndarray:
    """The zlib stream of a record's image -> uint8 [C, H, W]. ValueError where it is damaged."""
    size = math.prod(shape)
    try:
        plain = deflate.zlib_decompress(stream, size)
    except deflate.DeflateError as error:
        raise ValueError(f"the image is no zlib stream of {size} bytes ({error})") from error
    if len(plain) != size:
        raise ValueError(f"the image inflates to {len(plain)} bytes, expected {size}")
    return np.frombuffer(plain, np.uint8).reshape(shape)


class Record(NamedTuple):
    """What is kept of a record when its pixels have been dropped."""

    fields: dict[str, Any]  # but the image; {} where it is no Example
    image: StoredImage | None
    fault: str  # why there is no image


def read_sites(file: Path, shape: Sequence[int]) -> Iterator[Record]:
    """The records of a file, parsed and inflated in threads. Raises DatasetError, OSError."""

    def work(record: bytes) -> Record:
        fields: dict[str, Any] = {}
        try:
            fields = parse(record)
            stream = fields.pop("image", b"")
            return Record(fields, locate(record, stream, inflate(stream, shape)), "")
        except ValueError as error:
            return Record(fields, None, str(error))

    yield from map_in_order(work, read_records(file))
