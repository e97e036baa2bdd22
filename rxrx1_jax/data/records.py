"""A built dataset: any image by its row, without TensorFlow.

The builder writes `sites.parquet`, which has one row per record and the place of its image. So a
site is one positioned read and one call to libdeflate, from any thread and in any order: a global
shuffle, exact resume and per-host shares cost nothing.
"""

import hashlib
import json
import math
import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import deflate
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rxrx1_jax.config import load, user_path
from rxrx1_jax.data.images import DatasetError, Images, structured

TABLE = "sites.parquet"


def find_dataset(data_dir: str | os.PathLike, name: str) -> Path:
    """Folder of a built dataset, data_dir/rxrx1/CONFIG/VERSION.

    Args:
      data_dir: the `--data_dir` of `tfds build`.
      name: "rxrx1/CONFIG" (newest version) or "rxrx1/CONFIG:1.0.0".

    Raises:
      DatasetError: not built; says which datasets there are and the command that builds it.
    """
    root = user_path(data_dir).absolute()
    base, _, version = name.partition(":")
    found = {path.name: path for path in (root / base).glob("*.*.*") if _is_built(path)}
    if version in found:
        return found[version]
    if found and not version:
        return found[max(found, key=lambda v: tuple(map(int, v.split("."))))]
    built = sorted(
        f"{path.parent.relative_to(root).as_posix()}:{path.name}"
        for path in root.glob("*/*/*.*.*")
        if _is_built(path)
    )
    config = base.rpartition("/")[2]
    raise DatasetError(
        f"dataset {name} not found in {root} (found: {', '.join(built) or 'none'}); build it with"
        f" `python -m tfds_builder.rxrx1 build --config={config} --data_dir={root}`"
    )


def open_images(data_dir: str | os.PathLike, name: str) -> Images:
    """The images that the settings data.dir and data.name name.

    Args:
      name: as of `find_dataset`; or "module.factory(...)", which returns images in memory.

    Raises DatasetError, ConfigError.
    """
    factory, bracket, _ = name.rpartition(")")  # a version may follow it
    found: Any = None if bracket else Records(find_dataset(data_dir, name))
    if bracket and not hasattr(found := load("data.name", factory + bracket), "image_shape"):
        raise DatasetError(f"data.name={name!r}: it gives {type(found).__name__}, expected Images")
    return found


class Records:
    """All sites of a built dataset: `records[i]` -> uint8 [C, H, W] in counts; thread-safe.

    The order is that of the record files, by experiment. It is an `images.Images`, a Grain
    `RandomAccessDataSource` and a map-style dataset for other loaders; it can be pickled. Nothing
    is written, so the folder may be read-only.

    Attributes:
      path: the dataset's folder.
      sites: structured array, one row per record; `tfds_builder/rxrx1/table.py` has the columns.
      image_shape: (C, H, W).
      about: name, version and source ("release" or "synthetic").
      metadata: content of metadata.json: source, channels, pixel sums of the controls ...

    Raises:
      DatasetError: a missing, truncated or changed file, by name; another format of the records.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = user_path(path).absolute()
        info = _read_json(self.path / "dataset_info.json")
        self.metadata = _read_json(self.path / "metadata.json")
        stored = info.get("fileFormat")
        if stored != "tfrecord":
            raise DatasetError(
                f"{self.path}/dataset_info.json: fileFormat is {stored}, training reads tfrecord;"
                " build the dataset with --file_format=tfrecord, the default of `tfds build`"
            )
        self.about: Mapping[str, str] = {
            "name": "/".join(self.path.parts[-3:-1]),
            "version": self.path.name,
            "source": str(self.metadata.get("source", "")),
        }
        self.sites, self.image_shape, self._files = _open_table(self.path, self.metadata)
        places = (self.sites[name] for name in ("shard", "offset", "size"))
        self._shard, self._offset, self._size = map(np.ascontiguousarray, places)
        self._descriptors = [os.open(file, os.O_RDONLY) for file in self._files]
        weakref.finalize(self, _close, self._descriptors)

    def __len__(self) -> int:
        return len(self.sites)

    def __getitem__(self, i: int) -> np.ndarray:
        """Image of record i, uint8 [C, H, W], a fresh writable array."""
        file, size = self._shard[i], int(self._size[i])
        stream = os.pread(self._descriptors[file], size, int(self._offset[i]))
        pixels = math.prod(self.image_shape)
        try:
            plain = deflate.zlib_decompress(stream, pixels)
        except deflate.DeflateError:  # also when the file has been cut: the checksum is at the end
            plain = bytearray()
        if len(plain) != pixels:
            raise DatasetError(
                f"{self._files[file]}: the image of site {self.sites['site_id'][i]} at byte"
                f" {self._offset[i]} is damaged, expected a zlib stream of {pixels} bytes; build"
                " the dataset again or restore the file"
            )
        return np.frombuffer(plain, np.uint8).reshape(self.image_shape)

    def __repr__(self) -> str:
        return f"Records({str(self.path)!r})"  # Grain prints its source

    def __reduce__(self) -> tuple:
        return Records, (self.path,)


def _is_built(path: Path) -> bool:
    numbers = all(part.isdecimal() for part in path.name.split("."))
    return numbers and (path / "dataset_info.json").is_file()


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DatasetError(
            f"{path} is missing; expected a folder that `tfds build` finished: build the dataset"
            " again"
        ) from None
    except ValueError as error:
        raise DatasetError(f"{path} is not JSON ({error}); build the dataset again") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{path}: expected a JSON object; build the dataset again")
    return content


def _open_table(
    path: Path, metadata: dict[str, Any]
) -> tuple[np.ndarray, tuple[int, int, int], list[Path]]:
    """(sites, image shape, record files) of a dataset whose files are as they were written."""
    again = f"write it again with `python -m tfds_builder.rxrx1 table {path}`"
    if "table" not in metadata:
        raise DatasetError(
            f"{path}: no table of its sites ({TABLE}), a dataset of version 1 has none; write it"
            f" with `python -m tfds_builder.rxrx1 table {path}`"
        )
    try:
        entry = metadata["table"]
        channels, height, width = map(int, entry["image_shape"])
        files = {str(name): int(size) for name, size in entry["files"]}
        digest = str(entry["sha256"])
    except (LookupError, TypeError, ValueError) as error:
        raise DatasetError(
            f"{path}/metadata.json: table is not as the builder writes it ({error!r}); {again}"
        ) from error
    for name, size in files.items():
        if Path(name).name != name:  # a file elsewhere is not part of this dataset
            raise DatasetError(f"{path}/metadata.json: {name!r} is no file in this folder; {again}")
        found = (path / name).stat().st_size if (path / name).is_file() else None
        if found != size:
            what = "is missing" if found is None else f"has {found} bytes"
            raise DatasetError(
                f"{path / name} {what}, expected {size} bytes; restore the file or build the"
                " dataset again"
            )
    try:
        data = (path / TABLE).read_bytes()
    except FileNotFoundError:
        raise DatasetError(f"{path / TABLE} is missing; {again}") from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise DatasetError(
            f"{path / TABLE} has changed, its SHA-256 is not the one in metadata.json; {again}"
        )
    columns = pq.read_table(pa.BufferReader(data))
    arrays = {}
    for name, column in zip(columns.column_names, columns.columns, strict=True):
        array = column.combine_chunks()
        if pa.types.is_fixed_size_list(array.type):
            arrays[name] = array.flatten().to_numpy().reshape(-1, channels)
        else:
            arrays[name] = array.to_numpy(zero_copy_only=False)
    return structured(arrays), (channels, height, width), [path / name for name in files]
