"""The scripts of launch/ among programs of a cluster that answer as they are told."""

import json
import os

import pytest
from children import launch, stand_in


@pytest.fixture
def cluster(tmp_path):
    """Runs a script among programs of a cluster that answer as told: -> (outcome, calls)."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sbatch", "srun", "scontrol", "gcloud", "sleep"):
        stand_in(folder / name, "cluster", folder, name)

    def run(script, *arguments, answers="", **variables):
        (folder / "calls").write_text("")
        (folder / "answers").write_text(answers)
        env = {"PATH": f"{folder}:{os.environ['PATH']}"} | variables
        found = launch(script, *arguments, env=env)
        return found, [json.loads(line) for line in (folder / "calls").read_text().splitlines()]

    return run
