"""Where the bytes of a release lie: an extracted tree, zip archives, or a mix of both.

Names are those of the extracted release ("images/HUVEC-01/Plate1/B02_s1_w1.png"), wherever a file
lies. Archives are never extracted: a name is looked up in the archive's table of contents and the
member is inflated in memory, so no path in an archive can reach the disk.
"""

import contextlib
import os
import threading
import zipfile
from collections.abc import Collection
from typing import NamedTuple

from etils import epath

from .metadata import ReleaseError

TREES = ("images", "train", "test")  # top folders, of any layout
TABLES = (  # top files, of any layout
    "metadata.csv",
    "train.csv",
    "train_controls.csv",
    "test.csv",
    "test_controls.csv",
)
SUBFOLDERS = ("rxrx1", "rxrx1_v1.0")  # that the archives, WILDS's the last, unpack


class _Folder:
    """An extracted tree, or a part of one."""

    def __init__(self, path: epath.Path):
        self.path = path

    def read(self, name: str) -> bytes:
        path = self.path / name
        try:
            return path.read_bytes()
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
            if "://" not in os.fspath(path):
                return sorted(os.listdir(path))
            return sorted(child.name for child in path.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return ()

    def describe(self, name: str) -> str:
        return os.fspath(self.path / name)


class _Contents(NamedTuple):
    """The table of contents of an archive."""

    process: int  # that opened the file: a fork may not share its offset
    zip: zipfile.ZipFile
    folders: dict[str, dict[str, None]]  # as in the archive -> names in it
    prefixes: dict[str, str]  # of TREES and TABLES -> what stands before it, "rxrx1/"


class _Archive:
    """A zip archive. Its table of contents is read on first use, once in each process.

    The official images archive has 753,060 members: a table of that length took 4.4 s of CPU time
    and 0.5 GB of memory, nearly all of it the standard `zipfile`'s.
    """

    def __init__(self, path: epath.Path):
        self.path = path
        self._lock = threading.Lock()
        self._opened: _Contents | None = None

    def __reduce__(self) -> tuple:
        return _Archive, (self.path,)

    def _open(self) -> _Contents:
        opened = self._opened
        if opened and opened.process == os.getpid():
            return opened
        with self._lock:
            if self._opened is opened:  # no other thread was faster
                self._opened = self._read_contents()
        return self._open()

    def _read_contents(self) -> _Contents:
        with contextlib.ExitStack() as on_error:
            try:
                opened = zipfile.ZipFile(on_error.enter_context(self.path.open("rb")))
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
        prefixes: dict[str, str] = {}
        # The shallowest is meant, and of these the first by name.
        for folder in sorted(folders, key=lambda folder: (folder.count("/"), folder)):
            if folder.split("/")[0] == "__MACOSX":  # resource forks, named as the files are
                continue
            for top in folders[folder].keys() & {*TREES, *TABLES}:
                prefixes.setdefault(top, f"{folder}/" if folder else "")
        return _Contents(os.getpid(), opened, folders, prefixes)

    def _member(self, name: str) -> str:
        return self._open().prefixes.get(name.split("/")[0], "") + name

    def read(self, name: str) -> bytes:
        archive, where = self._open().zip, self.describe(name)
        try:
            info = archive.getinfo(self._member(name))
        except KeyError:
            raise FileNotFoundError(where) from None
        if info.flag_bits & 1:
            raise ReleaseError(f"{where} is encrypted; expected a plain archive")
        try:
            return archive.read(info)
        except Exception as error:  # bad CRC or header, unknown method, broken stream, short file
            raise ReleaseError(
                f"{where} cannot be read ({type(error).__name__}: {error}); the archive is"
                " damaged, download it again"
            ) from error

    def exists(self, name: str) -> bool:
        folder, _, base = self._member(name).rpartition("/")
        return base in self._open().folders.get(folder, ())

    def names(self, folder: str) -> Collection[str]:
        return sorted(filter(None, self._open().folders.get(self._member(folder), ())))

    def describe(self, name: str) -> str:
        return f"{self.path}: {self._member(name)}"


class Storage:
    """The files of a release below one folder, or in one archive.

    `root` may hold metadata.csv and images/ (or what the other layouts have), may hold them one
    folder down (`rxrx1/`), may hold zip archives with them inside, at any depth, or may itself be
    such an archive. Where a top folder or table lies extracted, that is read; else it must lie in
    one archive. Local paths and every path that `etils.epath` knows are taken. Can be pickled;
    may be used from several threads.
    """

    def __init__(self, root: epath.PathLike):
        self.root = epath.Path(root)
        self._folders: list[_Folder] = []
        self._archives: list[_Archive] = []
        self._holders: dict[str, _Folder | _Archive] = {}
        if self.root.is_dir():
            folders = [self.root, *(self.root / name for name in SUBFOLDERS)]
            self._folders = [_Folder(folder) for folder in folders if folder.is_dir()]
            paths = sorted(self.root.iterdir())
            self._archives = [_Archive(path) for path in paths if path.name.endswith(".zip")]
        elif self.root.exists():
            if self.root.suffix != ".zip":
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
        """Whether there is a top folder or table of this name, one of TREES and TABLES.

        Raises:
          ReleaseError: several archives have it, or an archive that may have it is broken.
        """
        if top not in self._holders:
            extracted = [folder for folder in self._folders if folder.exists(top)]
            packed = [] if extracted else [file for file in self._archives if file.exists(top)]
            if len(packed) > 1:
                paths = ", ".join(os.fspath(archive.path) for archive in packed)
                raise ReleaseError(
                    f"{top} is in several archives: {paths}; leave one of them in {self.root}"
                )
            if not extracted and not packed:
                return False
            self._holders[top] = (extracted + packed)[0]
        return True

    def _holder(self, name: str) -> _Folder | _Archive | None:
        top = name.split("/")[0]
        return self._holders[top] if self.holds(top) else None

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
        """Whether there is a file or folder of this name."""
        holder = self._holder(name)
        return holder is not None and holder.exists(name)

    def names(self, folder: str) -> Collection[str]:
        """Sorted names of what lies in a folder, not in its subfolders; none if there is none."""
        holder = self._holder(folder)
        return () if holder is None else holder.names(folder)

    def describe(self, name: str) -> str:
        """What messages call a file: its path, or "archive.zip: member"."""
        holder = self._holder(name)
        return os.fspath(self.root / name) if holder is None else holder.describe(name)
