"""Two processes with several steps per call: their numbers, a notice within a call, a resume."""

import json
import signal

import jax
import numpy as np
import pytest
from children import end, start, wait_for
from screens import params

from rxrx1_jax.training.run import Run

STEPS = 8
TOLERANCE = 2e-5  # of each array's largest value, as in test_processes
TIMES = ("images_per_second", "step_seconds_", "data_wait_share")


def begin(workdir, per_call, processes=2, wait="0"):
    """Children that train the smoke run on four devices, its images in their memory."""
    fields = {
        "data.cache": "device", "train.steps_per_call": per_call, "train.max_steps": STEPS,
        "train.eval_every": 0, "train.log_every": 2, "optim.batch_size": 8,
    }  # fmt: skip
    flags = [f"--config.{field}={value}" for field, value in fields.items()]
    flags += ["--config=smoke", f"--workdir={workdir}"]
    return start("slow_main", *flags, processes=processes, devices=4, WAIT=wait)


def trained(workdir, *arguments):
    """(parameters, lines of metrics.jsonl without times) of a run that came to its end."""
    for code, _, stderr in end(begin(workdir, *arguments)):
        assert code == 0, stderr
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return params(workdir), [
        {name: x for name, x in line.items() if not name.startswith(TIMES)} for line in lines
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("calls") / "whole", 5)


@pytest.mark.long
def test_the_numbers_are_those_of_one_process(whole, tmp_path):
    alone = trained(tmp_path / "alone", 3, 1)
    for leaf, right in zip(*(jax.tree.leaves(run[0]) for run in (whole, alone)), strict=True):
        np.testing.assert_allclose(leaf, right, rtol=0, atol=TOLERANCE * np.abs(right).max())
    for line, right in zip(whole[1], alone[1], strict=True):
        assert line == pytest.approx(right, rel=TOLERANCE)


@pytest.mark.long
def test_a_notice_to_one_ends_both_after_a_call_and_they_resume_to_the_same_bits(whole, tmp_path):
    workdir = tmp_path / "run"
    children = begin(workdir, 2, wait="3")  # JAX looks for a signal every second
    wait_for(lambda: (workdir / "metrics.jsonl").exists(), children[1])
    children[1].send_signal(signal.SIGTERM)
    for code, _, stderr in end(children):
        assert code == 75, stderr
    step = int(Run.open(workdir).load().step)
    assert 0 < step < STEPS and step % 2 == 0
    found = trained(workdir, 7)
    jax.tree.map(np.testing.assert_array_equal, found[0], whole[0])
    assert found[1] == whole[1]
