"""Many runs on a cluster: what launch/slurm_sweep.sh tells Slurm, and what the files of Kubernetes,
Docker and SkyPilot say."""

import os
import re
import subprocess
import tomllib

import pytest
from children import LAUNCH, ROOT
from commands import run_command
from launch_fixture import ENDINGS

from rxrx1_jax.training import processes

SCRIPT = LAUNCH / "slurm_sweep.sh"
PYTHON = {"PYTHON": "sleep"}  # a program that the stand-ins replace, too


@pytest.fixture
def words(tmp_path):
    return ["table1", "--config=demo:seed=1", f"--workdir={tmp_path}/my runs", "--config.x=/a b"]


def test_the_jobs_of_a_sweep(cluster, words, tmp_path):
    answers = "sleep --tasks: 0 30\nsbatch --array=0-29: 0 71;cluster\nsbatch: 0 72;cluster"
    (code, stdout, stderr), (count, runs, table) = cluster(
        SCRIPT.name, *words, answers=answers, OPTIONS="--gpus=1 --time=2-0", **PYTHON
    )
    assert code == 0, stderr
    assert count[:2] == ["sleep", ["-m", "rxrx1_jax.table1", *words[1:], "--tasks"]]
    logs = tmp_path / "my runs" / "logs"
    assert {"--array=0-29", "--requeue", "--signal=TERM@120", "--export=ALL",
            "--open-mode=append", f"--output={logs}/task-%a.log"} <= {*runs[1]}  # fmt: skip
    assert runs[1][-8:] == ["--gpus=1", "--time=2-0", str(SCRIPT), "run", *words]
    assert runs[2]["RESTARTS"] == "100"
    assert "--dependency=afterany:71" in table[1] and "--gpus=1" not in table[1]
    assert table[1][-6:] == [str(SCRIPT), "collect", *words] and logs.is_dir()
    assert "30 runs: job 71;" in stdout and f"job 72, printed to {logs}/table.log" in stdout


def test_a_search_is_a_sweep_like_any_other(cluster, tmp_path):
    words = ["search", "board.py", "--draws=8", f"--workdir={tmp_path}"]
    _, (count, (_, runs, _), _) = cluster(
        SCRIPT.name, *words, answers="sleep: 0 48\nsbatch: 0 71", OPTIONS="--gpus=1", **PYTHON
    )
    assert count[:2] == ["sleep", ["-m", "rxrx1_jax.search", *words[1:], "--tasks"]]
    assert "--array=0-47" in runs and runs[-6:] == [str(SCRIPT), "run", *words]


@pytest.mark.parametrize(
    ("variables", "array"),
    [
        ({"AT_ONCE": "4"}, "0-29%4"),
        ({"ARRAY": "0,5"}, "0,5"),
        ({"ARRAY": "0-9", "AT_ONCE": "2"}, "0-9%2"),
    ],
)
def test_some_runs_and_a_few_at_a_time(cluster, words, variables, array):
    answers = "sleep --tasks: 0 30\nsbatch: 0 71"
    _, (_, runs, _) = cluster(
        SCRIPT.name, *words, answers=answers, OPTIONS="--gpus=1", **PYTHON, **variables
    )
    assert f"--array={array}" in runs[1]


@pytest.mark.parametrize(
    ("given", "variables", "said"),
    [
        ([], {"OPTIONS": "--gpus=1"}, "table1, leaderboard or search"),
        (["table1", "--workdir=x"], {}, "OPTIONS"),
        (["table1", "--config=demo"], {"OPTIONS": "--gpus=1"}, "--workdir"),
    ],
)
def test_what_a_sweep_lacks_is_named(cluster, given, variables, said):
    (code, _, stderr), calls = cluster(SCRIPT.name, *given, **PYTHON, **variables)
    assert code and said in stderr and not calls


def test_wrong_arguments_queue_nothing(cluster, words):
    (code, _, _), calls = cluster(
        SCRIPT.name, *words, answers="sleep --tasks: 1 no", OPTIONS="--gpus=1", **PYTHON
    )
    assert code == 1 and [call[0] for call in calls] == ["sleep"]


