"""A run that is killed, told to end or stopped by a full disk goes on to the same bits."""

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
from children import Child, end, environment, run, start, wait_for
from commands import run_command
from dataset_fixture import make_config, write_config
from screens import params

from benchmarks.kill_training import assert_same_run
from rxrx1_jax.training import processes, run_dir, train


def load_config(path: Path):
    return runpy.run_path(str(path))["get_config"]()


def flags(config: Path, workdir: Path) -> list[str]:
    return [f"--config={config}", f"--workdir={workdir}"]


@pytest.fixture(scope="module")
def uninterrupted(tiny, tmp_path_factory):
    """(config file, workdir of a run that nothing interrupted)."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    # The intervals of the log do not end where checkpoints are.
    config = make_config(
        tiny.dataset, train__log_every=4, optim__epochs=6, train__checkpoint_every=2, train__keep=1
    )
    path = write_config(config, folder / "config.py")
    code, _, stderr = run("slow_main", *flags(path, folder / "run"))
    assert code == 0, stderr
    return path, folder / "run"


@pytest.mark.long
def test_a_killed_run_goes_on_to_the_same_bits(uninterrupted, tmp_path):
    """Killed in a save, in and after an evaluation, each time with more behind it."""
    config, whole = uninterrupted
    workdir = tmp_path / "run"
    log = workdir / "metrics.jsonl"
    for condition in (
        lambda: list(workdir.glob("checkpoints/*")),  # the first is being written
        lambda: '"test_loss"' in log.read_text(),
        lambda: '"step": 12,' in log.read_text(),
    ):
        (child,) = start("slow_main", *flags(config, workdir), WAIT="0.1")
        wait_for(condition, child)
        time.sleep(random.random() / 20)
        child.kill()
        assert end([child])[0][0] == -signal.SIGKILL and not (workdir / "results.json").exists()
    code, stdout, stderr = run("slow_main", *flags(config, workdir))
    assert code == 0, stderr
    assert "resumed" in stdout
    assert_same_run(workdir, whole)


def test_a_run_that_is_told_to_end_saves_its_step(uninterrupted, tmp_path):
    config, whole = uninterrupted
    workdir = tmp_path / "run"
    (child,) = start("slow_main", *flags(config, workdir), WAIT="0.1")
    wait_for(lambda: '"step": 4,' in (workdir / "metrics.jsonl").read_text(), child)
    child.terminate()
    ((code, _, stderr),) = end([child])
    assert code == processes.EXIT_CODE == 75
    saved = max(int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*"))
    assert f"step {saved};" in stderr.strip().splitlines()[-1]
    assert 4 <= saved <= 7
    code, last, out, _ = run_command("main", *flags(config, workdir))
    assert code == 0, last
    assert f"resumed at step {saved}" in out
    assert_same_run(workdir, whole)


class Told(processes.Notice):
    """Comes with the second batch of the first evaluation from a step on."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def until_given(self, items, step):
        for i, item in enumerate(items):
            self._given = step >= self.step and i == 1
            yield from super().until_given([item], step)


def test_evaluations_can_be_interrupted(uninterrupted, tiny, tmp_path, monkeypatch):
    """In one after a step that is no milestone, and in the last one, after the training."""
    config, whole = uninterrupted
    config = load_config(config)
    for step in (3, 16):
        with monkeypatch.context() as patch:
            patch.setattr(processes, "Notice", lambda step=step: Told(step))
            with pytest.raises(processes.Preempted, match=f"step {step};"):
                train.train_and_evaluate(config, tmp_path / "run")
    train.train_and_evaluate(config, tmp_path / "run")
    assert_same_run(tmp_path / "run", whole)
    jax.tree.map(
        np.testing.assert_array_equal, params(tmp_path / "run", "best"), params(whole, "best")
    )


def test_the_same_command_gives_the_same_bits(uninterrupted, tmp_path):
    """In another process, and with another number of reading threads."""
    config, whole = uninterrupted
    config = load_config(config)
    config.data.threads = 1
    train.train_and_evaluate(config, tmp_path / "run")
    assert_same_run(tmp_path / "run", whole)


def test_a_second_interrupt_ends_at_once():
    with processes.Notice() as notice:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert notice.given()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_one_training_at_a_time(uninterrupted, tmp_path):
    config, _ = uninterrupted
    workdir = tmp_path / "run"
    workdir.mkdir()
    with run_dir.hold(workdir):
        done = run_command("main", *flags(config, workdir))
    assert done.code == 1 and not (workdir / "checkpoints").exists()
    assert done.last.startswith(f"error: {workdir}") and f"process {os.getpid()} " in done.last


@pytest.mark.long
@pytest.mark.parametrize("size", ["16k", "300k"])  # outside of a checkpoint, inside of one
def test_a_full_disk_is_one_line_and_with_space_the_run_goes_on(tmp_path, size):
    """On a file system of its own, mounted for one process; skipped where that is not allowed."""
    if subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "none", tmp_path]).returncode:
        pytest.skip("needs the right to mount")
    disk = tmp_path / "disk"
    disk.mkdir()
    command = f"{sys.executable} -m rxrx1_jax.main --config=smoke --workdir={disk}/run"
    script = (
        f"mount -t tmpfs -o size={size} none {disk}; {command} 2> {tmp_path}/said && exit 1;"
        f" mount -o remount,size=64m {disk}; {command} && cat {disk}/run/results.json"
    )
    child = Child(["unshare", "--mount", "sh", "-c", script], env=environment())
    ((code, stdout, stderr),) = end([child])
    said = (tmp_path / "said").read_text()
    assert said.startswith(f"error: {disk}/run") and said.count("\n") == 1, said
    assert code == 0 and '"accuracy"' in stdout, stderr
