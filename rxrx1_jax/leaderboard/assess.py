"""What a leaderboard asks of a run: `python -m rxrx1_jax.leaderboard.assess RUN --methods M...`.

Writes what is not there yet: the predictions of each method (RUN/corrections, as
rxrx1_jax.correct), RUN/embeddings.parquet and RUN/assessment.json: the figures of
rxrx1_jax.diagnose on these embeddings, and why a method was refused.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rxrx1_jax.methods import corrections, diagnosis
from rxrx1_jax.methods.catalogue import find
from rxrx1_jax.report import command, files
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
    path, do = workdir / FILE, "remove it and start the leaderboard again"
    found = files.read_json(path, do) if path.exists() else {}
    entries = found.values() if isinstance(found, dict) else [None]
    if not all(isinstance(entry, dict) and "refused" in entry for entry in entries):
        raise files.ReportError(f"{path}: not what was written; {do}")
    return found


def assess(workdir: Path, names: Sequence[str], data_dir: Path | None = None) -> None:
    """Computes what `is_assessed` misses. A method that lacks its library is not refused.

    Raises RunError, DatasetError, OSError, ValueError: one line.
    """
    done, run = read(workdir), command.open_run(workdir, data_dir)
    missing = [name for name in names if not is_assessed(workdir, [name])]
    methods = [name for name in missing if name != DIAGNOSIS]
    if methods:
        refused: dict[str, Exception] = {}
        corrections.predictions_of(run, methods, refused=refused)
        for name in methods:
            error = refused.get(name)
            if not isinstance(error, ImportError):
                done[name] = {**_made_by(workdir, name), "refused": str(error) if error else ""}
        run_dir.write_json(workdir / FILE, done)
    if DIAGNOSIS in missing:
        found: dict[str, Any] = {"refused": ""}
        try:
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


def main(argv: list[str]) -> int:
    parser = command.Parser("leaderboard.assess", __doc__ or "")
    parser.add_argument("--methods", nargs="+", required=True, metavar="METHOD",
                        help="names of rxrx1_jax.correct, or diagnosis")  # fmt: skip
    options = parser.parse_args(argv)

    def work() -> None:
        for run in options.runs:
            assess(run, options.methods, options.data_dir)

    return command.run(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
