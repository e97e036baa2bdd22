"""Where finished shards wait for the dataset: nothing finished is lost, nothing half-made counts.

A build writes its shards into `.building-<version>-<fingerprint>-<format>/` in the folder of the
config, `<data_dir>/rxrx1/<config>/`. The fingerprint keeps shards of other releases, settings or
formats apart. What a kill (even `kill -9`) may interrupt, step by step, and what the next build
does about it:

1. Writing a shard: to a `*.tmp` name, which `prepare` removes.
2. Finishing it: first `<shard>.sites.json` (where each image lies), then one rename of the shard. A
   sidecar without its shard counts nothing and is written again. The new name of a shard records
   the number of examples, their bytes and the size of the file. A file of another size (cut off by
   a power failure) is removed and written again.
3. Placing the shards in TFDS's `incomplete.*` folder: hard links, the shards stay here as well.
   `remove_leftovers` removes stale `incomplete.*` folders. Where the filesystem has no links, files
   are moved, under a journal written before, and `remove_leftovers` moves them back.
4. TFDS renames its folder to `<version>`: one rename on a disk. The dataset is there.
5. Removing this folder: `remove_leftovers` does so for every version that is there.

Object stores (gs://) have no locks, links or atomic renames of folders: there the user takes care
that one build runs at a time, shards are moved, and a kill during step 4 needs a look by hand.
"""

import dataclasses
import errno
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from etils import epath
from tensorflow_datasets.core import file_adapters, naming

from . import machine
from .examples import Encoded, StoredImage
from .machine import is_remote
from .release.metadata import Site

DATASET = "rxrx1"
FORMATS = ("tfrecord", "array_record")
_JOURNAL = "moved.json"
_SIDECAR = ".sites.json"
_STAGED = re.compile(r"(.+)\.(\d+)-examples\.(\d+)-bytes\.(\d+)-on-disk")


@dataclasses.dataclass(frozen=True)
class Shard:
    """One record file of the dataset: the unit of resuming, and of Beam's work."""

    split: str
    index: int  # 0 .. count-1
    count: int  # shards of the split
    sites: tuple[Site, ...]  # in the order of the records

    @property
    def name(self) -> str:
        return f"{self.split}-{self.index:05d}-of-{self.count:05d}"


class Written(NamedTuple):
    """A finished shard, as the name of its file tells."""

    examples: int
    bytes: int  # of all serialized examples, as TFDS counts them
    size: int  # of the file, bytes
    path: epath.Path


