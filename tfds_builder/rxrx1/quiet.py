"""Leaves out what TensorFlow logs from C++ on its start; TF_CPP_MIN_LOG_LEVEL does not, in 2.21.

A process of its own reads what is written to file descriptor 2, so that nothing else is lost, not
even the last words of a crash. It runs this file: no import of ours delays it.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

NOISE = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog"
    rb"|To enable the following instructions: "
    rb"|[IW]\d{4} [\d:.]+ +\d+ "  # absl's, of information and warnings
    rb"|E\d{4} [\d:.]+ +\d+ cuda"  # no CUDA on a machine that needs none
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Filters file descriptor 2; Python's own stderr stays a terminal where it was one."""
    kept, stderr = os.dup(2), sys.stderr
    command = [sys.executable, "-IS", __file__]
    reader = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=kept)
    assert reader.stdin
    with reader.stdin as pipe:
        os.dup2(pipe.fileno(), 2)
    if stderr is sys.__stderr__:
        sys.stderr = os.fdopen(os.dup(kept), "w", buffering=1, errors="backslashreplace")
    try:
        yield
    finally:
        sys.stderr.flush()
        sys.stderr = stderr
        os.dup2(kept, 2)
        os.close(kept)
        with contextlib.suppress(subprocess.TimeoutExpired):  # a child that stays may hold the pipe
            reader.wait(1)


def copy() -> None:
    """Standard input -> standard output, without the noise; whole lines, or parts of a bar."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal, for the one that writes
    rest = b""
    while block := os.read(0, 1 << 16):
        *lines, rest = re.split(rb"(?<=[\r\n])", rest + block)
        os.write(1, b"".join(line for line in lines if not NOISE.match(line)))
    os.write(1, rest)


if __name__ == "__main__":
    copy()
