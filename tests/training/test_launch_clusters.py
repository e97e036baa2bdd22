"""The scripts of launch/ for clusters: what each tells Slurm, gcloud and Kubernetes."""

import re
import subprocess

import pytest
from children import LAUNCH
from commands import run_command
from launch_fixture import ENDINGS

from rxrx1_jax.training import processes

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


@pytest.mark.parametrize(("status", "state", "count", "requeued"), ENDINGS)
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
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert container["command"] == ["python", "-m", "rxrx1_jax.main"]
    found = run_command("main", *container["args"], "--config.optim.nope=1")
    assert found.code == 1 and "optim.nope" in found.last  # the other flags exist
