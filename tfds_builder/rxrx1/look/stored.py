"""The records of a built dataset as they lie in its files, for `verify` and `show`.

TFRecord and ArrayRecord files are both read record by record, so that a fault has a place.
"""

import contextlib
import math
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import deflate
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader

from ..table import TFRECORD_FOOTER, TFRECORD_HEADER

METADATA = ("source", "layout", "partitions", "control_pixels", "control_statistics")


class DatasetError(ValueError):
    """A dataset that is missing or damaged; says where, what was expected, what to do."""


def open_dataset(folder: Path) -> tfds.core.DatasetBuilder:
    """The dataset in `folder`, .../rxrx1/CONFIG/VERSION, or the newest version in .../CONFIG.

    Raises DatasetError: none there, its description damaged, or not RxRx1 as our builder writes it.
    """
    versions = {
        tuple(map(int, path.name.split("."))): path
        for path in folder.glob("*.*.*")
        if all(part.isdecimal() for part in path.name.split("."))
    }
    if versions and not (folder / "dataset_info.json").is_file():
        folder = versions[max(versions)]
    if not (folder / "dataset_info.json").is_file():
        raise DatasetError(
            f"{folder} holds no dataset_info.json; name the folder that `tfds build` finished,"
            " DATA_DIR/rxrx1/CONFIG/VERSION"
        )
    try:
        builder = tfds.builder_from_directory(folder)
        features = builder.info.features
        missing = {"image", "site_id", "experiment", "control_mean"} - set(features or ())
        metadata = builder.info.metadata or {}
    except Exception as error:  # TFDS lets the errors of several parsers through
        raise DatasetError(
            f"{folder}: its JSON files cannot be read ({error}); build the dataset again"
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


def count_records(file: Path) -> int:
    """How many records a file holds by its headers; their content is not read.

    Raises DatasetError for a file that ends within a record, OSError where it is missing.
    """
    if _is_array_record(file):
        file.stat()  # raises OSError; its reader would only say that something is wrong
        try:
            with contextlib.closing(ArrayRecordReader(str(file))) as reader:
                return reader.num_records()
        except (ValueError, RuntimeError) as error:
            raise DatasetError(f"{file}: not a whole ArrayRecord file ({error})") from error
    total, count, position = file.stat().st_size, 0, 0
    with file.open("rb", buffering=0) as opened:
        while position < total:
            header = opened.read(TFRECORD_HEADER)
            if len(header) == TFRECORD_HEADER:
                position += TFRECORD_HEADER + struct.unpack_from("<Q", header)[0] + TFRECORD_FOOTER
            if len(header) < TFRECORD_HEADER or position > total:
                raise DatasetError(f"{file}: record {count} is cut off at the end of the file")
            opened.seek(position)
            count += 1
    return count


def read_records(file: Path) -> Iterator[bytes]:
    """The records of a file in order, each compared with its checksum.

    Raises DatasetError: names the file and the first record, counted from 0, that is damaged.
    """
    number = 0
    try:
        if _is_array_record(file):
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


def _is_array_record(file: Path) -> bool:
    return ".array_record-" in file.name
