"""TFRecord files and the tf.train.Examples in them, read by offset without TensorFlow.

TFRecord: uint64 length, uint32 CRC, data, uint32 CRC, little endian
(https://www.tensorflow.org/tutorials/load_data/tfrecord). tf.train.Example: protocol buffers of
github.com/tensorflow/tensorflow, tensorflow/core/example/{example,feature}.proto.
"""

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rxrx1_jax.data.images import DatasetError

TFRECORD_HEADER, TFRECORD_FOOTER = 12, 4  # bytes
_POLYNOMIAL = 0x82F63B78  # CRC-32C (Castagnoli), reflected: RFC 3720, appendix B.4


def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _table()


def masked_crc32c(data: bytes) -> int:
    """The checksum of a TFRecord: CRC-32C, rotated and offset.

    https://www.tensorflow.org/tutorials/load_data/tfrecord
    """
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def scan(file: Path) -> Iterator[tuple[mmap.mmap, int, int]]:
    """(memory map, start, stop) of the data of every record; pixels are not touched."""
    total = file.stat().st_size
    if not total:
        return
    with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as data:
        if hasattr(mmap, "MADV_RANDOM"):  # no read-ahead, which would fetch the images
            data.madvise(mmap.MADV_RANDOM)
        position = 0
        while position < total:
            start = position + TFRECORD_HEADER
            stop = total
            if start <= total:
                length, checksum = struct.unpack_from("<QI", data, position)
                if checksum != masked_crc32c(data[position : position + 8]):
                    raise DatasetError(
                        f"{file}: damaged, the length of the record at byte {position} does not"
                        " have its checksum; build the dataset again or restore the file"
                    )
                stop = start + length
            position = stop + TFRECORD_FOOTER
            if position > total:
                raise DatasetError(
                    f"{file}: truncated, the record at byte {start - TFRECORD_HEADER} ends beyond"
                    f" the file's {total} bytes; build the dataset again or restore the file"
                )
            yield data, start, stop


def _varint(data: mmap.mmap, position: int) -> tuple[int, int]:
    """(value, next position) of a base-128 varint."""
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _field(data: mmap.mmap, position: int, stop: int) -> tuple[int, int, int]:
    """(tag, start, stop) of a length-delimited field; a tf.train.Example has no others."""
    tag = data[position]
    length, start = _varint(data, position + 1)
    if tag & 7 != 2 or start + length > stop:
        raise ValueError(f"tag {tag} of {length} bytes at byte {position}")
    return tag, start, start + length


def example_spans(data: mmap.mmap, start: int, stop: int) -> dict[str, tuple[int, int]]:
    """Where the (only) value of each feature lies; packed numbers count as one value.

    Example {Features features = 1}; Features {map<string, Feature> feature = 1}; Feature {oneof:
    BytesList = 1, FloatList = 2, Int64List = 3}, each with `repeated value = 1`.
    """
    spans = {}
    _, position, stop = _field(data, start, stop)
    while position < stop:
        _, entry, position = _field(data, position, stop)
        name, feature = "", (entry, entry)
        while entry < position:
            tag, begin, entry = _field(data, entry, position)
            if tag == 0x0A:
                name = data[begin:entry].decode()
            else:
                feature = (begin, entry)
        _, begin, end = _field(data, *feature)
        spans[name] = _field(data, begin, end)[1:] if begin < end else (begin, end)
    return spans


def value_of(data: mmap.mmap, start: int, stop: int, dtype: str) -> Any:
    if dtype == "text":
        return data[start:stop].decode()
    if dtype.startswith("float"):
        return struct.unpack(f"<{(stop - start) // 4}f", data[start:stop])
    value, _ = _varint(data, start)
    return value - (1 << 64) if value >> 63 else value
