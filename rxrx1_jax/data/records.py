"""A built dataset: any image by its row, without TensorFlow.

The builder writes `sites.parquet`, which has one row per record and the place of its image. So a
site is one positioned read and one call to libdeflate, from any thread and in any order: a global
shuffle, exact resume and per-host shares cost nothing.
"""

import hashlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import deflate
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rxrx1_jax.config import described, load, nearest, user_path
from rxrx1_jax.data import images
from rxrx1_jax.data.files import parse_json
from rxrx1_jax.data.images import NUMBERS, TEXT, DatasetError, Images, structured

TABLE = "sites.parquet"
_opened: dict[Any, "Records"] | None = None  # of `keep_open`
COLUMNS = (*TEXT, *NUMBERS, *images.CHANNEL_STATISTICS, "adler32", "shard", "offset", "size")


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
    found = _versions(root / base)
    if version in found:
        return root / base / version
    if found and not version:
        return root / base / found[-1]
    # A level too deep or too high.
    for near in (*list(root.resolve().parents)[:3], *sorted(root.glob("*/"))):
        if not found and "/" in base and _versions(near / base):
            raise DatasetError(f"dataset {name} is not in {root}; expected data.dir={near}")
    configs = ((path.relative_to(root).as_posix(), _versions(path)) for path in root.glob("*/*"))
    built = {config: versions for config, versions in sorted(configs) if versions}
    has = ", ".join(f"{config}:{v}" for config, versions in built.items() for v in versions)
    likely = f"rxrx1/{base}" if f"rxrx1/{base}" in built else nearest(base, built)
    hint = f"; expected data.name={likely}" if built and not found else ""
    what = f"dataset {name} is not in {root}{'' if root.is_dir() else ', which is no folder'}"
    raise DatasetError(
        f"{what} (found: {has or 'none'}){hint}; where it is not built yet, build it with `python"
        f" -m tfds_builder.rxrx1 build --config={base.rpartition('/')[2]} --data_dir={root}`"
    )


def open_images(data_dir: str | os.PathLike, name: str) -> Images:
    """The images that the settings data.dir and data.name name.

    Args:
      name: as of `find_dataset`; or "module.factory(...)", which returns images in memory.

    Raises DatasetError, ConfigError.
    """
    factory, bracket, _ = name.rpartition(")")  # a version may follow it
    found: Any = None if bracket else _open(find_dataset(data_dir, name))
    if bracket and not hasattr(found := load("data.name", factory + bracket), "image_shape"):
        raise DatasetError(f"data.name={name!r}: it gives {type(found).__name__}, expected Images")
    return found


def keep_open() -> None:
    """From now on the last dataset stays open, with what `cache` keeps of its images.

    For a process that does run after run.
    """
    global _opened
    _opened = {}


