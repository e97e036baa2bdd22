"""Starts the processes of one run as children, and sees to it that none outlives a test."""

import os
import socket
import subprocess
import sys
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


def start(program, arguments, processes, cache, devices=4, **variables):
    """Starts `python -c program arguments` once, or as that many joined processes."""
    joined = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "JAX_NUM_PROCESSES": str(processes),
    }
    return [
        subprocess.Popen(
            [sys.executable, "-c", program, *map(str, arguments)], cwd=ROOT,
            env=environment(devices // processes, cache)
            | (joined | {"JAX_PROCESS_ID": str(i)} if processes > 1 else {})
            | variables,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i in range(processes)
    ]  # fmt: skip


def end(children, seconds=SECONDS):
    """[(exit status, stdout, stderr)] of the children; kills them all if one hangs."""
    try:
        outputs = [child.communicate(timeout=seconds) for child in children]
    finally:
        for child in children:
            child.kill()
    return [(child.returncode, *output) for child, output in zip(children, outputs, strict=True)]
