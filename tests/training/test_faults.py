"""Errors that a command tells in one line, and those that it does not."""

import errno
import sys

import jax
import pytest
from children import Child, end, environment

from rxrx1_jax.training import faults, processes, run_dir


@pytest.mark.parametrize(
    "error, said",
    [
        (MemoryError("Unable to allocate 7 TiB"), "optim.batch_size"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 7 bytes"), "eval.batch_size"),
        (jax.errors.JaxRuntimeError("INTERNAL: no"), "INTERNAL"),
        (run_dir.RunError("runs/a: RESOURCE_EXHAUSTED"), "runs/a: RESOURCE_EXHAUSTED"),
        (OSError(errno.ENOSPC, "No space left on device"), "runs/mine: No space"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "'/x'"),
        (processes.LaunchError("a\n  b"), "a b"),
        (ValueError("a fault of ours"), ""),
        (RuntimeError("a fault of ours"), ""),
    ],
)
def test_one_line(error, said):
    line = faults.one_line(error, "runs/mine")
    assert said in line and bool(said) == bool(line) and "\n" not in line


@pytest.mark.parametrize(
    "variable, value",
    [("JAX_PLATFORMS", "cuda"), ("JAX_NUM_CPU_DEVICES", "0"), ("JAX_NUM_CPU_DEVICES", "x")],
)
def test_devices_that_are_not_there(tmp_path, variable, value):
    command = [sys.executable, "-m", "rxrx1_jax.main", "--config=smoke", f"--workdir={tmp_path}/x"]
    platforms = {"JAX_PLATFORMS": "cpu,cpu"}  # so that XLA_FLAGS is set, which is none to check
    ((code, _, stderr),) = end([Child(command, env=environment() | platforms | {variable: value})])
    assert code == 1 and stderr.startswith("error: ") and stderr.count("\n") == 1, stderr
    assert f"{variable}={value}" in stderr and "XLA_FLAGS" not in stderr
    assert not (tmp_path / "x").exists()
