"""The scripts of launch/ among programs of a cluster that answer as they are told."""

import json
import os

import pytest
from children import launch, stand_in

ENDINGS = [  # of a run on Slurm: its exit status, the state of its job, restarts -> queued again
    (0, "RUNNING", "", False),
    (1, "RUNNING", "", False),
    (75, "RUNNING", "", True),
    (75, "RUNNING", "99", True),
    (75, "RUNNING", "100", False),
    (75, "CANCELLED", "", False),
    (75, "PREEMPTED", "", False),  # Slurm queues it again itself
]


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
