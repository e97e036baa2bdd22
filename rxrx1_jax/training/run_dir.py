"""A run is a directory: settings checked before work starts, and what reproduces it, written down.

config.json       the resolved settings        split.csv            role of each site
environment.json  versions, devices, commit    metrics.jsonl        learning curves
checkpoints/      state (orbax)                events.out.tfevents* the same, for TensorBoard
metadata.csv      the sites of the split: siRNA, experiment, plate, well ..., role
predictions.parquet, results.json              the evaluation of the final state
predictions_NAME.parquet                       that of another set of the split (protocol wilds)
"""

import contextlib
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rxrx1_jax import config as config_lib
from rxrx1_jax.config import flat
from rxrx1_jax.data.files import parse_json, write_text
from rxrx1_jax.training.fingerprints import FINGERPRINTS_0_2
from rxrx1_jax.training.locks import lock

LOCK = ".lock"  # held by the training that is at work in the directory
DIVERGED = "diverged.json"  # of a run whose loss or gradient was not finite at some step
# What a run that was killed while it opened its directory may leave there.
_OPENING = re.compile(r"\.lock|environment\.json|\.(environment|config)\.json(\.\w+)?\.tmp")


class RunError(ValueError):
    """A run directory, or settings for its data, that cannot be worked with; one line."""


def read_settings(workdir: Path) -> ConfigDict:
    """The settings of a run, whatever version of the program wrote them. Raises RunError."""
    return read_saved(workdir)[0]


def read_saved(workdir: Path) -> tuple[ConfigDict, dict[str, Any]]:
    """(settings of a run, config.json as it was written). Raises RunError."""
    path = workdir / "config.json"
    if not path.exists():
        raise RunError(f"{workdir}: no run here (no config.json); expected {runs_near(workdir)}")
    try:
        saved = parse_json(path.read_bytes())
        settings = config_lib.upgrade(saved)
        config_lib.flat({"dataset": saved.get("dataset", {})})
        return settings, saved
    except (ValueError, AttributeError) as error:
        raise RunError(
            f"{path}: not the settings of a run of this version: {error}; restore it as the run "
            "wrote it"
        ) from error


def runs_near(folder: Path) -> str:
    """The run that a folder lies in, else those below it."""
    above = [path for path in folder.absolute().parents if (path / "config.json").is_file()]
    files = (*folder.glob("*/config.json"), *folder.glob("*/*/config.json"))
    near = above[:1] or sorted(file.parent for file in files)[:3]
    return " or ".join(map(str, near)) or "the folder of a run"


def open_run(
    workdir: Path, config: ConfigDict, dataset: dict[str, Any], how: dict[str, Any] | None = None
) -> None:
    """Makes a run of the directory, or checks that it holds one of the same settings and data.

    A run that has nothing to resume from yet is begun again with these settings.

    dataset: `describe_data`, kept with the settings. how: what a resumed run says if it differs.
    """
    import jax

    from rxrx1_jax.training import environment

    made_with = environment.made_with(config) | (how or {})
    if check_run(workdir, config, dataset):
        if not is_complete(workdir):
            old = read_saved(workdir)[1].get("made_with", {})
            environment.check_numerics(workdir, old, made_with)
        return
    if jax.process_index() == 0:
        written = {name: value for name, value in dataset.items() if name not in FINGERPRINTS_0_2}
        settings = {**config.to_dict(), "dataset": written, "made_with": made_with}
        write_json(workdir / "environment.json", environment.environment())
        write_json(workdir / "config.json", settings)  # last: it makes the directory a run


def check_run(workdir: Path, config: ConfigDict, dataset: dict[str, Any]) -> bool:
    """Whether there is a run to resume. Raises RunError where its settings or data differ.

    Other labels, pixels or roles are another run; another version of the same data is not.
    """
    if not (workdir / "config.json").exists():
        return False
    complete = is_complete(workdir)
    if not complete and not any(p.name.isdecimal() for p in (workdir / "checkpoints").glob("*")):
        return False
    settings, saved = read_saved(workdir)
    old = flat({**settings, "dataset": saved.get("dataset", {})})
    free = {*config_lib.FREE, "dataset.version", *(["dataset.order"] if complete else [])}
    if differs := difference(old, flat({**config, "dataset": dataset}), free):
        raise RunError(
            f"{workdir}: holds a run with {differs}; choose another --workdir, or the run's value"
        )
    return True


def check_workdir(workdir: Path) -> None:
    """Raises RunError unless `workdir` is a run that can be trained, or can become one."""
    if "\\" in str(workdir.absolute()):  # TensorStore, which writes the arrays, takes none
        raise RunError(f"{workdir}: a backslash in the path; choose another --workdir")
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
    if (workdir / "config.json").exists() and not is_complete(workdir):
        if "made_with" not in read_saved(workdir)[1]:
            raise RunError(
                f"{workdir}: an unfinished run of version 0.2, which drew the sites in another "
                "order; finish it with rxrx1_jax 0.2, or choose another --workdir"
            )
    names = {e.name for e in workdir.iterdir() if not _OPENING.fullmatch(e.name)}
    if names and "config.json" not in names:
        raise RunError(
            f"{workdir}: not empty and without config.json, so it is not a run; choose another "
            "--workdir"
        )


def difference(old: Mapping[str, Any], new: Mapping[str, Any], free: Collection[str]) -> str:
    """The first field of both that has another value in `new`; empty where there is none."""
    for field in sorted((old.keys() & new.keys()) - set(free)):
        if new[field] not in (old[field], "auto"):
            return f"{field}={old[field]!r}, this one has {new[field]!r}"
    return ""


@contextlib.contextmanager
def hold(workdir: Path) -> Iterator[None]:
    """Makes the directory and holds the only right to train in it; process 0 does, of several.

    Raises LockError: another process holds it, by name; or the directory cannot be written.
    """
    import jax

    with contextlib.nullcontext() if jax.process_index() else lock(workdir / LOCK):
        yield


def write_json(path: Path, content: Any) -> None:
    """Writes the file whole or not at all."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def is_complete(workdir: Path) -> bool:
    """Whether the run was trained to its last step and evaluated there."""
    if not (workdir / "results.json").exists():
        return False
    results = read_results(workdir)
    return results["step"] >= results["total_steps"]


def read_results(workdir: Path) -> dict[str, Any]:
    path = workdir / "results.json"
    try:
        results = parse_json(path.read_bytes())
        if not all(isinstance(results[name], int) for name in ("step", "total_steps")):
            raise TypeError("step and total_steps are not whole numbers")
    except (ValueError, TypeError, KeyError) as error:
        raise RunError(
            f"{path}: not the results of a run ({config_lib.described(error)}); remove it, and the"
            " same command evaluates again"
        ) from error
    return results


