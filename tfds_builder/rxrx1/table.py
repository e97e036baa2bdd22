"""`sites.parquet`: one row per record, in record order, with the place of its image.

Training opens this file instead of walking through the records. metadata.json has its checksum and
the sizes of the record files, in `table`.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from .examples import StoredImage
from .machine import write_whole
from .release.metadata import COLUMNS

FILE = "sites.parquet"
TFRECORD_HEADER, TFRECORD_FOOTER = 12, 4  # bytes: uint64 length and its CRC; CRC of the data
NUMBERS = ("plate", "site", "sirna_id", "row", "column", "release_row", "shard")

Record = tuple[int, Mapping[str, Any], StoredImage]  # shard, fields of the site, its image


def schema(channels: int) -> pa.Schema:
    """The columns of the table.

    release_row: position in the release's metadata.csv, from 0; -1 where that is not known.
    control_mean, control_std: as in the record. pixel_sum, pixel_sum2: of this image's pixels and
    of their squares, per channel. adler32: of the planes. shard: position of the file in
    metadata.json's list. offset, size: of the zlib stream in it, bytes; offset -1 in a format
    that gives no places.
    """
    names = (*COLUMNS, "row", "column", "release_row")
    fields = {name: pa.int32() if name in NUMBERS else pa.string() for name in names}
    fields |= {name: pa.list_(pa.float32(), channels) for name in ("control_mean", "control_std")}
    fields |= {name: pa.list_(pa.int64(), channels) for name in ("pixel_sum", "pixel_sum2")}
    fields |= {"adler32": pa.uint32(), "shard": pa.int32(), "offset": pa.int64()}
    return pa.schema(fields | {"size": pa.int64()})


def make(records: Iterable[Record], channels: int, tfrecord: bool = True) -> pa.Table:
    """The table of all records, in their order."""
    columns: dict[str, list] = {name: [] for name in schema(channels).names}
    last, position = -1, 0
    for shard, fields, image in records:
        position = position if shard == last else 0
        place = {
            "pixel_sum": image.pixel_sum, "pixel_sum2": image.pixel_sum2,
            "adler32": image.adler32, "shard": shard, "size": image.size,
            "offset": position + TFRECORD_HEADER + image.start if tfrecord else -1,
        }  # fmt: skip
        for name, column in columns.items():
            column.append(place[name] if name in place else fields[name])
        last, position = shard, position + TFRECORD_HEADER + image.record + TFRECORD_FOOTER
    return pa.table(columns, schema(channels))


def write(
    table: pa.Table, folder: epath.PathLike, files: Mapping[str, int], size: int
) -> dict[str, Any]:
    """Writes the table whole or not at all.

    Args:
      files: {name: bytes} of the record files, in order.
      size: height and width of the images, pixels.

    Returns:
      What metadata.json says of it.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    data = sink.getvalue().to_pybytes()
    write_whole(epath.Path(folder) / FILE, data)
    channels = table.schema.field("pixel_sum").type.list_size
    return {
        "sha256": digest(data),
        "image_shape": [channels, size, size],
        "files": [[name, size] for name, size in files.items()],
    }


def digest(data: bytes) -> str:
    """What metadata.json keeps of a table."""
    return hashlib.sha256(data).hexdigest()
