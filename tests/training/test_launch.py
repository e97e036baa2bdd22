"""The scripts of launch/: a real run of two processes, and what the others tell their clusters."""

import json
import os
import re
import signal
import subprocess
import time

import pytest
from children import ROOT, SECONDS, Child, end, environment, stand_in, wait_for
from commands import run_command
from dataset_fixture import make_config, write_config

from rxrx1_jax.training import processes

LAUNCH = ROOT / "launch"


def launch(name, *arguments, env, wait=True):
    """(status, stdout, stderr) of a script of launch/; the running script where it is not awaited.

    It leads a process group of its own, which ends with the test.
    """
    child = Child([LAUNCH / name, *arguments], env=env, start_new_session=True)
    return outcome(child) if wait else child


def outcome(child):
    try:
        return end([child], 2 * SECONDS)[0]
    finally:
        stop(child)


def stop(child):
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


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


FIELD = "--config.data.dir=/a b"


def test_a_slurm_job(cluster, tmp_path):
    workdir = tmp_path / "my runs" / "one"
    arguments = ["--config=configs/demo.py:fold=1", f"--workdir={workdir}", FIELD]
    options = {"OPTIONS": "--nodes=2 --gpus-per-node=8"}
    (code, stdout, stderr), (call,) = cluster(
        "slurm.sh", *arguments, answers="sbatch: 0 71;cluster", **options
    )
    assert code == 0, stderr
    program, given, env = call
    assert program == "sbatch"
    assert (env["PYTHON"], env["RESTARTS"]) == (".venv/bin/python", "100")
    assert {"--requeue", "--signal=TERM@120", "--export=ALL", "--ntasks-per-node=1"} <= set(given)
    assert {f"--output={workdir}.log", "--job-name=one", "--open-mode=append"} <= set(given)
    assert given[-7:] == [
        "--nodes=2", "--gpus-per-node=8", str(LAUNCH / "slurm.sh"), "run", *arguments,
    ]  # fmt: skip
    assert workdir.parent.is_dir() and stdout == f"job 71; output in {workdir}.log\n"


@pytest.mark.parametrize(
    ("options", "arguments", "said"),
    [
        ({}, ["--config=configs/demo.py", "--workdir=x"], "OPTIONS: for sbatch"),
        ({"OPTIONS": "-N2"}, ["--workdir=x"], "give --config=CONFIG"),
        ({"OPTIONS": "-N2"}, ["--config=configs/demo.py"], "give --workdir=RUN"),
        ({"OPTIONS": "-N2"}, ["--config=nope.py:a=1", "--workdir=x"], "nope.py:a=1: no such file"),
    ],
)
def test_a_slurm_job_that_lacks_something_is_not_queued(cluster, options, arguments, said):
    (code, _, stderr), calls = cluster("slurm.sh", *arguments, **options)
    assert code and said in stderr and not calls


@pytest.mark.parametrize(
    ("status", "state", "count", "requeued"),
    [
        (0, "RUNNING", "", False),
        (1, "RUNNING", "", False),
        (75, "RUNNING", "", True),
        (75, "RUNNING", "99", True),
        (75, "RUNNING", "100", False),
        (75, "CANCELLED", "", False),
        (75, "PREEMPTED", "", False),  # Slurm queues it again itself
    ],
)
def test_a_slurm_job_queues_again_when_it_was_preempted(cluster, status, state, count, requeued):
    job = {"SLURM_JOB_ID": "71", "SLURM_RESTART_COUNT": count, "SLURM_CPUS_PER_TASK": "8"}
    answers = f"srun: {status}\nscontrol show: 0 JobId=71 JobState={state} Reason=None"
    (code, _, stderr), (srun, *others) = cluster(
        "slurm.sh", "run", "--workdir=x", FIELD, answers=answers, PYTHON="/my/python", **job
    )
    assert code == status, stderr
    assert srun[:2] == [
        "srun",
        ["--kill-on-bad-exit=0", "--wait=120", "--cpus-per-task=8", "/my/python",
         "-m", "rxrx1_jax.main", "--workdir=x", FIELD],
    ]  # fmt: skip
    assert (["scontrol", ["requeue", "71"]] in [call[:2] for call in others]) == requeued


TPU = {"TPU": "mine", "ZONE": "here", "FOLDER": "/mnt/my code"}
READY = "gcloud describe: 0 READY"
CREATE = {"CREATE": "--accelerator-type=v4-32 --spot", "SETUP": "mount it"}


def verbs(calls):
    return [args[3] for name, args, _ in calls if name == "gcloud" and args[3] != "describe"]


def commands(calls):
    return [args[-1] for name, args, _ in calls if name == "gcloud" and args[3] == "ssh"]


def test_a_run_on_tpu_hosts(cluster, tmp_path):
    (code, stdout, stderr), calls = cluster(
        "tpu_vm.sh", "--workdir=x", FIELD, answers=f"{READY}\ngcloud ssh: 0 said", **TPU
    )
    assert code == 0 and "said" in stdout, stderr
    ssh = calls[-1][1]
    assert ssh[:-1] == [
        "compute", "tpus", "tpu-vm", "ssh", "mine", "--zone=here", "--worker=all",
    ]  # fmt: skip
    command = ssh[-1].removeprefix("--command=")
    # What a host does with it: here the folder, and a Python that writes down what it gets.
    folder = tmp_path / "my code"
    (folder / ".venv" / "bin").mkdir(parents=True)
    python = folder / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\necho "$PWD $JAX_NUM_PROCESSES"\nprintf "%s\\n" "$@"\nexit 75\n')
    python.chmod(0o755)
    command = command.replace("/mnt/my\\ code", str(folder).replace(" ", "\\ "))
    host = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert host.returncode == 75
    *called, status = host.stdout.splitlines()
    assert called == [f"{folder} auto", "-m", "rxrx1_jax.main", "--workdir=x", FIELD]
    assert status.endswith("preempted: status 75")  # what launch/tpu_vm.sh looks for


