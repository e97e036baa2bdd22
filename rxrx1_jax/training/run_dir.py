"""A run is a directory: settings checked before work starts, and what reproduces it, written down.

config.json       the resolved settings        split.csv            role of each site
environment.json  versions, devices, commit    metrics.jsonl        learning curves
checkpoints/      state (orbax)                tensorboard/         the same curves
predictions.parquet, results.json              the evaluation of the final state
predictions_NAME.parquet                       that of another set of the split (protocol wilds)
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from rxrx1_jax.config import FREE, ConfigError, flat, upgrade
from rxrx1_jax.data import splits

LOCK = ".lock"  # held by the training that is at work in the directory
# What a run that was killed while it opened its directory may leave there.
_OPENING = {LOCK, "environment.json", ".environment.json.tmp", ".config.json.tmp"}


class RunError(ValueError):
    """A run directory, or settings for its data, that cannot be worked with; one line."""


def read_config(workdir: Path) -> ConfigDict:
    """The settings of a run, whatever version of the program wrote them. Raises RunError."""
    return _upgraded(workdir / "config.json")[0]


def _upgraded(path: Path) -> tuple[ConfigDict, dict[str, Any]]:
    """(settings, all of config.json)."""
    if not path.exists():
        raise RunError(f"{path.parent}: no run here (no config.json); train with this --workdir")
    try:
        saved = json.loads(path.read_text())
        return upgrade(saved), saved
    except ConfigError as error:
        raise RunError(f"{path}: {error}") from error
    except (ValueError, AttributeError) as error:
        raise RunError(
            f"{path}: not the settings of a run ({error}); choose another --workdir"
        ) from error


def open_run(workdir: Path, config: ConfigDict, dataset: dict[str, Any]) -> None:
    """Creates the run directory, or checks that it holds a run with the same settings and data.

    `dataset` (see `describe_data`) is kept with the settings: another dataset is another run.
    """
    path = workdir / "config.json"
    if path.exists():
        _refuse_other_run(path, config, dataset)
        return
    settings = {**config.to_dict(), "dataset": dataset}
    check_workdir(workdir)
    if jax.process_index() == 0:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            write_json(workdir / "environment.json", environment())
            write_json(path, settings)  # last: it is what makes the directory a run
        except OSError as error:
            raise RunError(f"{workdir}: {error.strerror}; choose another --workdir") from error


def check_workdir(workdir: Path) -> None:
    """Raises RunError unless `workdir` is a run, or can become one; creates nothing."""
    if not workdir.is_dir():
        parent = next(path for path in workdir.absolute().parents if path.exists())
        if workdir.exists() or not parent.is_dir():
            file = workdir if workdir.exists() else parent
            raise RunError(
                f"{workdir}: {file} is a file, so there is no config.json; choose another --workdir"
            )
        if not os.access(parent, os.W_OK | os.X_OK):
            raise RunError(f"{workdir}: {parent} cannot be written; choose another --workdir")
        return
    if not os.access(workdir, os.W_OK | os.X_OK):
        raise RunError(f"{workdir}: cannot be written; choose another --workdir")
    names = {entry.name for entry in workdir.iterdir()} - _OPENING
    if names and "config.json" not in names:
        raise RunError(
            f"{workdir}: not empty and without config.json, so it is not a run; choose another "
            "--workdir"
        )


def describe_data(version: str, sites: np.ndarray, split: splits.Split) -> dict[str, Any]:
    """Version and fingerprints of the data (metadata and control statistics) and of the split."""
    rows = [split.train.astype(np.int64), split.test.astype(np.int64), split.classes]
    rows += [part.astype(np.int64) for part in split.other_sets.values()]
    return {
        "version": version,
        "data_fingerprint": _fingerprint([sites[name] for name in sites.dtype.names or ()]),
        "split_fingerprint": _fingerprint(rows),
    }


def _fingerprint(arrays: list[np.ndarray]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _refuse_other_run(path: Path, config: ConfigDict, dataset: dict[str, Any]) -> None:
    settings, saved = _upgraded(path)
    old, new = flat(settings), flat(config)
    old |= flat({"dataset": saved.get("dataset", {})})
    new |= flat({"dataset": dataset})
    for field in sorted(new.keys() - set(FREE)):
        if old.get(field) != new[field]:
            raise RunError(
                f"{path.parent}: holds a run with {field}={old.get(field)!r}, this one has "
                f"{new[field]!r}; choose another --workdir or the old setting"
            )


def environment() -> dict[str, Any]:
    """Versions, devices and the commit of the code: what a reader needs to judge a result."""
    packages = ("rxrx1_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in packages},
        "commit": _commit(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "processes": jax.process_count(),
        "devices": [f"{d.platform}:{d.device_kind}" for d in jax.devices()],
    }


def write_json(path: Path, content: Any) -> None:
    """Writes the file whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, path)


def is_complete(workdir: Path) -> bool:
    """Whether the run was trained to its last step and evaluated there."""
    if not (workdir / "results.json").exists():
        return False
    results = read_results(workdir)
    return results["step"] >= results["total_steps"]


def read_results(workdir: Path) -> dict[str, Any]:
    path = workdir / "results.json"
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise RunError(f"{path}: not JSON ({error}); remove it to evaluate again") from error


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
