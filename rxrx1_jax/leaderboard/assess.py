"""What a leaderboard asks of a run: `python -m rxrx1_jax.leaderboard.assess RUN --methods M...`.

Writes what is not there yet: the predictions of each correction (RUN/corrections, as
rxrx1_jax.correct), RUN/embeddings.parquet (as --mode=embed) and RUN/assessment.json: the figures
of rxrx1_jax.diagnose on these embeddings, and why a correction was refused.
"""

import argparse
import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rxrx1_jax import correct, diagnose
from rxrx1_jax.data.records import DatasetError
from rxrx1_jax.data.splits import SplitError
from rxrx1_jax.methods import embedding_metrics
from rxrx1_jax.methods.evidence import find
from rxrx1_jax.training import embed, run_dir

FILE = "assessment.json"
DIAGNOSIS = "diagnosis"


@functools.cache
def stamp(name: str) -> str:
    """What stored results of a correction, or of the diagnosis, are recognised by."""
    if name == DIAGNOSIS:
        return correct.source_digest(diagnose, embedding_metrics)
    return correct.stamp(find(name))


def is_assessed(workdir: Path, names: Sequence[str]) -> bool:
    """Whether all of `names` were computed, or refused, by today's code at the run's last step.

    names: of corrections (`corrections.find`), and DIAGNOSIS.
    """
    if not run_dir.is_complete(workdir):
        return False
    done, step = read(workdir), run_dir.read_results(workdir)["step"]
    return all(done.get(name, {}).get("stamp") == f"{step} {stamp(name)}" for name in names)


def read(workdir: Path) -> dict[str, Any]:
    """{name: {"stamp", "refused": why or ""}}; that of DIAGNOSIS may have "figures", too."""
    path = workdir / FILE
    return json.loads(path.read_text()) if path.exists() else {}


def assess(workdir: Path, names: Sequence[str]) -> None:
    """Computes what `is_assessed` misses. A correction that lacks its library is not refused.

    Raises RunError, DatasetError, OSError, ValueError: one line.
    """
    done, step = read(workdir), run_dir.read_results(workdir)["step"]
    missing = [name for name in names if not is_assessed(workdir, [name])]
    corrections = [name for name in missing if name != DIAGNOSIS]
    if corrections:
        refused: dict[str, Exception] = {}
        correct.correct(workdir, corrections, refused)
        for name in corrections:
            error = refused.get(name)
            if not isinstance(error, ImportError):
                why = str(error) if error else ""
                done[name] = {"stamp": f"{step} {stamp(name)}", "refused": why}
        run_dir.write_json(workdir / FILE, done)
    if DIAGNOSIS in missing:
        embed.embed_run(run_dir.read_settings(workdir), workdir)
        found: dict[str, Any] = {"refused": ""}
        try:
            found["figures"] = diagnose.measure(*diagnose.control_embeddings(workdir))
        except ValueError as error:  # data that have too few controls
            found["refused"] = str(error)
        done[DIAGNOSIS] = {"stamp": f"{step} {stamp(DIAGNOSIS)}", **found}
        run_dir.write_json(workdir / FILE, done)


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
