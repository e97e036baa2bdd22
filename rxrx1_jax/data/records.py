"""Random access to the dataset's TFRecord files, without TensorFlow.

`tfds build` writes every site as a tf.train.Example whose image is a zlib stream. One pass over
the files finds where each stream lies and what the other features hold; that index is kept beside
the data. From then on a site is one positioned read and one call to libdeflate, from any thread
and in any order, so a global shuffle, exact resume and per-host shares cost nothing.
"""

import json
import logging
import math
import os
import struct
import weakref
import zipfile
from pathlib import Path
from typing import Any

import deflate
import numpy as np
from tqdm import tqdm

from rxrx1_jax.data.images import DatasetError
from rxrx1_jax.data.record_checks import contradictions
from rxrx1_jax.data.tfrecord import example_spans, scan, value_of

INDEX_NAME = "rxrx1_jax_index.npz"
INDEX_FORMAT = 2  # raise it when the content of the index changes

# What the rest of the package reads of a site; the dataset may hold more.
FIELDS = (
    "site_id", "well_id", "cell_type", "dataset", "experiment", "plate", "well", "site",
    "well_type", "sirna", "sirna_id", "control_mean", "control_std",
)  # fmt: skip


def find_dataset(data_dir: str | os.PathLike, name: str) -> Path:
    """Folder of a built dataset, data_dir/rxrx1/CONFIG/VERSION.

    Args:
      data_dir: the `--data_dir` of `tfds build`.
      name: "rxrx1/CONFIG" (newest version) or "rxrx1/CONFIG:1.0.0".

    Raises:
      DatasetError: not built; says which datasets there are and the command that builds it.
    """
    root = Path(data_dir).expanduser().absolute()
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
        f" `tfds build tfds_builder/rxrx1 --config={config} --data_dir={root}`"
    )