def _open(path: Path) -> "Records":
    if _opened is None:
        return Records(path)
    if path not in _opened:
        _opened.clear()
        _opened[path] = Records(path)
        _opened[path].kept_images.update(host={}, device={})
    return _opened[path]


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
      kept_images: {"host" or "device": images that stay in memory}; empty without `keep_open`.

    Raises:
      DatasetError: a missing, truncated or changed file, by name; another format of the records.
    """

    def __init__(self, path: str | os.PathLike):
        self.path, self.kept_images = user_path(path).absolute(), dict[str, dict]()
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
        self.sites, self.image_shape, self._files = _open_table(self.path, self.metadata, info)
        places = (self.sites[name] for name in ("shard", "offset", "size"))
        self._shard, self._offset, self._size = map(np.ascontiguousarray, places)

    def __len__(self) -> int:
        return len(self.sites)

    def __getitem__(self, i: int) -> np.ndarray:
        """Image of record i, uint8 [C, H, W], a fresh writable array."""
        path = self._files[self._shard[i]]
        # Opened for each image: RxRx1 has 510 files, and a process may keep no more than 256 open.
        try:
            with open(path, "rb", buffering=0) as file:
                stream = os.pread(file.fileno(), int(self._size[i]), int(self._offset[i]))
        except OSError as error:
            raise DatasetError(f"{path}: {error.strerror}; restore the file") from error
        pixels = math.prod(self.image_shape)
        try:
            plain = deflate.zlib_decompress(stream, pixels)
        except deflate.DeflateError:  # also when the file has been cut: the checksum is at the end
            plain = bytearray()
        if len(plain) != pixels:
            raise DatasetError(
                f"{path}: the image of site {self.sites['site_id'][i]} at byte"
                f" {self._offset[i]} is damaged, expected a zlib stream of {pixels} bytes; build"
                " the dataset again or restore the file"
            )
        return np.frombuffer(plain, np.uint8).reshape(self.image_shape)

    def __repr__(self) -> str:
        return f"Records({str(self.path)!r})"  # Grain prints its source

    def __reduce__(self) -> tuple:
        return Records, (self.path,)


def _versions(folder: Path) -> list[str]:
    """The versions of a config that are built, ascending."""
    names = [path.parent.name for path in folder.glob("*.*.*/dataset_info.json")]
    numbers = [name for name in names if all(part.isdecimal() for part in name.split("."))]
    return sorted(numbers, key=lambda name: [int(part) for part in name.split(".")])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(path.read_bytes())
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
    path: Path, metadata: dict[str, Any], info: dict[str, Any]
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
    try:
        table = pq.read_table(pa.BufferReader(data))
        sites = structured({name: _column(table[name], channels) for name in COLUMNS})
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        what = f"not as the builder writes it ({described(error)})"
        raise DatasetError(f"{path / TABLE}: {what}; {again}") from error
    for field, wrong in _faults(sites, list(files.values())).items():
        if wrong.any():
            row = sites[wrong.argmax()]
            raise DatasetError(
                f"{path / TABLE}: {field} of site {row['site_id']} is {row[field]}, which does not"
                f" fit the other sites or the record files; {again}"
            )
    _compare(path / "dataset_info.json", info, list(files), sites["shard"])
    return sites, (channels, height, width), [path / name for name in files]


def _column(column: pa.ChunkedArray, channels: int) -> np.ndarray:
    if column.null_count:
        raise ValueError("a value is missing")
    array = column.combine_chunks()
    if pa.types.is_fixed_size_list(array.type):
        return array.flatten().to_numpy().reshape(-1, channels)
    return array.to_numpy(zero_copy_only=False)


def _faults(sites: np.ndarray, bytes_of: list[int]) -> dict[str, np.ndarray]:
    """Field -> bool [n], the sites where it cannot be right."""
    shard, offset, size = (sites[name].astype(np.int64) for name in ("shard", "offset", "size"))
    beyond = (shard < 0) | (shard >= len(bytes_of))
    end = np.array([*bytes_of, 0])[np.where(beyond, -1, shard)]
    names = ("experiment", "plate", "well", "site", "cell_type")  # the ids say them again
    rows = list(zip(*(sites[name].tolist() for name in names), strict=True))
    return {
        "shard": beyond,
        "offset": ~beyond & ((offset < 0) | (size <= 0) | (offset + size > end)),
        "site_id": _differs(sites["site_id"], np.arange(len(sites))),
        "sirna_id": _differs(sites["well_id"], sites["sirna_id"])
        | _differs(sites["sirna"], sites["sirna_id"]),
        "well_type": _differs(sites["well_id"], sites["well_type"]),
        "well_id": np.array(["_".join(map(str, row[:3])) for row in rows]) != sites["well_id"],
        "site": np.array(["_".join(map(str, row[:4])) for row in rows]) != sites["site_id"],
        "cell_type": np.array([not row[0].startswith(f"{row[4]}-") for row in rows]),
        "control_std": ~np.isfinite(sites["control_mean"] + sites["control_std"]).all(1),
    }


def _differs(keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """bool [n]: where a value is not that of the first row of its key."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return values != values[first][inverse]


def _compare(path: Path, info: dict[str, Any], files: list[str], shard: np.ndarray) -> None:
    """Raises DatasetError unless TFDS's own description has as many records as the table."""
    try:
        lengths = {split["name"]: split["shardLengths"] for split in info["splits"]}
        told = {
            f"{info['name']}-{name}.tfrecord-{k:05}-of-{len(of_shards):05}": int(length)
            for name, of_shards in lengths.items() for k, length in enumerate(of_shards)
        }  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        what = f"no splits as TFDS writes them ({described(error)})"
        raise DatasetError(f"{path}: {what}; restore it") from error
    counts = np.bincount(shard, minlength=len(files)).tolist()
    for name, count in {**dict.fromkeys(told, 0), **dict(zip(files, counts, strict=True))}.items():
        if told.get(name, 0) != count:
            raise DatasetError(
                f"{path}: {name} has {told.get(name, 'no')} records, the table of sites has"
                f" {count}; restore the file or build the dataset again"
            )
