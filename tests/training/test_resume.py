"""A run that is killed, told to end or stopped by a full disk goes on to the same bits."""

import contextlib
import os
import random
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from test_train import ROOT, make_config

from benchmarks.kill_training import assert_same_run
from rxrx1_jax.training import checkpoint, preemption, run_dir, train

pytest_plugins = ["dataset_fixture"]


def write_config(config, path: Path) -> Path:
    path.write_text(
        "from ml_collections import ConfigDict\n"
        f"def get_config():\n    return ConfigDict({config.to_dict()!r})\n"
    )
    return path


def load_config(path: Path):
    return runpy.run_path(str(path))["get_config"]()


def start(config: Path, workdir: Path, wait: float = 0.0) -> subprocess.Popen:
    """The command; `wait` seconds are added to each step, so that there is time to kill it."""
    code = (
        "import sys, time; from rxrx1_jax import main; from rxrx1_jax.training import progress\n"
        "train = progress.Log.train\n"
        f"def slow(*arguments): time.sleep({wait}); train(*arguments)\n"
        "progress.Log.train = slow\n"
        "sys.exit(main.main(sys.argv[1:]))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, f"--config={config}", f"--workdir={workdir}"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(process: subprocess.Popen, condition) -> None:
    """Until what the run has written meets the condition, which may fail before it is there."""
    while process.poll() is None:
        with contextlib.suppress(OSError):
            if condition():
                return
        time.sleep(0.002)
    pytest.fail(f"the run ended before: {process.communicate()}")


@pytest.fixture(scope="module")
def once(tiny, tmp_path_factory):
    """(config file, workdir of a run that nothing interrupted)."""
    folder = tmp_path_factory.mktemp("once")
    # The intervals of the log do not end where checkpoints are.
    config = make_config(
        tiny.dataset, train__log_every=4, optim__epochs=6, train__checkpoint_every=2, train__keep=1
    )
    path = write_config(config, folder / "config.py")
    process = start(path, folder / "run")
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    return path, folder / "run"


def test_a_killed_run_goes_on_to_the_same_bits(once, tmp_path):
    """Killed in a save, in and after an evaluation, each time with more behind it."""
    config, whole = once
    workdir = tmp_path / "run"
    log = workdir / "metrics.jsonl"
    for condition in (
        lambda: list(workdir.glob("checkpoints/*")),  # the first is being written
        lambda: '"test_loss"' in log.read_text(),
        lambda: '"step": 12,' in log.read_text(),
    ):
        process = start(config, workdir, wait=0.1)
        wait_for(process, condition)
        time.sleep(random.random() / 20)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL and not (workdir / "results.json").exists()
    process = start(config, workdir)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert "resumed at step" in stdout
    assert_same_run(workdir, whole)


def test_a_run_that_is_told_to_end_saves_its_step(once, tmp_path):
    config, whole = once
    workdir = tmp_path / "run"
    process = start(config, workdir, wait=0.1)
    wait_for(process, lambda: '"step": 4,' in (workdir / "metrics.jsonl").read_text())
    process.terminate()
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == preemption.EXIT_CODE == 75
    saved = max(int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*"))
    last = stderr.strip().splitlines()[-1]
    assert last == f"{workdir}: told to end at step {saved}; the same command goes on from there"
    assert 4 <= saved <= 7
    process = start(config, workdir)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert f"resumed at step {saved}" in stdout
    assert_same_run(workdir, whole)


class Told(preemption.Notice):
    """Comes with the second batch of the first evaluation from a step on."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def until_given(self, items, step):
        for i, item in enumerate(items):
            self._given = step >= self.step and i == 1
            yield from super().until_given([item], step)


def test_evaluations_can_be_interrupted(once, tiny, tmp_path, monkeypatch):
    """In one after a step that is no milestone, and in the last one, after the training."""
    config, whole = once
    config = load_config(config)
    for step in (3, 16):
        with monkeypatch.context() as patch:
            patch.setattr(preemption, "Notice", lambda step=step: Told(step))
            with pytest.raises(preemption.Preempted, match=f"at step {step};"):
                train.train_and_evaluate(config, tmp_path / "run")
    train.train_and_evaluate(config, tmp_path / "run")
    assert_same_run(tmp_path / "run", whole)
    best = [checkpoint.load_params(path, "best")[0] for path in (tmp_path / "run", whole)]
    jax.tree.map(np.testing.assert_array_equal, *best)


def test_the_same_command_gives_the_same_bits(once, tmp_path):
    """In another process, and with another number of reading threads."""
    config, whole = once
    config = load_config(config)
    config.data.threads = 1
    train.train_and_evaluate(config, tmp_path / "run")
    assert_same_run(tmp_path / "run", whole)


def test_a_second_interrupt_ends_at_once():
    with preemption.Notice() as notice:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert notice.given(1)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_one_training_at_a_time(once, tmp_path):
    config, _ = once
    workdir = tmp_path / "run"
    workdir.mkdir()
    with run_dir.hold(workdir):
        process = start(config, workdir)
        _, stderr = process.communicate(timeout=100)
    assert process.returncode == 1 and not (workdir / "checkpoints").exists()
    assert stderr.splitlines()[-1].startswith(f"error: {workdir}: another training is at work")
