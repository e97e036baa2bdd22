"""What a run and its results were made with: versions, devices, what changes the numbers."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from rxrx1_jax import config as config_lib
from rxrx1_jax.training.parallel import DETERMINISTIC
from rxrx1_jax.training.run_dir import RunError


def made_with(config: ConfigDict) -> dict[str, Any]:
    """`settings` is the version of the meaning of settings."""
    return {
        "rxrx1_jax": _version("rxrx1_jax") or "not installed",
        "settings": config_lib.VERSION,
        "jax": jax.__version__,
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "dtype": config.model.dtype,
        **numerics(),
    }


def numerics() -> dict[str, str]:
    """What changes the numbers of every step, by the variables that set it."""
    flags = os.environ.get("XLA_FLAGS", "").split()
    precision = getattr(jax.config, "jax_default_matmul_precision", None)
    given = dict(flag.partition("=")[::2] for flag in flags)
    return {
        "JAX_ENABLE_X64": str(bool(getattr(jax.config, "jax_enable_x64", False))).lower(),
        "JAX_DEFAULT_MATMUL_PRECISION": precision or "default",
        f"XLA_FLAGS={DETERMINISTIC}": given.get(DETERMINISTIC, "false") or "true",
    }


def check_numerics(workdir: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raises RunError where what changes the numbers is not the run's; says what else differs."""
    differs = [name for name in new if old.get(name, new[name]) != new[name]]
    for name in numerics().keys() & set(differs):
        raise RunError(
            f"{workdir}: begun with {name}={old[name]}, now it is {new[name]}; set it as it was, or"
            " choose another --workdir"
        )
    if differs:
        changed = ", ".join(f"{name} {new[name]!r} in place of {old[name]!r}" for name in differs)
        print(f"{workdir}: resumes with {changed}: the last digits may differ from a run that"
              " nothing interrupted", file=sys.stderr)  # fmt: skip


def environment() -> dict[str, Any]:
    """Versions, devices and the commit of the code: what a reader needs to judge a result."""
    packages = ("rxrx1_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in packages},
        "commit": _commit(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "processes": jax.process_count(),
        "devices": [f"{d.platform}:{d.device_kind}" for d in jax.devices()],
    }


def _commit() -> str | None:
    """The commit of this code, where it runs from a clone and git is installed."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty"]
    try:
        git = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return git.stdout.strip() or None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
