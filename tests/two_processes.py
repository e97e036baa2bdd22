"""Starts the processes of one run as children, and sees to it that none outlives a test."""

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
SECONDS = 150  # after which a child counts as hanging; they take a tenth of it


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def environment(devices: int, cache: Path) -> dict[str, str]:
    """Of one process with `devices` simulated devices, and nothing of the clusters around it."""
    clusters = ("SLURM_", "TPU_", "KUBERNETES_", "OMPI_", "JAX_PROCESS", "JAX_COORD", "XLA_FLAGS")
    kept = {name: x for name, x in os.environ.items() if not name.startswith(clusters)}
    return kept | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }


class Child(subprocess.Popen):
    """Its output goes to files: in a pipe that nobody reads XLA's warnings would hold it up."""

    def __init__(self, command, **options):
        self.outputs = [tempfile.TemporaryFile("w+") for _ in range(2)]
        stdout, stderr = self.outputs
        super().__init__(command, stdout=stdout, stderr=stderr, **options)

    def said(self):
        """[stdout, stderr] of a child that has ended."""
        for file in self.outputs:
            file.seek(0)
        return [file.read() for file in self.outputs]


def start(program, arguments, processes, cache, devices=4, **variables):
    """Starts `python -c program arguments` once, or as that many joined processes."""
    joined = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "JAX_NUM_PROCESSES": str(processes),
    }
    return [
        Child(
            [sys.executable, "-c", program, *map(str, arguments)], cwd=ROOT,
            env=environment(devices // processes, cache)
            | (joined | {"JAX_PROCESS_ID": str(i)} if processes > 1 else {})
            | variables,
        )
        for i in range(processes)
    ]  # fmt: skip


def end(children, seconds=SECONDS):
    """[(exit status, stdout, stderr)] of the children; kills them all if one hangs."""
    try:
        return [(child.wait(timeout=seconds), *child.said()) for child in children]
    finally:
        for child in children:
            child.kill()
