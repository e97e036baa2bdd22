"""What a leaderboard asks of a run: `python -m rxrx1_jax.leaderboard.assess RUN --methods M...`.

Writes what is not there yet: the predictions of each method (RUN/corrections, as
rxrx1_jax.correct), RUN/embeddings.parquet and RUN/assessment.json: the figures of
rxrx1_jax.diagnose on these embeddings, and why a method was refused.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rxrx1_jax.data.records import DatasetError
from rxrx1_jax.data.splits import SplitError
from rxrx1_jax.methods import corrections, diagnosis
from rxrx1_jax.methods.catalogue import find
from rxrx1_jax.training import run_dir
from rxrx1_jax.training.run import Run

FILE = "assessment.json"
DIAGNOSIS = "diagnosis"


def is_assessed(workdir: Path, names: Sequence[str]) -> bool:
    """Whether all of `names` were computed, or refused, by their version at the run's last step.

    names: of methods (`catalogue.find`), and DIAGNOSIS.
    """
    if not run_dir.is_complete(workdir):
        return False
    done = read(workdir)
    return all(done.get(name, {}).items() >= _made_by(workdir, name).items() for name in names)


def read(workdir: Path) -> dict[str, Any]:
    """{name: {"step", "weights", "version", "refused": why or ""}}; DIAGNOSIS has "figures" too."""
    path = workdir / FILE
    return json.loads(path.read_text()) if path.exists() else {}


def assess(workdir: Path, names: Sequence[str]) -> None:
    """Computes what `is_assessed` misses. A method that lacks its library is not refused.

    Raises RunError, DatasetError, OSError, ValueError: one line.
    """
    done = read(workdir)
    missing = [name for name in names if not is_assessed(workdir, [name])]
    methods = [name for name in missing if name != DIAGNOSIS]
    if methods:
        refused: dict[str, Exception] = {}
        corrections.predictions_of(workdir, methods, refused)
        for name in methods:
            error = refused.get(name)
            if not isinstance(error, ImportError):
                done[name] = {**_made_by(workdir, name), "refused": str(error) if error else ""}
        run_dir.write_json(workdir / FILE, done)
    if DIAGNOSIS in missing:
        found: dict[str, Any] = {"refused": ""}
        try:
            run = Run.open(workdir)
            controls = diagnosis.all_controls(run.embeddings())
            found["figures"] = diagnosis.measure(controls.x, controls.sites, run.planted_sirnas())
        except ValueError as error:  # data that have too few controls
            found["refused"] = str(error)
        done[DIAGNOSIS] = {**_made_by(workdir, DIAGNOSIS), **found}
        run_dir.write_json(workdir / FILE, done)


def _made_by(workdir: Path, name: str) -> dict[str, str]:
    """What a result is recognised by; the weights only where the checkpoints are still there."""
    try:
        source = Run.open(workdir).source
    except run_dir.RunError:
        source = {"step": str(run_dir.read_results(workdir)["step"])}
    version = diagnosis.VERSION if name == DIAGNOSIS else find(name).version
    return {**source, "version": str(version)}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m rxrx1_jax.leaderboard.assess", description=__doc__
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="directory of a trained run")
    parser.add_argument("--methods", nargs="+", required=True, metavar="METHOD")
    options = parser.parse_args()
    try:
        assess(options.run, options.methods)
    except (run_dir.RunError, DatasetError, SplitError, OSError, ValueError) as error:
        sys.exit(f"error: {str(error).strip().splitlines()[-1].strip()}")


if __name__ == "__main__":
    main()
