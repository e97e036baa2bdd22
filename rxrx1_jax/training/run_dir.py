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
import math
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from rxrx1_jax import plug_ins
from rxrx1_jax.data import normalisation, splits
from rxrx1_jax.model import resnet
from rxrx1_jax.settings import FREE, flat
from rxrx1_jax.training import parallel, steps

LOCK = ".lock"  # held by the training that is at work in the directory
# What a run that was killed while it opened its directory may leave there.
_OPENING = {LOCK, "environment.json", ".environment.json.tmp", ".config.json.tmp"}


class RunError(ValueError):
    """A setting or run directory that cannot be worked with; one line saying what to do."""


def check(config: ConfigDict) -> None:
    """Raises RunError for the first impossible value, naming the field and the valid choices."""
    choices = {
        "data.protocol": splits.PROTOCOLS,
        "data.normalisation": normalisation.NORMALISATIONS,
        "model.name": resnet.MODELS,
        "model.dtype": ("float32", "bfloat16"),
        "optim.name": steps.OPTIMIZERS,
        "train.parallelism": parallel.PARALLELISMS,
    }
    if "." in config.data.normalisation:  # a function of the user's own
        del choices["data.normalisation"]
    for field, valid in choices.items():
        if _get(config, field) not in valid:
            raise RunError(f"{field}={_get(config, field)!r}: expected one of {', '.join(valid)}")
    try:
        for field in plug_ins.POINTS:
            if field not in choices:
                plug_ins.load_all(field, _get(config, field))
    except plug_ins.PlugInError as error:
        raise RunError(str(error)) from error
    at_least = {
        "model.width": 1, "optim.batch_size": 1, "optim.accumulation": 1, "optim.epochs": 1,
        "optim.learning_rate": 0, "optim.weight_decay": 0, "optim.warmup_epochs": 0,
        "optim.momentum": 0, "optim.label_smoothing": 0, "optim.ema_decay": 0,
        "data.crop": 0, "data.threads": 1, "data.fold": 0, "eval.batch_size": 1,
        "train.log_every": 1, "train.eval_every": 0, "train.checkpoint_every": 1, "train.keep": 1,
    }  # fmt: skip
    for field, least in at_least.items():
        if not least <= _get(config, field) < math.inf:
            raise RunError(f"{field}={_get(config, field)}: expected {least} or more")
    for field in ("optim.momentum", "optim.label_smoothing", "optim.ema_decay"):
        if not _get(config, field) < 1:
            raise RunError(f"{field}={_get(config, field)}: expected a value in [0, 1)")
    devices, size = jax.device_count(), config.optim.batch_size
    if size % (devices * config.optim.accumulation):
        raise RunError(
            f"optim.batch_size={size}: expected a multiple of {devices} devices x "
            f"{config.optim.accumulation} micro-batches (optim.accumulation)"
        )
    if config.eval.batch_size % devices:
        raise RunError(
            f"eval.batch_size={config.eval.batch_size}: expected a multiple of {devices} devices"
        )
    if config.optim.loss != "cross_entropy" and config.train.parallelism == "pmap" and devices > 1:
        raise RunError(
            f"optim.loss={config.optim.loss!r} sees a whole batch, which no device has under pmap; "
            "use --config.train.parallelism=jit"
        )
    if not config.train.bn_sync and config.train.parallelism == "jit" and devices > 1:
        raise RunError(
            "train.bn_sync=False: under jit BatchNorm sees the whole batch; "
            "use --config.train.parallelism=pmap for per-device statistics"
        )


def open_run(workdir: Path, config: ConfigDict, dataset: dict[str, Any]) -> None:
    """Creates the run directory, or checks that it holds a run with the same settings and data.

    `dataset` (see `describe_data`) is kept with the settings: another dataset is another run.
    """
    path = workdir / "config.json"
    settings = {**config.to_dict(), "dataset": dataset}
    if path.exists():
        _refuse_other_run(path, settings)
        return
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


def _refuse_other_run(path: Path, settings: dict[str, Any]) -> None:
    try:
        old, new = flat(json.loads(path.read_text())), flat(settings)
    except (ValueError, AttributeError) as error:
        raise RunError(
            f"{path}: not the settings of a run ({error}); choose another --workdir"
        ) from error
    for field in sorted((old.keys() ^ new.keys()) - set(FREE)):
        what = f"without {field}" if field in new else f"with {field}={old[field]!r}"
        raise RunError(
            f"{path.parent}: holds a run of another version of this program, {what}; choose "
            "another --workdir, or the version that environment.json names"
        )
    for field in sorted(old.keys() - set(FREE)):
        if old[field] != new[field]:
            raise RunError(
                f"{path.parent}: holds a run with {field}={old[field]!r}, this one has "
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


def _get(config: ConfigDict, field: str) -> Any:
    section, name = field.split(".")
    return config[section][name]