@pytest.mark.parametrize(("status", "state", "count", "requeued"), ENDINGS)
def test_a_task_queues_again_when_it_was_preempted(cluster, words, status, state, count, requeued):
    job = {"SLURM_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "29", "SLURM_RESTART_COUNT": count}
    answers = f"srun: {status}\nscontrol show: 0 JobId=77 ArrayTaskId=29 JobState={state} Reason=N"
    (code, _, stderr), (setup, srun, *others) = cluster(
        SCRIPT.name, "run", *words, answers=answers, PYTHON="/my/python", SETUP="sleep 3",
        SLURM_CPUS_PER_TASK="8", **job,
    )  # fmt: skip
    assert code == status, stderr
    assert setup[:2] == ["sleep", ["3"]]
    command = ["/my/python", "-m", "rxrx1_jax.table1", *words[1:], "--task=29"]
    assert srun[:2] == ["srun", ["--cpus-per-task=8", *command]]
    assert (["scontrol", ["requeue", "77"]] in [call[:2] for call in others]) == requeued


def test_the_last_job_collects(cluster, words):
    _, (call,) = cluster(SCRIPT.name, "collect", *words, answers="sleep: 0", **PYTHON)
    assert call[:2] == ["sleep", ["-m", "rxrx1_jax.table1", *words[1:], "--collect"]]


@pytest.mark.parametrize("path", sorted(LAUNCH.rglob("*.sh")), ids=lambda path: path.name)
def test_every_script_prints_its_header(path):
    done = subprocess.run([path, "--help"], capture_output=True, text=True, check=False)
    header = path.read_text().partition("\nset -euo")[0].splitlines()[1:]
    assert done.returncode == 0 and len(header) > 2
    assert [f"# {line}" for line in done.stdout.splitlines()] == header


def load(name):
    yaml = pytest.importorskip("yaml")  # of ml_collections
    return yaml.safe_load((LAUNCH / name).read_text())


def test_the_sweep_is_a_job_of_kubernetes():
    """By the published schema, in which an unknown field is an error."""
    validate = pytest.importorskip("kubernetes_validate")
    job = load("sweep.yaml")
    validate.validate(job, "1.33", strict=True)
    job["spec"]["completion"] = 30
    with pytest.raises(validate.ValidationError):
        validate.validate(job, "1.33", strict=True)


def test_each_pod_of_the_sweep_does_its_run(monkeypatch, tmp_path):
    spec = load("sweep.yaml")["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    assert spec["completionMode"] == "Indexed" and container["command"][:2] == ["python", "-m"]
    name = container["command"][2].removeprefix("rxrx1_jax.")
    words = [word.replace("$(JOB_COMPLETION_INDEX)", "29") for word in container["args"]]
    assert words[-1] == "--task=29"
    listed = run_command(name, *words[:-1], "--tasks")
    assert (listed.code, int(listed.out)) == (0, spec["completions"])
    preempted, disrupted = spec["podFailurePolicy"]["rules"]
    assert preempted["action"] == disrupted["action"] == "Ignore"
    assert preempted["onExitCodes"]["values"] == [processes.EXIT_CODE]
    assert preempted["onExitCodes"]["containerName"] == container["name"]


def test_the_image_has_what_training_needs():
    text = (LAUNCH / "Dockerfile").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (extra,) = re.findall(r"'/app\[(\w+)\]'", text)
    assert extra in project["project"]["optional-dependencies"]
    copied = re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE)
    folders = {package.split(".")[0] for package in project["tool"]["setuptools"]["packages"]}
    needed = {*folders, "configs", "pyproject.toml", project["project"]["readme"], "LICENSE"}
    assert {word for line in copied for word in line.split()} == needed
    (cache,) = re.findall(r"JAX_COMPILATION_CACHE_DIR=(\S+)", text)
    mounts = load("sweep.yaml")["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert any(cache.startswith(f"{mount['mountPath']}/") for mount in mounts)


def test_machines_of_skypilot_join(tmp_path, monkeypatch):
    """What its script sets on each, with JAX's part left out."""
    task, asked = load("sky.yaml"), []
    monkeypatch.setattr("jax.distributed.initialize", lambda **given: asked.append(given))
    (tmp_path / "python").write_text("#!/bin/sh\nenv\n")
    (tmp_path / "python").chmod(0o755)
    for rank in range(task["num_nodes"]):
        env = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
            "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": str(rank),
        }  # fmt: skip
        done = subprocess.run(
            ["bash", "-c", task["run"]], env=env, capture_output=True, text=True, check=True
        )
        for name, value in re.findall("^(JAX_.*)=(.*)$", done.stdout, re.MULTILINE):
            monkeypatch.setenv(name, value)
        processes.join()
    named = {"coordinator_address": "10.0.0.1:8476", "num_processes": 2}
    for rank, given in enumerate(asked):
        assert given.items() >= {**named, "process_id": rank}.items()
    assert len(asked) == 2
