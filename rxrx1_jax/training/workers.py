"""Child processes that do the work at a run: where they run, how they are stopped and ended."""

import codecs
import contextlib
import io
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rxrx1_jax.training import child

DONE, KILLED, REFUSED, FAILED = "done", "killed", "refused", "failed"
MEMORY = "XLA_CLIENT_MEM_FRACTION"  # of a GPU that a process takes when it starts; 0.75 unless set
SHARED = 0.9  # of a GPU, by all workers on it


class Ending(NamedTuple):
    """How the work at a run ended: DONE, KILLED by a signal, REFUSED before it began, or FAILED."""

    how: str
    reason: str = ""  # empty where it is done


class Worker:
    """What works at one run at a time in a child process, and can be stopped from another thread.

    The child does run after run (`child.serve`), until one fails.
    """

    def __init__(
        self, cores: frozenset[int] | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        self.cores = cores  # that children may use; None: those of this process
        self.env = dict(env or {})  # of children, beside that of this process
        self.lock: int | None = None  # descriptor of the run's lock, which the child holds, too
        self._stopping = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._orders: socket.socket | None = None  # to the child
        self._stopped = False

    def stop(self) -> None:
        with self._stopping:
            self._stopped = True
            if self._child is not None:
                self._child.terminate()

    def end(self) -> int:
        """Ends the child, which is not at work, and waits for it. Returns its status."""
        if self._child is None or self._orders is None:
            return 0
        self._orders.close()
        status, self._child = self._child.wait(), None
        return status

    def run(
        self, arguments: list[str], log: Path | None = None, alone: bool = False
    ) -> tuple[int, "LastWords"]:
        """Runs Python with `arguments`: -m, a module with main(argv), its arguments.

        Returns its exit status and what it said last. Raises KeyboardInterrupt after `stop`.

        log: file for what the child says; None: it says it here. alone: in a child of its own.
        """
        heard = LastWords()
        if alone:
            self.end()
        # Line by line, so that the child's two streams and this process's lines stay in order.
        with open(log or os.devnull, "a", buffering=1, errors="replace") as file:
            said, stderr = os.pipe()
            try:
                orders = self._ready(stderr)
                given = [stderr, *([file.fileno()] if log else [])]
                given += [] if self.lock is None else [self.lock]
                message = json.dumps([arguments, log is not None]).encode() + child.END
                with contextlib.suppress(OSError):  # it has ended: there will be no answer
                    socket.send_fds(orders, [message], given)
            finally:
                os.close(stderr)
            try:
                for line in _lines(said, orders):
                    (file if log else sys.stderr).write(line)
                    heard.add(line)
            except BaseException:
                self.stop()
                self.end()
                raise
            finally:
                os.close(said)
        status = 0 if _answer(orders) else self.end()
        if alone:
            self.end()
        return status, heard

    def _ready(self, stderr: int) -> socket.socket:
        """A child that waits for a command: that of the run before, or a new one."""
        with self._stopping:
            if self._stopped:
                raise KeyboardInterrupt
            if self._orders is not None and self._child is not None:
                if self._child.poll() is None:
                    return self._orders
                self._orders.close()
            self._orders, theirs = socket.socketpair()
            with _on(self.cores), theirs:
                self._child = subprocess.Popen(
                    [sys.executable, "-m", "rxrx1_jax.training.child"],
                    stdin=theirs.fileno(), stderr=stderr,
                    # In a cluster, too, it is a run by itself.
                    env=os.environ | {"JAX_NUM_PROCESSES": "1"} | self.env,
                )  # fmt: skip
            return self._orders


def _lines(pipe: int, orders: socket.socket) -> Iterator[str]:
    """What is said, until there is an answer and nothing more to read.

    The pipe may stay open: another process that the child started may have it.
    """
    decoder = io.IncrementalNewlineDecoder(
        codecs.getincrementaldecoder("utf-8")("replace"), translate=True
    )
    rest, sources = "", list[Any]([pipe, orders])
    while pipe in (ready := select.select(sources, [], [])[0]) or orders not in ready:
        data = os.read(pipe, 2**16)
        if not data:
            sources.remove(pipe)
        *lines, rest = (rest + decoder.decode(data)).split("\n")
        yield from (f"{line}\n" for line in lines)
    if rest:
        yield rest


def _answer(orders: socket.socket) -> bytes:
    """The child's; empty where it has ended without one."""
    try:
        return orders.recv(len(child.DONE))
    except OSError:
        return b""


@contextlib.contextmanager
def _on(cores: frozenset[int] | None) -> Iterator[None]:
    """Children that this thread starts meanwhile have these cores from their first moment."""
    if cores is None:
        yield
        return
    before = os.sched_getaffinity(0)  # of this thread
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def deal(count: int | None = None) -> list[Worker]:
    """`count` workers, with an equal share of this process's cores each, and a GPU each.

    Small networks leave most of a second core idle: one run per core is faster than runs in turn.
    More workers than GPUs share one's memory. One worker has all GPUs.

    Args:
      count: None: as many as there are GPUs; 1 without any.

    Raises ValueError where there are fewer cores than workers, or the system cannot bind them.
    """
    gpus = visible_gpus()
    if count is None:
        count = min(len(gpus), os.cpu_count() or 1) or 1
    if count == 1:
        return [Worker()]
    if not hasattr(os, "sched_setaffinity"):
        raise ValueError(f"--workers={count}: this system cannot bind a process to cores; use 1")
    cores = sorted(os.sched_getaffinity(0))
    if count > len(cores):
        raise ValueError(f"--workers={count}: there are {len(cores)} cores; use as many or fewer")
    team = []
    for i in range(count):
        env = {}
        if gpus:
            env["CUDA_VISIBLE_DEVICES"] = gpus[i % len(gpus)]
            sharing = len(range(i % len(gpus), count, len(gpus)))
            if sharing > 1 and not {MEMORY, "XLA_PYTHON_CLIENT_MEM_FRACTION"} & os.environ.keys():
                env[MEMORY] = f"{SHARED / sharing:.3f}"
        team.append(Worker(frozenset(cores[i::count]), env))
    return team


def visible_gpus() -> list[str]:
    """The GPUs that JAX would use: those of CUDA_VISIBLE_DEVICES, else all of the machine.

    They are not touched. A driver that does not answer has none.
    """
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms and not {"cuda", "gpu"} & {*platforms.split(",")}:
        return []
    if (given := os.environ.get("CUDA_VISIBLE_DEVICES")) is None:
        if not shutil.which("nvidia-smi"):
            return []
        asked = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        found = subprocess.run(asked, capture_output=True, text=True, check=False)
        given = ",".join(found.stdout.split()) if not found.returncode else ""
    return [name.strip() for name in given.split(",") if name.strip() not in ("", "-1")]


def interrupt_by_signals() -> None:
    """SIGTERM and SIGHUP (a closed terminal) interrupt this command as Ctrl-C does.

    Else its children would have to notice that it is gone. `nohup` keeps SIGHUP ignored.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


class LastWords:
    """Why a child failed, by the lines of its stderr.

    Its error, else what its last traceback ends with, else its last line: a warning that a library
    has at the end of the process is no reason.
    """

    def __init__(self) -> None:
        self.error = ""  # of its line "error: "
        self._last = self._raised = ""
        self._traced = False

    def add(self, line: str) -> None:
        before, text = self._last, line.strip()
        self._last = text or before
        if line.startswith("error: "):
            self.error = text.removeprefix("error: ")
        elif line.startswith("Traceback "):
            self._traced = not before.startswith("Exception ignored")
        elif self._traced and line[:1].strip():
            self._raised, self._traced = text, False

    @property
    def reason(self) -> str:
        return self.error or self._raised or self._last


def ending(status: int, heard: LastWords) -> Ending:
    """What to make of a child that ended with a status other than 0, or without its work done."""
    if status < 0:
        return Ending(KILLED, f"ended by {signal.Signals(-status).name}")
    how = KILLED if status == os.EX_TEMPFAIL else FAILED
    return Ending(how, heard.reason or f"ended with status {status}")
