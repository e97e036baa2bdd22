"""One training at a time in a run directory."""

import contextlib
import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import jax

from rxrx1_jax.training.run_dir import LOCK, RunError


@contextlib.contextmanager
def hold(workdir: Path) -> Iterator[None]:
    """Holds the only right to train in `workdir`; of several processes the first one does.

    The kernel releases it when the process ends, however it ends; the file stays. Some network
    filesystems have no locks: there a line says so, and the user sees to it.

    Raises:
      RunError: another process holds it, by name; or the directory cannot be written.
    """
    if jax.process_index():
        yield
        return
    path = workdir / LOCK
    try:
        file = open(path, "a+")
    except OSError as error:
        raise RunError(
            f"{workdir}: cannot be written ({error.strerror}); choose another --workdir"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise RunError(
                f"{workdir}: another training is at work there ({file.read() or 'not named yet'}); "
                "wait for it, stop it, or choose another --workdir"
            ) from None
        except OSError as error:
            print(f"{path}: {error}; see to it that nothing else trains there", file=sys.stderr)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