class Records:
    """All sites of a built dataset: `records[i]` -> uint8 [6, H, W] in counts; thread-safe.

    The order is that of dataset_info.json's splits (experiments), then of the files. An instance
    is a Grain `RandomAccessDataSource` and a map-style dataset for other loaders; it can be
    pickled.

    Attributes:
      path: the dataset's folder.
      sites: structured array, one row a record: every feature except the image. Text is
        fixed-width unicode, integers int32, control_mean and control_std float32 [6].
      image_shape: (6, H, W).
      metadata: content of metadata.json: source ("release" or "synthetic"), channels, pixel sums of
        the controls.

    Raises:
      DatasetError: a missing, truncated or damaged file, by name; features unlike our builder's.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path).absolute()
        info = _read_json(self.path / "dataset_info.json")
        self.metadata = _read_json(self.path / "metadata.json")
        self.about = {
            "name": "/".join(self.path.parts[-3:-1]),
            "version": self.path.name,
            "source": str(self.metadata.get("source", "")),
        }
        features = _read_json(self.path / "features.json")
        self.image_shape, dtypes = _check_features(self.path / "features.json", features)
        self._files, lengths = _shards(self.path, info)
        index = _load_or_build_index(self.path, self._files, lengths, dtypes)
        self.sites: np.ndarray = index["sites"]
        self._shard, self._offset, self._size = index["shard"], index["offset"], index["size"]
        self._descriptors = [os.open(file, os.O_RDONLY) for file in self._files]
        weakref.finalize(self, _close, self._descriptors)

    def __len__(self) -> int:
        return len(self.sites)

    def __getitem__(self, i: int) -> np.ndarray:
        """Image of record i, uint8 [6, H, W], a fresh writable array."""
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


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DatasetError(
            f"{path} is missing; expected a folder that `tfds build` finished: build the dataset"
            " again"
        ) from None
    except ValueError as error:
        raise DatasetError(f"{path} is not JSON ({error}); build the dataset again") from error


def _check_features(path: Path, features: dict) -> tuple[tuple[int, ...], dict[str, str]]:
    """Shape of the image, and the dtype of each other feature ("text" for strings)."""
    try:
        features = features["featuresDict"]["features"]
        dtypes = {
            name: "text" if "text" in feature else str(np.dtype(feature["tensor"]["dtype"]))
            for name, feature in features.items()
        }
    except (LookupError, TypeError, AttributeError) as error:
        raise DatasetError(f"{path}: not as `tfds build` writes it ({error!r})") from error
    missing = [name for name in ("image", *FIELDS) if name not in features]
    if missing:
        raise DatasetError(
            f"{path}: no feature {', '.join(missing)}; expected those of tfds_builder/rxrx1: build"
            " the dataset with this version of it"
        )
    image = features["image"].get("tensor", {})
    shape = tuple(int(n) for n in image.get("shape", {}).get("dimensions", ()))
    kind = (image.get("dtype"), image.get("encoding"))
    if len(shape) != 3 or kind != ("uint8", "zlib"):
        raise DatasetError(
            f"{path}: the image is {kind} {shape}, expected ('uint8', 'zlib') (6, H, W); build the"
            " dataset with tfds_builder/rxrx1"
        )
    del dtypes["image"]
    return shape, dtypes


def _shards(path: Path, info: dict) -> tuple[list[Path], list[int]]:
    """Files of all TFDS splits in order, and how many records each must hold."""
    files, lengths = [], []
    try:
        if info["fileFormat"] != "tfrecord":
            raise DatasetError(
                f"{path}: stored as {info['fileFormat']}, training reads tfrecord; build it with"
                " --file_format=tfrecord, the default of `tfds build`"
            )
        for split in info["splits"]:
            shards = len(split["shardLengths"])
            for shard, length in enumerate(split["shardLengths"]):
                names = {
                    "DATASET": info["name"], "SPLIT": split["name"], "FILEFORMAT": "tfrecord",
                    "SHARD_INDEX": f"{shard:05d}", "NUM_SHARDS": f"{shards:05d}",
                    "SHARD_X_OF_Y": f"{shard:05d}-of-{shards:05d}",
                }  # fmt: skip
                name = split["filepathTemplate"]
                for placeholder, value in names.items():
                    name = name.replace(f"{{{placeholder}}}", value)
                if Path(name).name != name:  # a file elsewhere is none of this dataset
                    raise DatasetError(
                        f"{path}/dataset_info.json: {name!r} is no name of a file in this folder"
                    )
                files.append(path / name)
                lengths.append(int(length))
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(
            f"{path}/dataset_info.json: not as `tfds build` writes it ({error!r}); build the"
            " dataset again"
        ) from error
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise DatasetError(
            f"{path}: {len(missing)} of {len(files)} record files are missing, first {missing[0]};"
            " copy them there or build the dataset again"
        )
    return files, lengths


def _load_or_build_index(
    path: Path, files: list[Path], lengths: list[int], dtypes: dict[str, str]
) -> dict[str, np.ndarray]:
    """The cached index if it was made from these very files, else a new one (cached if possible).

    Keys: sites (structured); shard int32, the position in `files`; offset and size int64, bytes, of
    the image's zlib stream.
    """
    stamps = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    key = json.dumps([INDEX_FORMAT, stamps, lengths, dtypes])
    cache = path / INDEX_NAME
    try:
        with np.load(cache) as stored:
            if stored["key"].item() == key:
                return {name: stored[name] for name in ("sites", "shard", "offset", "size")}
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        pass  # none yet, or not one of ours: it is made anew
    logging.info("indexing %d records of %s", sum(lengths), path)
    index = _build_index(files, lengths, dtypes)
    partial = path / f"{INDEX_NAME}.{os.getpid()}.tmp"
    try:
        with open(partial, "wb") as file:
            arrays: dict[str, Any] = {"key": np.array(key), **index}
            np.savez_compressed(file, **arrays)
        os.replace(partial, cache)
    except OSError as error:
        logging.warning("index not kept: cannot write %s (%s)", cache, error.strerror)
        partial.unlink(missing_ok=True)
    return index


def _build_index(
    files: list[Path], lengths: list[int], dtypes: dict[str, str]
) -> dict[str, np.ndarray]:
    columns: dict[str, list] = {name: [] for name in dtypes}
    places: list[tuple[int, int, int]] = []
    bar = tqdm(files, "Indexing", unit=" files", disable=None)  # None: on a terminal only
    for number, (file, length) in enumerate(zip(bar, lengths, strict=True)):
        before = len(places)
        for data, start, stop in scan(file):
            try:
                spans = example_spans(data, start, stop)
                image_start, image_stop = spans["image"]
                places.append((number, image_start, image_stop - image_start))
                for name, dtype in dtypes.items():
                    columns[name].append(value_of(data, *spans[name], dtype))
            except (LookupError, ValueError, struct.error) as error:
                raise DatasetError(
                    f"{file}: record {len(places) - before} at byte {start} is not a site"
                    f" ({error!r}); build the dataset again or restore the file"
                ) from error
        if len(places) - before != length:
            raise DatasetError(
                f"{file}: {len(places) - before} records, expected {length} by dataset_info.json;"
                " build the dataset again or restore the file"
            )
    fields = {}
    for name, values in columns.items():
        try:
            fields[name] = np.array(values, np.str_ if dtypes[name] == "text" else dtypes[name])
        except (ValueError, OverflowError) as error:
            raise DatasetError(
                f"{files[0].parent}: a record holds no value of feature {name} ({error}); build the"
                " dataset again or restore the files"
            ) from error
    layout = [(name, column.dtype, column.shape[1:]) for name, column in fields.items()]
    sites = np.empty(len(places), layout)
    for name, column in fields.items():
        sites[name] = column
    place = np.array(places, np.int64).reshape(-1, 3)
    for row, what in contradictions(sites):
        raise DatasetError(
            f"{files[place[row, 0]]}: the record of the image at byte {place[row, 1]} contradicts"
            f" itself or the others of its well, plate or experiment ({what}); build the dataset"
            " again or restore the file, `python -m tfds_builder.rxrx1 verify --all` finds what"
            " else is damaged"
        )
    return {
        "sites": sites, "shard": place[:, 0].astype(np.int32),
        "offset": place[:, 1], "size": place[:, 2],
    }  # fmt: skip
