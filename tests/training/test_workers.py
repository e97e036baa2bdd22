"""Children: on which cores they run, what becomes of what they say, how they ended."""

import os

import pytest
from children import environment
from commands import run_command

from rxrx1_jax.training import workers
from rxrx1_jax.training.workers import FAILED, KILLED, Ending, LastWords, Worker


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """cores, GPUs of nvidia-smi, environment -> a machine that has them, and no other variables."""

    def make(cores=8, gpus=None, **variables):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
        monkeypatch.setattr(os, "cpu_count", lambda: cores)
        for name in ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES", workers.MEMORY):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("PATH", str(tmp_path))
        if gpus is not None:
            script = tmp_path / "nvidia-smi"
            lines = [f"echo {i}" for i in range(gpus)] or ["echo no driver", "exit 9"]
            script.write_text("\n".join(["#!/bin/sh", *lines, ""]))
            script.chmod(0o755)

    return make


def ran(code, log=None, worker=None, **env):
    """`Worker.run` of Python code."""
    worker = worker or Worker()
    worker.env |= {"PYTHONPATH": environment()["PYTHONPATH"], **env}
    try:
        return worker.run(["-m", "executed", code], log)
    finally:
        worker.end()


SHARE = {"XLA_CLIENT_MEM_FRACTION": "0.225"}


@pytest.mark.parametrize(
    ("count", "has", "given"),
    [
        (None, {}, [{}]),  # on CPUs one, with all cores
        (2, {}, [{}, {}]),
        (None, {"gpus": 2}, ["0", "1"]),
        (None, {"gpus": 1}, [{}]),
        (1, {"gpus": 4}, [{}]),  # a run on all GPUs
        (None, {"gpus": 4, "cores": 2}, ["0", "1"]),
        (2, {"gpus": 8}, ["0", "1"]),
        (4, {"gpus": 1}, [{"CUDA_VISIBLE_DEVICES": "0", **SHARE}] * 4),
        (3, {"gpus": 2}, [
            {"CUDA_VISIBLE_DEVICES": "0", "XLA_CLIENT_MEM_FRACTION": "0.450"},
            {"CUDA_VISIBLE_DEVICES": "1"},
            {"CUDA_VISIBLE_DEVICES": "0", "XLA_CLIENT_MEM_FRACTION": "0.450"},
        ]),
        (2, {"gpus": 1, "XLA_CLIENT_MEM_FRACTION": ".1"}, ["0", "0"]),  # the user knows better
        (None, {"gpus": 8, "CUDA_VISIBLE_DEVICES": "5, 7"}, ["5", "7"]),
        (None, {"CUDA_VISIBLE_DEVICES": "MIG-ab,MIG-cd"}, ["MIG-ab", "MIG-cd"]),
        (None, {"gpus": 8, "CUDA_VISIBLE_DEVICES": ""}, [{}]),
        (None, {"gpus": 8, "CUDA_VISIBLE_DEVICES": "-1"}, [{}]),
        (None, {"gpus": 8, "JAX_PLATFORMS": "cpu"}, [{}]),
        (None, {"gpus": 2, "JAX_PLATFORMS": "cuda,cpu"}, ["0", "1"]),
        (None, {"gpus": 0}, [{}]),  # nvidia-smi without a driver
    ],
)  # fmt: skip
def test_devices_and_cores_are_dealt(machine, count, has, given):
    machine(**has)
    team = workers.deal(count)
    assert [worker.env for worker in team] == [
        one if isinstance(one, dict) else {"CUDA_VISIBLE_DEVICES": one} for one in given
    ]
    if len(team) == 1:
        assert team[0].cores is None
    else:
        shares = [worker.cores for worker in team]
        assert frozenset.union(*shares) == set(range(has.get("cores", 8)))
        assert sum(map(len, shares)) == has.get("cores", 8)


def test_more_workers_than_cores_are_refused(machine):
    machine(cores=3, gpus=8)
    with pytest.raises(ValueError, match="--workers=4: there are 3 cores"):
        workers.deal(4)


@pytest.mark.parametrize("command", ["table1", "leaderboard"])
@pytest.mark.parametrize("count", ["0", "-1", "two"])
def test_a_number_of_workers_that_is_none(tmp_path, command, count):
    words = ["--config=demo", f"--workdir={tmp_path}", f"--workers={count}"]
    done = run_command(command, *words)
    assert done.code == 2 and "--workers" in done.last and count in done.last


def test_a_child_sees_the_device_of_its_worker(capfd):
    env = {"CUDA_VISIBLE_DEVICES": "5", **SHARE}
    code = f"import os; print([os.environ[name] for name in {[*env]}])"
    assert ran(code, **env)[0] == 0
    assert capfd.readouterr().out == f"{[*env.values()]}\n"


def test_a_child_uses_the_cores_of_its_worker_and_says_it_in_the_log(tmp_path, capfd):
    core = max(os.sched_getaffinity(0))
    code = (
        "import os, sys; print(os.sched_getaffinity(0)); "
        "print('warning', file=sys.stderr); sys.exit('error: no')"
    )
    worker, log = Worker(frozenset({core})), tmp_path / "log"
    status, heard = ran(code, log, worker)
    assert (status, heard.error) == (1, "no")
    assert workers.ending(status, heard) == Ending(FAILED, "no")
    assert sorted(log.read_text().split("\n")) == sorted(
        ["warning", "error: no", f"{{{core}}}", ""]
    )
    assert capfd.readouterr() == ("", "")
    assert ran("print(1)")[0] == 0
    assert capfd.readouterr().out == "1\n"  # without a log, here


@pytest.mark.parametrize(
    ("code", "ending"),
    [
        ("import os; os.kill(os.getpid(), 9)", Ending(KILLED, "ended by SIGKILL")),
        ("raise SystemExit(75)", Ending(KILLED, "ended with status 75")),
        ("raise SystemExit(3)", Ending(FAILED, "ended with status 3")),
        ("raise KeyError('gone')", Ending(FAILED, "KeyError: 'gone'")),
    ],
)
def test_how_a_child_ended(code, ending):
    assert workers.ending(*ran(code)) == ending


TRACEBACK = "Traceback (most recent call last):\n  File\nOSError: no disk\n"
IGNORED = "Exception ignored in: <x>\nTraceback (most recent call last):\n  File\nKeyError: 1\n"
WARNING = "x.py:3: RuntimeWarning: Enable tracemalloc\n  self.close()\n"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("error: no data\n" + WARNING, "no data"),
        ("error: no data\n" + TRACEBACK, "no data"),
        (TRACEBACK + WARNING, "OSError: no disk"),
        (TRACEBACK + "\nDuring handling\n\n" + TRACEBACK.replace("no disk", "two"), "OSError: two"),
        (TRACEBACK + IGNORED, "OSError: no disk"),
        ("first\nlast\n\n", "last"),
        ("", ""),
    ],
)
def test_the_reason_is_the_error_and_no_later_warning(said, reason):
    heard = LastWords()
    for line in said.splitlines(keepends=True):
        heard.add(line)
    assert heard.reason == reason
