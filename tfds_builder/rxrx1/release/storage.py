"""Where the bytes of a release lie: an extracted tree, zip archives, or a mix of both.

Names are those of the extracted release ("images/HUVEC-01/Plate1/B02_s1_w1.png"), wherever a file
lies. Archives are never extracted: a name is looked up in the archive's table of contents and the
member is inflated in memory, so no path in an archive can reach the disk.
"""

import contextlib
import functools
import logging
import os
import re
import stat
import zipfile
from collections.abc import Collection
from typing import IO, NamedTuple

from etils import epath

from ..machine import expand, is_remote
from .metadata import EXPERIMENT, TABLE_BYTES, ReleaseError

TREES = ("images", "train", "test")  # top folders, of any layout
TABLES = (  # top files, of any layout
    "metadata.csv",
    "train.csv",
    "train_controls.csv",
    "test.csv",
    "test_controls.csv",
)
SUBFOLDERS = ("rxrx1", "rxrx1_v1.0")  # that the archives, WILDS's the last, unpack
IMAGE_BYTES = 1 << 24  # an image of the release has 65 kB
_CHUNK = 1 << 16  # bytes that are inflated at once, whatever an archive says of its members


def _open(path: epath.Path) -> IO[bytes]:
    """Opens a file; a named pipe, which nobody may ever write to, a socket or a device is none."""
    if is_remote(path):
        return path.open("rb")
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError("a named pipe, socket or device, expected a file")


def _read(file: IO[bytes], where: str, size: int) -> bytes:
    """The whole file, which says that it has `size` bytes."""
    limit = TABLE_BYTES if where.endswith(".csv") else IMAGE_BYTES
    if size > limit:
        raise ReleaseError(
            f"{where} has {size / 1e6:.0f} MB, expected at most {limit / 1e6:.0f} MB; it is no file"
            " of RxRx1, get it again"
        )
    return b"".join(iter(functools.partial(file.read, _CHUNK), b""))


class _Folder:
    """An extracted tree, or a part of one."""

    def __init__(self, path: epath.Path):
        self.path = path

    def read(self, name: str) -> bytes:
        path = self.path / name
        try:
            with _open(path) as file:
                return _read(file, os.fspath(path), path.stat().length)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise ReleaseError(f"{path} cannot be read ({error})") from error

    def exists(self, name: str) -> bool:
        return (self.path / name).exists()

    def names(self, folder: str) -> Collection[str]:
        path = self.path / folder
        try:
            # For the 256 folders of a whole release 0.3 s; `iterdir`, for buckets, takes 5 s.
            return [child.name for child in path.iterdir()] if is_remote(path) else os.listdir(path)
        except (FileNotFoundError, NotADirectoryError):
            return ()

    def describe(self, name: str) -> str:
        return os.fspath(self.path / name)


class _Contents(NamedTuple):
    """The table of contents of an archive."""

    zip: zipfile.ZipFile
    folders: dict[str, dict[str, None]]  # as in the archive -> names in it
    places: dict[str, str]  # of TREES and TABLES -> where they are, "rxrx1/images"


