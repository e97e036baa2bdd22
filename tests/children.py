"""Starts programs of tests/programs as children, alone or as the processes of one run."""

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PROGRAMS = ROOT / "tests" / "programs"
LAUNCH = ROOT / "launch"
SECONDS = 150  # after which a child counts as hanging; they take a tenth of it


class Ended(NamedTuple):
    code: int
    stdout: str
    stderr: str


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def environment(devices: int = 1) -> dict[str, str]:
    """Of one process with `devices` simulated devices, without the variables of any cluster."""
    clusters = ("SLURM_", "TPU_", "KUBERNETES_", "OMPI_", "JAX_PROCESS", "JAX_COORD", "XLA_FLAGS")
    kept = {name: x for name, x in os.environ.items() if not name.startswith(clusters)}
    return kept | {
        "JAX_NUM_CPU_DEVICES": str(devices),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }


class Child(subprocess.Popen):
    """Its output goes to files: in a pipe that nobody reads XLA's warnings would hold it up."""

    def __init__(self, command: Sequence[object], **options):
        self.outputs = [tempfile.TemporaryFile("w+") for _ in range(2)]
        stdout, stderr = self.outputs
        super().__init__(
            list(map(str, command)), cwd=ROOT, stdout=stdout, stderr=stderr, **options
        )

    def said(self) -> list[str]:
        """[stdout, stderr] of a child that has ended."""
        for file in self.outputs:
            file.seek(0)
        return [file.read() for file in self.outputs]


def start(
    program: str, *arguments: object, processes: int = 1, devices: int = 1, **variables: str
) -> list[Child]:
    """Starts programs/`program`.py once, or as joined processes that share the devices."""
    joined = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "JAX_NUM_PROCESSES": str(processes),
    }
    return [
        Child(
            [sys.executable, PROGRAMS / f"{program}.py", *arguments],
            env=environment(max(1, devices // processes))
            | (joined | {"JAX_PROCESS_ID": str(i)} if processes > 1 else {})
            | variables,
        )
        for i in range(processes)
    ]


def end(children: Sequence[Child], seconds: float = SECONDS) -> list[Ended]:
    """How the children ended; kills them all if one hangs."""
    try:
        return [Ended(child.wait(timeout=seconds), *child.said()) for child in children]
    finally:
        for child in children:
            child.kill()


def run(program: str, *arguments: object, **options) -> Ended:
    """How programs/`program`.py ended."""
    return end(start(program, *arguments, **options))[0]


def wait_for(condition: Callable[[], object], child: subprocess.Popen) -> None:
    """Until the condition holds; it may fail where what the child writes is not there yet."""
    deadline = time.monotonic() + SECONDS
    while child.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if condition():
                return
        time.sleep(0.01)
    child.kill()
    raise AssertionError(f"status {child.poll()}: {child.said()}")


def stand_in(path: Path, program: str, *arguments: object) -> Path:
    """Writes the command `path`: programs/`program`.py, these arguments before its own."""
    words = [sys.executable, PROGRAMS / f"{program}.py", *arguments]
    path.write_text(f'#!/bin/sh\nexec {shlex.join(map(str, words))} "$@"\n')
    path.chmod(0o755)
    return path


def launch(name: str, *arguments: object, env: dict[str, str], wait: bool = True):
    """(status, stdout, stderr) of a script of launch/; the running script where it is not awaited.

    It leads a process group of its own, which ends with the test.
    """
    child = Child([LAUNCH / name, *arguments], env=env, start_new_session=True)
    return outcome(child) if wait else child


def outcome(child: Child) -> Ended:
    """How a script ended; what it started ends with it."""
    try:
        return end([child], 2 * SECONDS)[0]
    finally:
        stop(child)


def stop(child: Child) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
