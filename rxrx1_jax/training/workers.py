"""Child processes that do the work at a run: where they run, how they are stopped and ended."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

DONE, KILLED, REFUSED, FAILED = "done", "killed", "refused", "failed"
MEMORY = "XLA_CLIENT_MEM_FRACTION"  # of a GPU that a process takes when it starts; 0.75 unless set
SHARED = 0.9  # of a GPU, by all workers on it
CHILD = "RXRX1_JAX_CHILD"  # set for a child whose stdin ends with the command that started it


class Ending(NamedTuple):
    """How the work at a run ended: DONE, KILLED by a signal, REFUSED before it began, or FAILED."""

    how: str
    reason: str = ""  # empty where it is done


class Worker:
    """What runs one child process at a time, and can be stopped from another thread."""

    def __init__(
        self, cores: frozenset[int] | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        self.cores = cores  # that children may use; None: those of this process
        self.env = dict(env or {})  # of children, beside that of this process
        self.lock: int | None = None  # descriptor of the run's lock, which children inherit
        self._stopping = threading.Lock()
        self._child: subprocess.Popen[str] | None = None
        self._stopped = False

    def start(self, command: list[str], **options: Any) -> subprocess.Popen[str]:
        """`subprocess.Popen`, on the worker's cores. Raises KeyboardInterrupt after `stop`."""
        with self._stopping:
            if self._stopped:
                raise KeyboardInterrupt
            kept = () if self.lock is None else (self.lock,)
            with _on(self.cores):
                self._child = subprocess.Popen(
                    command, text=True, errors="replace", pass_fds=kept, **options
                )
            return self._child

    def stop(self) -> None:
        with self._stopping:
            self._stopped = True
            if self._child is not None:
                self._child.terminate()

    def run(self, arguments: list[str], log: Path | None = None) -> tuple[int, "LastWords"]:
        """Runs Python with `arguments`. Returns its exit status and what it said last.

        log: file for what the child says; None: it says it here.
        """
        heard = LastWords()
        # Line by line, so that the child's two streams and this process's lines stay in order.
        with open(log or os.devnull, "a", buffering=1, errors="replace") as file:
            with self.start(
                [sys.executable, *arguments], stdin=subprocess.PIPE, stderr=subprocess.PIPE,
                stdout=file if log else None,
                # In a cluster, too, it is a run by itself.
                env=os.environ | {"JAX_NUM_PROCESSES": "1", CHILD: "1"} | self.env,
            ) as process:  # fmt: skip
                assert process.stderr is not None
                try:
                    for line in process.stderr:
                        (file if log else sys.stderr).write(line)
                        heard.add(line)
                except BaseException:
                    process.terminate()
                    process.communicate()
                    raise
        return process.returncode, heard


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


def end_with_command() -> None:
    """In a child of `Worker.run`: SIGTERM for this process when that one is gone, however it ended.

    Without this a child would go on after a `kill -9`, with the run's lock and the device.
    """

    def wait() -> None:
        os.read(0, 1)  # nothing is ever written: it returns at the end
        os.kill(os.getpid(), signal.SIGTERM)

    if os.environ.pop(CHILD, None):
        threading.Thread(target=wait, name="command", daemon=True).start()


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