class _Archive:
    """A zip archive. Its table of contents is read on first use, once in each process.

    The official images archive has 753,060 members: a table of that length took 4.4 s of CPU time
    and 0.5 GB of memory, nearly all of it the standard `zipfile`'s.
    """

    def __init__(self, path: epath.Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return _Archive, (self.path,)

    @functools.cached_property
    def _contents(self) -> _Contents:
        with contextlib.ExitStack() as on_error:
            try:
                opened = zipfile.ZipFile(on_error.enter_context(_open(self.path)))
            except Exception as error:  # zipfile raises all sorts over a broken table
                raise ReleaseError(
                    f"{self.path} cannot be opened as a zip archive ({error}); it is damaged or"
                    " its download was cut off: compare its size, download it again"
                ) from error
            on_error.pop_all()
        folders: dict[str, dict[str, None]] = {}
        for name in opened.namelist():
            folder, _, base = name.rpartition("/")
            folders.setdefault(folder, {})[base] = None
        for folder in list(folders):
            while folder:
                folder, _, base = folder.rpartition("/")
                folders.setdefault(folder, {})[base] = None
        # Kaggle's train.zip holds the experiments themselves.
        own = ["", *re.findall(rf"\b({'|'.join(TREES)})\b", self.path.stem.lower())][-1]
        places: dict[str, str] = {}
        # The shallowest is meant, and of these the first by name.
        for folder in sorted(folders, key=lambda folder: (folder.count("/"), folder)):
            if folder.split("/")[0] == "__MACOSX":  # resource forks, named as the files are
                continue
            for top in folders[folder].keys() & {*TREES, *TABLES}:
                places.setdefault(top, f"{folder}/{top}" if folder else top)
            if own and own not in places and any(map(EXPERIMENT.fullmatch, folders[folder])):
                places[own] = folder
        return _Contents(opened, folders, places)

    def _member(self, name: str) -> str:
        top, _, rest = name.partition("/")
        return "/".join(filter(None, (self._contents.places.get(top, top), rest)))

    def read(self, name: str) -> bytes:
        archive, where = self._contents.zip, self.describe(name)
        try:
            info = archive.getinfo(self._member(name))
        except KeyError:
            raise FileNotFoundError(where) from None
        if info.flag_bits & 1:
            raise ReleaseError(f"{where} is encrypted; expected a plain archive")
        # A few bytes in the other methods may unpack to gigabytes before `_read` sees any.
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ReleaseError(
                f"{where} is packed by method {info.compress_type}, expected"
                f" {zipfile.ZIP_DEFLATED} (deflate); pack it again"
            )
        try:
            with archive.open(info) as file:
                return _read(file, where, info.file_size)
        except ReleaseError:
            raise
        except Exception as error:  # bad CRC or header, unknown method, broken stream, short file
            raise ReleaseError(
                f"{where} cannot be read ({type(error).__name__}: {error}); the archive is"
                " damaged, download it again"
            ) from error

    def exists(self, name: str) -> bool:
        member, opened = self._member(name), self._contents
        folder, _, base = member.rpartition("/")
        known = member in opened.folders or base in opened.folders.get(folder, ())
        return known and name.split("/")[0] in opened.places

    def names(self, folder: str) -> Collection[str]:
        return list(filter(None, self._contents.folders.get(self._member(folder), ())))

    def describe(self, name: str) -> str:
        return f"{self.path}: {self._member(name)}"


class Storage:
    """The files of a release below one folder, or in one archive.

    `root` may hold metadata.csv and images/ (or what the other layouts have), may hold them one
    folder down (`rxrx1/`), may hold zip archives with them inside, at any depth, or may itself be
    such an archive. Each table and each experiment is read where it lies extracted; else one
    archive must have it. Local paths and every path that `etils.epath` knows are taken. Can be
    pickled; may be used from several threads.
    """

    def __init__(self, root: epath.PathLike):
        self.root = expand(root)
        self._folders: list[_Folder] = []
        self._archives: list[_Archive] = []
        self._holders: dict[str, _Folder | _Archive | None] = {}
        if self.root.is_dir():
            folders = [self.root, *(self.root / name for name in SUBFOLDERS)]
            self._folders = [_Folder(folder) for folder in folders if folder.is_dir()]
            for path in sorted(self.root.iterdir()):
                if path.suffix.lower() != ".zip":
                    continue
                if path.exists() and not (path.is_file() or path.is_dir()):
                    logging.warning("%s is a named pipe, socket or device; it is left out", path)
                    continue
                self._archives.append(_Archive(path))
        elif self.root.exists():
            if self.root.suffix.lower() != ".zip":
                raise ReleaseError(
                    f"{self.root} is neither a folder nor a .zip archive; name the folder that"
                    " holds the release"
                )
            self._archives = [_Archive(self.root)]
        else:
            raise ReleaseError(
                f"there is no {self.root}; name the folder that holds the release, extracted or as"
                " zip archives"
            )

    def holds(self, top: str) -> bool:
        """Whether there is a table, or a top folder with something in it, of TREES and TABLES.

        Raises:
          ReleaseError: several archives have the table, or one that may have it is broken.
        """
        return bool(self.names(top)) if top in TREES else self._holder(top) is not None

    def _holder(self, name: str) -> _Folder | _Archive | None:
        """Where a table, or the experiment of an image, is."""
        key = "/".join(name.split("/")[:2])
        if key not in self._holders:
            found: list = [folder for folder in self._folders if folder.exists(key)][:1]
            found = found or [archive for archive in self._archives if archive.exists(key)]
            if len(found) > 1:
                paths = ", ".join(os.fspath(archive.path) for archive in found)
                raise ReleaseError(
                    f"{key} is in several archives: {paths}; leave one of them in {self.root}"
                )
            self._holders[key] = found[0] if found else None
        return self._holders[key]

    def read(self, name: str) -> bytes:
        """The bytes of a file.

        Raises:
          FileNotFoundError: there is none.
          ReleaseError: it cannot be read; names the file, or the archive and the member.
        """
        holder = self._holder(name)
        if holder is None:
            raise FileNotFoundError(self.describe(name))
        return holder.read(name)

    def exists(self, name: str) -> bool:
        """Whether there is a file or folder of this name, in a tree or at the top."""
        holder = self._holder(name)
        return holder is not None and holder.exists(name)

    def names(self, folder: str) -> list[str]:
        """Sorted names of what lies in a folder, not in its subfolders; none if there is none."""
        if folder not in TREES:
            holder = self._holder(folder)
            return [] if holder is None else sorted(holder.names(folder))
        found = {name for extracted in self._folders for name in extracted.names(folder)}
        for archive in self._archives:
            try:
                found.update(archive.names(folder))
            except ReleaseError as error:
                if not found:
                    raise
                logging.warning("only the extracted %s/ is read: %s", folder, error)
        return sorted(found)

    def describe(self, name: str) -> str:
        """What messages call a file: its path, or "archive.zip: member"."""
        holder = None if name in TREES else self._holder(name)
        return os.fspath(self.root / name) if holder is None else holder.describe(name)
