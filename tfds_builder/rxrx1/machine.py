"""What a build asks of its machine: threads, files that are whole, one build at a time."""

import contextlib
import fcntl
import fnmatch
import logging
import os
import re
import socket
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from etils import epath

from .release.metadata import ReleaseError

T = TypeVar("T")
R = TypeVar("R")


def usable_cpus() -> int:
    """CPUs this process may use: the number of threads of every pool of the builder."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_order(
    function: Callable[[T], R], items: Iterable[T], threads: int | None = None
) -> Generator[R, None, None]:
    """`map` over a pool of threads, in order, with a bounded look-ahead.

    Unlike `Executor.map` it holds few results at a time, whatever the number of items. An
    exception, or a consumer that stops early, cancels what has not begun.

    threads: one a CPU (None) for what computes; more for what waits for the disk.
    """
    threads = threads or usable_cpus()
    executor = ThreadPoolExecutor(threads)
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            pending.append(executor.submit(function, item))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def write_whole(path: epath.Path, data: bytes) -> None:
    """Writes a file beside its place (`*.tmp`), then renames it, over an older one if need be."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def flush(path: epath.Path) -> None:
    """Waits until a file is on the disk, so that after a power failure its size can be trusted."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def expand(path: epath.PathLike) -> epath.Path:
    """A path as a user gave it, with `~` expanded, which no shell does in --data_dir=~/data.

    Raises:
      ReleaseError: a URL of anything but Google's buckets; or there is no such home.
    """
    given = os.fspath(path)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", given) and not given.startswith("gs://"):
        raise ReleaseError(
            f"{given}: only gs:// and paths of this machine are read and written; mount it, or copy"
            " to a disk and name the folder there"
        )
    expanded = os.path.expanduser(given)
    if expanded.startswith("~"):
        raise ReleaseError(f"{given}: no home folder is known for this; name the whole path")
    return epath.Path(expanded)


def local(path: epath.PathLike) -> Path:
    """`expand` where a bucket cannot serve: raises ReleaseError for it."""
    if is_remote(path):
        raise ReleaseError(f"{path}: a bucket cannot serve here; mount or copy it, or name a disk")
    return Path(expand(path))


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path lies in an object store (gs://...) and not on a mounted filesystem."""
    return "://" in os.fspath(path)


def matching(folder: epath.Path, pattern: str) -> list[epath.Path]:
    """What lies in a folder under such names. `glob` fails where the folder's own name has a [."""
    found = folder.iterdir() if folder.exists() else ()
    return sorted(path for path in found if fnmatch.fnmatchcase(path.name, pattern))


@contextlib.contextmanager
def build_lock(config_folder: epath.PathLike, version: str) -> Iterator[None]:
    """Holds the only right to build a version of a config; makes the folder where missing.

    The kernel releases the lock when the process ends, however it ends. Object stores and some
    network filesystems have no locks: there the log says so, and the user takes care.

    Raises:
      RuntimeError: another build holds it; names its process and host.
    """
    config_folder = epath.Path(config_folder)
    config_folder.mkdir(parents=True, exist_ok=True)
    if is_remote(config_folder):
        logging.warning("no locks in %s: see that no other build of it runs", config_folder)
        yield
        return
    path = config_folder / f".building-{version}.lock"
    while True:
        file = open(path, "a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read() or "not named yet"
            file.close()
            raise RuntimeError(
                f"{config_folder} is being built already ({holder}); wait for that build, or stop"
                " it: the next one goes on from its finished shards"
            ) from None
        except OSError as error:
            logging.warning("%s: %s; see that no other build of it runs", path, error)
        # Whoever held the lock before may have removed the file since it was opened here.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                break
        file.close()
    with file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # before the lock is released
