"""Whom a process joins: the variables of clusters and of local.sh, as JAX is told of them."""

import os

import jax
import pytest
from children import environment

from rxrx1_jax.training import processes


class Asked(Exception):
    """`jax.distributed.initialize` was called."""


@pytest.fixture
def ask(monkeypatch):
    """join() in an environment; the arguments it gives to JAX, or None where it joins nobody."""

    def initialize(**arguments):
        raise Asked(arguments)

    monkeypatch.setattr(jax.distributed, "initialize", initialize)

    def asked(**variables):
        for name in [*os.environ]:
            if name not in environment():
                monkeypatch.delenv(name)
        for name in ("JAX_LOCAL_DEVICE_IDS", "MEGASCALE_NUM_SLICES", "JAX_NUM_PROCESSES"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        try:
            assert processes.join() is False
        except Asked as call:
            return call.args[0]
        return None

    return asked


STEP = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NUM_NODES": "2",
}  # fmt: skip
ADDRESS = {
    "JAX_COORDINATOR_ADDRESS": "h:1", "JAX_NUM_PROCESSES": "3", "JAX_PROCESS_ID": "2"
}  # fmt: skip


@pytest.mark.parametrize(
    "variables",
    [
        {},
        STEP | {"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"},
        STEP | {"SLURM_STEP_NUM_TASKS": "1"},  # a shell inside an allocation
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"},  # a batch script
        STEP | {"JAX_NUM_PROCESSES": "1"},
        ADDRESS | {"JAX_NUM_PROCESSES": "1"},
        {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"},
        {"MEGASCALE_NUM_SLICES": "1"},
    ],
)
def test_a_single_process_waits_for_nobody(ask, variables):
    assert ask(**variables) is None


@pytest.mark.parametrize(
    "variables",
    [
        STEP,
        {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "0"},
        {"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"},
        {"JAX_NUM_PROCESSES": "auto"},
    ],
)
def test_clusters_are_read_by_jax(ask, variables):
    asked = ask(**variables)
    assert asked.pop("initialization_timeout") > processes.START_SECONDS
    assert asked == {"cluster_detection_method": None, "heartbeat_timeout_seconds": 60}


def test_the_variables_of_the_processes(ask):
    asked = ask(**ADDRESS, **STEP)  # they count for more than a cluster
    arguments = {"coordinator_address": "h:1", "num_processes": 3, "process_id": 2}
    assert asked.items() >= (arguments | {"cluster_detection_method": "deactivate"}).items()


def test_a_slurm_task_takes_all_gpus_of_a_node_that_it_has_alone(ask):
    ask(**STEP, SLURM_GPUS_ON_NODE="4")
    assert os.environ["JAX_LOCAL_DEVICE_IDS"] == "0,1,2,3"
    ask(**STEP | {"SLURM_STEP_NUM_NODES": "1"}, SLURM_GPUS_ON_NODE="4")
    assert "JAX_LOCAL_DEVICE_IDS" not in os.environ  # JAX gives each task the GPU of its number
    ask(**STEP, SLURM_GPUS_ON_NODE="4", JAX_LOCAL_DEVICE_IDS="3")
    assert os.environ["JAX_LOCAL_DEVICE_IDS"] == "3"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"JAX_PROCESS_ID": ""}, "without JAX_PROCESS_ID: .* JAX_NUM_PROCESSES=1"),
        ({"JAX_NUM_PROCESSES": ""}, "without JAX_NUM_PROCESSES"),
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES=two: expected a number"),
        ({"JAX_PROCESS_ID": "3"}, r"JAX_PROCESS_ID=3: expected 0 to .* 2$"),
        ({"JAX_COORDINATOR_ADDRESS": "host"}, "ADDRESS=host: expected host:port"),
    ],
)
def test_impossible_variables_are_named(ask, changes, said):
    with pytest.raises(processes.LaunchError, match=said):
        ask(**ADDRESS | changes)
