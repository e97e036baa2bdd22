"""launch/local.sh: a real run of two processes, and programs in place of Python that fail."""

import json
import os
import re
import signal
import time

import pytest
from children import environment, launch, outcome, stand_in, stop, wait_for
from dataset_fixture import make_config, write_config

from rxrx1_jax.training import processes


@pytest.mark.long
def test_a_preempted_run_of_two_processes_is_started_again_and_ends(tiny, tmp_path):
    config = make_config(tiny.dataset, optim__epochs=8, train__eval_every=0, train__keep=30)
    config.train.checkpoint_every = 8
    path = write_config(config, tmp_path / "config.py")
    workdir, said = tmp_path / "run", tmp_path / "said"
    slow = stand_in(tmp_path / "slow", "slow_process", said, workdir)
    env = environment(4) | {"PYTHON": str(slow)}
    child = launch(
        "local.sh", 2, f"--config={path}", f"--workdir={workdir}", env=env, wait=False
    )  # fmt: skip
    try:
        wait_for(lambda: said.exists() and re.fullmatch(r"\d+ [1-9]\d*", said.read_text()), child)
        os.kill(int(said.read_text().split()[0]), signal.SIGTERM)  # one of the two alone
    except BaseException:
        stop(child)
        raise
    code, stdout, stderr = outcome(child)
    assert code == 0, stderr
    assert "restart 1 of 10" in stderr and "restart 2" not in stderr
    steps = sorted(int(folder.name) for folder in (workdir / "checkpoints").iterdir())
    preempted, last = steps  # saved when told to, and at the end
    assert 1 <= preempted < last == json.loads((workdir / "results.json").read_text())["step"] == 21
    assert f"resumed at step {preempted}" in stdout and "on 4 x cpu" in stdout
    told = f"step {preempted};"
    assert sum(told in line for line in stderr.splitlines()) == 2  # both, at the same step
    assert any(line.startswith("[1] ") and told in line for line in stderr.splitlines())
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    trained = [line["step"] for line in lines if "train_loss" in line]
    assert trained == sorted(set(trained)) and trained[-1] == 21


@pytest.fixture
def program(tmp_path):
    """Environment of local.sh with planned.py for Python, and (number, start) -> its call."""
    path = stand_in(tmp_path / "program", "planned", tmp_path)
    env = environment() | {"PYTHON": str(path), "GRACE": "1"}
    for name in ("JAX_NUM_CPU_DEVICES", "CUDA_VISIBLE_DEVICES", "JAX_PLATFORMS"):
        env.pop(name, None)

    def call(number, start=0):
        return json.loads((tmp_path / f"call-{number}-{start}").read_text())

    return env, call


def test_processes_know_of_each_other_and_share_the_devices(program):
    env, call = program
    code, stdout, stderr = launch(
        "local.sh", 2, "--config=a b", "--x=$HOME",
        env=env | {"PLAN": "0 0", "CUDA_VISIBLE_DEVICES": "3,5,6,7"},
    )  # fmt: skip
    assert (code, stdout) == (0, "output of 0\n")
    assert sorted(stderr.splitlines()) == ["[1] error of 1", "error of 0"]
    (arguments, first), (again, second) = call(0), call(1)
    assert arguments == again == ["-m", "rxrx1_jax.main", "--config=a b", "--x=$HOME"]
    assert (first["CUDA_VISIBLE_DEVICES"], second["CUDA_VISIBLE_DEVICES"]) == ("3,5", "6,7")
    assert (first["JAX_PROCESS_ID"], second["JAX_PROCESS_ID"]) == ("0", "1")
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_COORDINATOR_BIND_ADDRESS"):
        assert first[name] == second[name]
        assert re.fullmatch(r"127\.0\.0\.1:\d+", first[name])
    assert first["JAX_NUM_PROCESSES"] == second["JAX_NUM_PROCESSES"] == "2"


@pytest.mark.parametrize(
    ("variables", "each"),
    [
        ({}, "1"),
        ({"JAX_NUM_CPU_DEVICES": "6"}, "3"),
        ({"JAX_NUM_CPU_DEVICES": "6", "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "0"}, "3"),
    ],
)
def test_simulated_devices_are_shared(program, variables, each):
    env, call = program
    code, _, stderr = launch("local.sh", 2, env=env | {"PLAN": "0 0"} | variables)
    assert code == 0, stderr
    assert [call(i)[1]["JAX_NUM_CPU_DEVICES"] for i in range(2)] == [each, each]


@pytest.mark.parametrize(
    ("arguments", "variables", "said"),
    [
        ([], {}, "usage: "),
        (["--workdir=x"], {}, "usage: "),
        (["0"], {}, "usage: "),
        (["2"], {"CUDA_VISIBLE_DEVICES": "0,1,2"}, "3 devices .* 2 processes"),
        (["2"], {"JAX_NUM_CPU_DEVICES": "3"}, "3 devices .* 2 processes"),
    ],
)
def test_what_cannot_be_started_is_refused(program, arguments, variables, said):
    env, _ = program
    code, _, stderr = launch("local.sh", *arguments, env=env | {"PLAN": "0 0"} | variables)
    assert code == 2 and re.search(said, stderr)


@pytest.mark.parametrize(
    ("plan", "code", "said"),
    [
        ("0 3", 3, "process 1 .* 3"),
        ("wait 3", 3, "process 0 .*killed"),
        ("deaf 3", 3, "process 0 .*killed"),
        ("wait killed", 137, "process 1 .* 137"),
    ],
)
def test_a_failure_ends_all(program, plan, code, said):
    env, _ = program
    started = time.monotonic()
    found, _, stderr = launch("local.sh", 2, env=env | {"PLAN": plan})
    assert found == code and re.search(said, stderr) and time.monotonic() - started < 40
    assert "local.sh: line" not in stderr


def test_restarts_have_an_end(program, tmp_path):
    env, _ = program
    plan = {"PLAN": "75,75,75 75,75,75", "RESTARTS": "2"}
    code, _, stderr = launch("local.sh", 2, env=env | plan)
    assert code == processes.EXIT_CODE
    assert "restart 2 of 2" in stderr and "restart 3" not in stderr
    assert len(list(tmp_path.glob("call-*"))) == 2 * 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_all_and_is_no_reason_to_start_again(program, tmp_path, number):
    env, _ = program
    child = launch("local.sh", 2, env=env | {"PLAN": "wait wait"}, wait=False)
    wait_for(lambda: len(list(tmp_path.glob("call-*"))) == 2, child)
    child.send_signal(number)
    code, _, stderr = outcome(child)
    assert code == processes.EXIT_CODE and "restart" not in stderr
    assert len(list(tmp_path.glob("call-*"))) == 2