@dataclasses.dataclass(frozen=True)
class Staging:
    """The folder of one unfinished build. Picklable.

    Attributes:
      config_folder: `<data_dir>/rxrx1/<config>`.
      version: of the dataset, "1.0.0".
      fingerprint: hex digits, of everything that decides the bytes of the records.
      file_format: one of FORMATS.

    Raises:
      ValueError: a file format that is not one of them.
    """

    config_folder: str
    version: str
    fingerprint: str
    file_format: str

    def __post_init__(self) -> None:
        if self.file_format not in FORMATS:
            raise ValueError(f"file_format={self.file_format!r}: expected one of {FORMATS}")

    @property
    def folder(self) -> epath.Path:
        name = f".building-{self.version}-{self.fingerprint[:8]}-{self.file_format}"
        return epath.Path(self.config_folder) / name

    def prepare(self) -> None:
        """Makes the folder; removes what a killed build left half-written in it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in machine.matching(self.folder, "*.tmp"):
            path.unlink(missing_ok=True)
        for staged in self._staged().values():
            size = staged.path.stat().length
            if size != staged.size:
                logging.warning("%s has %d bytes: it is written again", staged.path, size)
                staged.path.unlink()

    def finished(self, shards: Iterable[Shard]) -> dict[str, Written]:
        """{name: what it holds} of those of the shards that are finished."""
        staged = self._staged()
        return {
            shard.name: staged[shard.name]
            for shard in shards
            if shard.name in staged and staged[shard.name].examples == len(shard.sites)
        }

    def check_space(self, shards: Sequence[Shard], record: float) -> None:
        """Compares the free space with what the unfinished of all shards will take.

        record: bytes of one, about. The finished shards tell better.

        Raises:
          OSError: the space will not do; says how much is missing.
        """
        if is_remote(self.config_folder):
            return
        finished = self.finished(shards)
        done = sum(written.examples for written in finished.values())
        left = sum(len(shard.sites) for shard in shards) - done
        if done:
            record = sum(written.bytes for written in finished.values()) / done
        needed, free = round(left * record), shutil.disk_usage(self.config_folder).free
        if needed > free:
            raise OSError(
                errno.ENOSPC,
                f"not enough space for {self.config_folder}: {left} sites of about {record:.0f}"
                f" bytes need {_gigabytes(needed)}, {_gigabytes(free)} are free,"
                f" {_gigabytes(needed - free)} are missing; free them, choose another data"
                " directory, or build a part of the release",
            )

    def write(self, shard: Shard, examples: Iterable[Encoded]) -> None:
        """Writes and finishes one shard, its sidecar before it; examples are read one at a time.

        Raises:
          OSError: the file could not be written, by a full disk for example; its remains are
            removed, and the message names it. Errors of `examples` pass as they are.
        """
        temporary = self.folder / f"{shard.name}.{uuid.uuid4().hex}.tmp"
        images: list[StoredImage] = []
        faults: list[Exception] = []  # of `examples`

        def noted() -> Iterator[tuple[str, bytes]]:
            try:
                for example, image in examples:
                    images.append(image)
                    yield shard.name, example  # neither format stores the key
            except Exception as error:
                faults.append(error)
                raise

        file_format = file_adapters.FileFormat(self.file_format)
        adapter = file_adapters.ADAPTER_FOR_FORMAT[file_format]
        try:
            adapter.write_examples(temporary, noted())
            if len(images) != len(shard.sites):
                raise ValueError(f"{len(images)} examples for {len(shard.sites)} sites")
            sidecar = self._sidecar(shard)
            machine.write_whole(sidecar, json.dumps(images).encode())
            if not is_remote(self.config_folder):
                machine.flush(sidecar)
                machine.flush(temporary)
            size, on_disk = sum(image.record for image in images), temporary.stat().length
            name = f"{shard.name}.{len(images)}-examples.{size}-bytes.{on_disk}-on-disk"
            temporary.replace(self.folder / name)
        except BaseException as error:
            temporary.unlink(missing_ok=True)
            for fault in faults:
                raise fault  # noqa: B904  closing the file may have failed as well: no matter
            if not isinstance(error, Exception):
                raise
            raise OSError(
                f"shard {shard.name} could not be written to {temporary}: {error}. Finished shards"
                " are kept: remove the cause and run the same command again"
            ) from error

    def stored_images(self, shard: Shard) -> list[StoredImage]:
        """Where the images of a finished shard lie, in the order of its sites."""
        return [StoredImage(*row) for row in json.loads(self._sidecar(shard).read_text())]

    def _sidecar(self, shard: Shard) -> epath.Path:
        return self.folder / f"{shard.name}{_SIDECAR}"

    def place(self, shards: Iterable[Shard], into: epath.PathLike) -> dict[str, int]:
        """Puts all shards, finished, into TFDS's `incomplete.*` folder, under TFDS's names.

        Returns:
          {name of the file: bytes}, in the order of the shards.
        """
        into = epath.Path(into)
        staged = self._staged()
        targets: dict[epath.Path, epath.Path] = {}
        sizes: dict[str, int] = {}
        for shard in shards:
            template = naming.ShardedFileTemplate(
                data_dir=into, dataset_name=DATASET, split=shard.split,
                filetype_suffix=self.file_format,
            )  # fmt: skip
            target = template.sharded_filepath(shard_index=shard.index, num_shards=shard.count)
            targets[staged[shard.name].path] = target
            sizes[target.name] = staged[shard.name].size
        try:
            if is_remote(self.config_folder):
                raise OSError(errno.EOPNOTSUPP, "no hard links in an object store")
            for source, target in targets.items():
                os.link(source, target)
        except OSError as error:
            logging.info("shards are moved, not linked (%s)", error)
            names = {source.name: target.name for source, target in targets.items()}
            journal = json.dumps({"into": into.name, "names": names})
            machine.write_whole(self.folder / _JOURNAL, journal.encode())
            for source, target in targets.items():
                source.replace(target)
        return sizes

    def _staged(self) -> dict[str, Written]:
        """{name of the shard: its file} where its sidecar is, by one listing of the folder."""
        paths = sorted(self.folder.iterdir()) if self.folder.exists() else []
        names = {path.name for path in paths}
        matches = ((path, _STAGED.fullmatch(path.name)) for path in paths)
        return {
            match[1]: Written(int(match[2]), int(match[3]), int(match[4]), path)
            for path, match in matches
            if match and f"{match[1]}{_SIDECAR}" in names
        }


def remove_leftovers(config_folder: epath.PathLike, version: str) -> None:
    """Clears up after earlier builds of a version. Only under `build_lock`.

    Unfinished builds keep their finished shards; if the version is there, none is needed any more.
    """
    config_folder = epath.Path(config_folder)
    unfinished = machine.matching(config_folder, f".building-{version}-*")
    for folder in unfinished:
        if (folder / _JOURNAL).exists():
            moved = json.loads((folder / _JOURNAL).read_text())
            for staged, placed in moved["names"].items():
                if (config_folder / moved["into"] / placed).exists():
                    (config_folder / moved["into"] / placed).replace(folder / staged)
            (folder / _JOURNAL).unlink()
    for folder in machine.matching(config_folder, f"incomplete.*_{version}"):
        folder.rmtree()
    if (config_folder / version).exists():
        for folder in unfinished:
            folder.rmtree()


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.3f} MB"
