"""One build of a version of a config at a time."""

import contextlib
import fcntl
import logging
import os
import socket
from collections.abc import Iterator

from etils import epath


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path lies in an object store (gs://...) and not on a mounted filesystem."""
    return "://" in os.fspath(path)


@contextlib.contextmanager
def build_lock(config_folder: epath.PathLike, version: str) -> Iterator[None]:
    """Holds the only right to build a version of a config; makes the folder where missing.

    The kernel releases the lock when the process ends, however it ends. Object stores and some
    network filesystems have no locks: there the log says so, and the user sees to it.

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
