"""Children that do run after run: what they say, how they end, and what stays open in them."""

import fcntl
import os
import subprocess
import sys
import time

import pytest
from children import Child, environment, stand_in, wait_for
from dataset_fixture import write_config

from rxrx1_jax.training import run_dir, sweep, workers
from rxrx1_jax.training.sweep import Plan
from rxrx1_jax.training.workers import REFUSED, Worker


def plans(folder, *names):
    return [Plan(folder / name, {}, 10, "") for name in names]


def do_all(runs, done, work):
    """With one worker. {name: reason}."""
    found = sweep.do_all(runs, done, work, [Worker()])
    return {path.name: reason for path, reason in found.items()}


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Stands in for the interpreter that runs rxrx1_jax.main; does what the name of a run says."""
    monkeypatch.setattr(sys, "executable", str(stand_in(tmp_path / "program", "named")))
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])


def test_a_run_that_fails_leaves_the_others_alone(program, tmp_path, capfd):
    runs = plans(tmp_path, "crash", "killed", "complete-1", "twice", "nothing", "complete-2")
    said = do_all(runs, run_dir.is_complete, lambda plan, one: sweep.train_one(plan, [], one))
    words = {"crash": "RuntimeError", "killed": "SIGKILL", "nothing": "status 0"}
    assert said.keys() == words.keys() and all(words[name] in said[name] for name in said), said
    for name in ("complete-2", "twice"):
        assert (tmp_path / name / "results.json").exists()
    assert "Traceback ..." in capfd.readouterr().err  # what a run says is passed on


def test_a_child_does_run_after_run_until_one_fails(program, tmp_path):
    """What a run says is in its own log; its lock is free when it is done."""
    runs = plans(tmp_path, "complete-1", "complete-2", "crash", "complete-3", "complete-4")

    def work(plan, worker):
        return sweep.train_one(plan, [], worker, sweep.log_of(plan.path))

    assert do_all(runs, run_dir.is_complete, work).keys() == {"crash"}
    one, two, crash, three, four = ((run.path / "process").read_text() for run in runs)
    assert one == two == crash != three == four
    assert "memory" in sweep.log_of(runs[2].path).read_text()
    assert not sweep.log_of(runs[3].path).read_text()
    for run in runs:
        with open(sweep.lock_of(run.path)) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with pytest.raises(ProcessLookupError):  # none is left
        os.kill(int(four), 0)


def test_flags_of_a_whole_process_are_of_one_run(program, tmp_path):
    runs = plans(tmp_path, *(f"complete-{i}" for i in range(4)))
    runs[1] = runs[1]._replace(overrides={"train.deterministic": True})
    assert not do_all(runs, run_dir.is_complete, lambda plan, one: sweep.train_one(plan, [], one))
    one, alone, two, three = ((run.path / "process").read_text() for run in runs)
    assert len({one, alone, two}) == 3 and two == three


def test_a_process_that_a_run_leaves_behind_does_not_hold_up_the_next(tmp_path):
    """It has the streams of the run, as a logger's server may."""
    worker = Worker(env={"PYTHONPATH": environment()["PYTHONPATH"]})
    code = "import subprocess, sys; subprocess.Popen(['sleep', '20']); print(1, file=sys.stderr)"
    begun = time.monotonic()
    logs = [tmp_path / name for name in "ab"]
    assert [worker.run(["-m", "executed", code], log)[0] for log in logs] == [0, 0]
    assert worker.end() == 0 and time.monotonic() - begun < 18
    assert [log.read_text() for log in logs] == ["1\n", "1\n"]


def test_what_is_refused_before_it_begins_is_told_apart(program, tmp_path, capfd):
    (plan,) = plans(tmp_path / "runs", "refused")
    how, reason = sweep.train_one(plan, [], Worker())
    assert how == REFUSED and reason.startswith("optim.momentum=2")
    assert capfd.readouterr().err == f"error: {reason}\n"


@pytest.mark.long
def test_runs_of_one_child_are_those_of_processes_of_their_own(finished, tmp_path, monkeypatch):
    """What diverges or is refused among them ends its child, and no other run."""
    started, start = [], subprocess.Popen
    monkeypatch.setattr(
        workers.subprocess, "Popen", lambda *a, **of: started.append(a) or start(*a, **of)
    )
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    changes = {
        "seed": {"train.seed": 1}, "same": {}, "diverges": {"optim.learning_rate": 1e30},
        "again": {}, "refused": {"optim.momentum": 2.0}, "last": {},
    }  # fmt: skip
    runs = [Plan(tmp_path / name, fields, 10, "") for name, fields in changes.items()]
    config = write_config(finished.config, tmp_path / "config.py")

    def work(plan, worker):
        return sweep.train_one(plan, [f"--config={config}"], worker, sweep.log_of(plan.path))

    said = do_all(runs, run_dir.is_complete, work)
    assert said.keys() == {"diverges", "refused"} and len(started) == 3
    assert "loss is" in said["diverges"] and "optim.momentum" in said["refused"]
    assert (tmp_path / "diverges" / run_dir.DIVERGED).exists()
    for name in ("same", "again", "last"):
        assert run_dir.read_results(tmp_path / name) == finished.results
        for file in ("predictions.parquet", "metadata.csv"):
            assert (tmp_path / name / file).read_bytes() == (finished.workdir / file).read_bytes()
    assert run_dir.read_results(tmp_path / "seed")["loss"] != finished.results["loss"]


COMMAND = """
import pathlib
from rxrx1_jax.training import locks, workers
worker = workers.Worker()
assert worker.run(["-m", "executed", "pass"])[0] == 0
with locks.lock(pathlib.Path({lock!r})) as worker.lock:
    worker.run(["-m", "executed", {code!r}])
"""
AT_WORK = """
import pathlib, signal, sys, time
said = pathlib.Path({!r})
signal.signal(signal.SIGTERM, lambda *_: (said.write_text("told"), sys.exit(75)))
said.touch()
time.sleep(60)
"""


def test_a_later_run_too_is_told_when_its_command_is_killed(tmp_path):
    """Else it would go on with its lock and the device."""
    said, lock = tmp_path / "said", tmp_path / "lock"
    code = COMMAND.format(lock=str(lock), code=AT_WORK.format(str(said)))
    command = Child([sys.executable, "-c", code], env=environment())
    wait_for(said.exists, command)
    command.kill()
    command.wait()
    with open(lock) as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # waits for the child
    assert said.read_text() == "told"
