"""Locks between processes of one machine or several, also where the file system has none.

A lock is one of the kernel (flock): it ends with its holder, however that ended. Some network file
systems refuse flock, others grant it to every host separately (Lustre with localflock, BeeGFS
unless told otherwise, NFS with local_lock). So the holder also signs the file, and signs it again
every BEAT seconds: who is granted the lock of a file that another host goes on signing is refused,
and of two who signed at once the last one keeps it.
"""

import contextlib
import fcntl
import itertools
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

BEAT = 5.0  # seconds
QUIET = 2.5  # beats after which a signature that stays the same is that of a dead process
LENGTH = 200  # of a signature, so that none is ever half of two
NO_LOCK = "RXRX1_JAX_NO_LOCK"  # set by --no-lock, for children, too


class LockError(ValueError):
    """A file that cannot be locked; one line."""


class Locked(LockError):
    """Another process is at work there."""


@contextlib.contextmanager
def lock(path: Path) -> Iterator[int]:
    """Locks a file for this process and the children that inherit its descriptor, which it gives.

    Makes its folder; the file stays. Raises Locked, or LockError: it cannot be written, or locks do
    not work there, unless NO_LOCK is set.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise LockError(
            f"{path.parent}: cannot be written ({error.strerror}); choose another --workdir"
        ) from error
    try:
        if os.environ.get(NO_LOCK):
            yield number
            return
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Locked(
                f"{path.parent}: another training is at work ({_named(_read(path))}); wait for it,"
                " stop it, or choose another --workdir"
            ) from None
        except OSError as error:
            raise LockError(
                f"{path}: this file system has no locks ({error.strerror}); choose another"
                " --workdir, or --no-lock if nothing else will work there"
            ) from error
        with _signed(path, number):
            yield number
    finally:
        os.close(number)


@contextlib.contextmanager
def _signed(path: Path, number: int) -> Iterator[None]:
    """Signs the file again and again meanwhile. Raises Locked where another host does so, too."""
    host, old = socket.gethostname(), _read(path)
    if old and f" on {host} " not in f"{old} ":
        time.sleep(QUIET * BEAT)
        if _read(path) != old:
            raise Locked(_both(path))
    mine, ended = f"process {os.getpid()} on {host} {uuid4().hex}", threading.Event()

    def sign(count: int) -> None:
        os.pwrite(number, f"{mine} {count}".ljust(LENGTH).encode(), 0)
        os.fsync(number)

    def go_on() -> None:
        for count in itertools.count(1):
            if ended.wait(BEAT):
                break
            with contextlib.suppress(OSError):  # a full disk; a server that is away
                if not (_read(path) or mine).startswith(mine):
                    _give_up(_both(path))
                sign(count)

    try:
        sign(0)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    thread = threading.Thread(target=go_on, name="lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(OSError):
            if _read(path).startswith(mine):
                os.ftruncate(number, 0)


def _read(path: Path) -> str:
    """The signature, from the file server and no cache; empty where the last holder ended well."""
    return path.read_text(errors="replace").strip()


def _named(signature: str) -> str:
    return " ".join(signature.split()[:4]) or "not named yet"


def _both(path: Path) -> str:
    return (
        f"{path.parent}: {_named(_read(path))} is at work there, too, and got the same lock: locks"
        " of this file system are for one host alone; choose another --workdir"
    )


def _give_up(line: str) -> None:
    """Ends the process at once, as a kill would: to save would be to write in another's run."""
    sys.stderr.write(f"error: {line}\n")
    sys.stderr.flush()
    os._exit(1)