TAKEN = (
    "gcloud describe: 0 READY once\ngcloud describe: 0 PREEMPTED once\n"
    "gcloud describe: 0 PREEMPTED once\ngcloud describe: 0 READY\n"
    "gcloud ssh mount: 0 mounted\ngcloud ssh: 255 connection lost once\ngcloud ssh: 0 done"
)


@pytest.mark.parametrize(
    ("answers", "more", "code", "said", "done"),
    [
        (f"{READY}\ngcloud ssh: 1 a host was preempted: status 75 once\ngcloud ssh: 0 said", {}, 0,
         "mine is READY; restart 1 of 100", ["ssh", "ssh"]),
        (f"{READY}\ngcloud ssh: 1 error: no dataset", {}, 1, "", ["ssh"]),
        ("gcloud describe: 0 PREEMPTED\ngcloud ssh: 255 connection lost", {},
         processes.EXIT_CODE, "mine is PREEMPTED", ["ssh"]),
        (TAKEN, CREATE, 0, "restart 1 of 100", ["ssh", "delete", "create", "ssh", "ssh"]),
    ],
    ids=["preempted", "failed", "taken", "made again"],
)  # fmt: skip
def test_a_run_on_tpu_hosts_that_ended(cluster, answers, more, code, said, done):
    (found, _, stderr), calls = cluster("tpu_vm.sh", "--workdir=x", answers=answers, **TPU, **more)
    assert found == code and said in stderr and verbs(calls) == done
    first, *others = commands(calls)
    if more:
        made = next(args for _, args, _ in calls if "create" in args)
        assert made[-4:] == ["mine", "--zone=here", "--accelerator-type=v4-32", "--spot"]
        assert others.pop(0) == "--command=mount it"
    assert others == [first] * len(others)
    assert bool(others) == (["sleep", ["60"]] in [call[:2] for call in calls])


@pytest.mark.parametrize("name", [*TPU])
def test_missing_settings_of_a_slice_are_named(cluster, name):
    given = {key: value for key, value in TPU.items() if key != name}
    (code, _, stderr), calls = cluster("tpu_vm.sh", "--workdir=x", **given)
    assert code and f"{name}: " in stderr and not calls


@pytest.fixture
def jobset():
    yaml = pytest.importorskip("yaml")  # of ml_collections
    return yaml.safe_load((LAUNCH / "jobset.yaml").read_text())


def pod_environment(pod, annotations):
    """What the kubelet makes of a container's env: fields of the pod, then $(NAME)."""
    env = {}
    for entry in pod["containers"][0]["env"]:
        if "valueFrom" in entry:
            path = entry["valueFrom"]["fieldRef"]["fieldPath"]
            value = annotations[re.fullmatch(r"metadata\.annotations\['(.*)'\]", path)[1]]
        else:
            value = re.sub(r"\$\((\w+)\)", lambda name: env[name[1]], entry["value"])
        env[entry["name"]] = value
    return env


def test_the_pods_of_a_jobset_know_of_each_other(jobset, monkeypatch):
    job = jobset["spec"]["replicatedJobs"][0]
    spec, coordinator = job["template"]["spec"], jobset["spec"]["coordinator"]
    assert job["replicas"] == 1 and spec["completionMode"] == "Indexed"
    assert coordinator == {"replicatedJob": job["name"], "jobIndex": 0, "podIndex": 0}
    host = f"{jobset['metadata']['name']}-{job['name']}-0-0.{jobset['metadata']['name']}"
    asked = []
    monkeypatch.setattr("jax.distributed.initialize", lambda **given: asked.append(given))
    from rxrx1_jax.training import processes

    for index in range(spec["parallelism"]):
        annotations = {
            "jobset.sigs.k8s.io/coordinator": host,
            "batch.kubernetes.io/job-completion-index": str(index),
        }
        for name, value in pod_environment(spec["template"]["spec"], annotations).items():
            monkeypatch.setenv(name, value)
        processes.join()
    (port,) = (p["containerPort"] for p in spec["template"]["spec"]["containers"][0]["ports"])
    for index, given in enumerate(asked):
        assert given["coordinator_address"] == f"{host}:{port}"
        assert (given["num_processes"], given["process_id"]) == (spec["completions"], index)
    assert len(asked) == spec["completions"] == spec["parallelism"] == 2


def test_a_jobset_starts_again_what_was_preempted(jobset):
    spec = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = spec["template"]["spec"]
    assert (spec["backoffLimit"], pod["restartPolicy"]) == (0, "Never")
    status, disruption = spec["podFailurePolicy"]["rules"]
    assert status["action"] == disruption["action"] == "FailJob"
    assert status["onExitCodes"] == {
        "containerName": pod["containers"][0]["name"],
        "operator": "In",
        "values": [processes.EXIT_CODE],
    }
    (rule,) = jobset["spec"]["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]


def test_the_command_of_a_jobset_is_one_of_this_program(jobset):
    container = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"][
        "containers"
    ][0]
    assert container["command"] == ["python", "-m", "rxrx1_jax.main"]
    found = run_command("main", *container["args"], "--config.optim.nope=1")
    assert found.code == 1 and "optim.nope" in found.last  # the other flags exist
