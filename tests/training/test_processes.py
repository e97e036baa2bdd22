"""Two processes are one run: the numbers, the checkpoints and the errors of a single process."""

import json
import re
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from children import end, free_port, start, wait_for
from screens import tiny_config, tiny_images

from rxrx1_jax.training import checkpoint, picture, setup

# Relative to the largest number of each array, float32. The same four devices each work on a
# quarter of the batch, but not on the same rows, and two processes add the four sums in another
# order than one: a rounding of 6e-8 an addition, which eight updates carry on.
TOLERANCE = 2e-5


def settings(**changes):
    # 10 test sites are read 8 and 2, all 61 sites seven times 8 and 5: an odd last batch.
    return tiny_config(train__keep=10, optim__label_smoothing=0.1, **changes)


class Done:
    """A run that was made by some number of processes."""

    def __init__(self, workdir, config, count, works=("train",)):
        self.workdir = workdir
        counts = workdir.parent / f"{workdir.name}-read"
        arguments = [json.dumps(config.to_dict()), workdir, counts, *works]
        self.outputs = end(start("work", *arguments, processes=count, devices=4))
        for code, _, stderr in self.outputs:
            assert code == 0, stderr
        read = [json.loads(Path(f"{counts}{i}").read_text()) for i in range(count)]
        for joined, there, devices, _ in read:
            assert (joined, there, devices) == (count > 1, count, 4 // count)
        self.read = [
            {name: Counter({int(row): n for row, n in c.items()}) for name, c in x[-1].items()}
            for x in read
        ]
        self.lines = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]

    def state(self):
        abstract = setup.prepare(settings(), tiny_images()).abstract_state
        saved = checkpoint.describe(checkpoint.find(self.workdir))
        return jax.device_get(checkpoint.restore(saved, abstract, resume=True))

    def table(self, name):
        return pq.read_table(self.workdir / f"{name}.parquet")


def go_on(workdir, done, step):
    """A copy of the run as it was when it had saved `step`."""
    shutil.copytree(done.workdir, workdir)
    for path in (workdir / "checkpoints").iterdir():
        if int(path.name) > step:
            shutil.rmtree(path)
    for name in ("results.json", "predictions.parquet"):
        (workdir / name).unlink()
    return workdir


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def one(folder):
    return Done(folder / "one", settings(), 1, ("train", "embed"))


@pytest.fixture(scope="module")
def two(folder):
    return Done(folder / "two", settings(), 2, ("train", "embed"))


@pytest.fixture(scope="module")
def two_then_one(folder):
    """Two are told to end in the evaluation after step 3, by a signal to the second alone."""
    config, workdir = settings(eval__batch_size=4), folder / "two-one"
    arguments = [json.dumps(config.to_dict()), workdir, folder / "evaluates"]
    children = start("slow_evaluations", *arguments, processes=2, devices=4)
    wait_for((folder / "evaluates1").exists, children[1])
    children[1].send_signal(signal.SIGTERM)
    for code, _, stderr in end(children):
        assert code == 0 and "step 3;" in stderr, stderr
    assert "test_loss" not in (workdir / "metrics.jsonl").read_text()  # it did not come to its end
    return Done(workdir, config, 1)


@pytest.fixture(scope="module")
def one_then_two(folder, one):
    """Under pmap."""
    config = settings(train__parallelism="pmap")
    return Done(go_on(folder / "one-two", one, 3), config, 2)


@pytest.mark.long
@pytest.mark.parametrize("name", ["two", "two_then_one", "one_then_two"])
def test_the_numbers_are_those_of_one_process(one, name, request):
    other = request.getfixturevalue(name)
    leaves, expected = jax.tree.leaves(other.state()), jax.tree.leaves(one.state())
    assert len(leaves) == len(expected) > 50
    for leaf, right in zip(leaves, expected, strict=True):
        np.testing.assert_allclose(leaf, right, rtol=0, atol=TOLERANCE * np.abs(right).max())
    assert [line["step"] for line in other.lines] == [line["step"] for line in one.lines]
    for line, right in zip(other.lines, one.lines, strict=True):
        for field in ("epoch", "train_loss", "train_accuracy", "learning_rate", "test_loss",
                      "test_accuracy", "test_accuracy_by_well", "gradient_norm"):  # fmt: skip
            assert (field in line) == (field in right)
            np.testing.assert_allclose(line.get(field, 0), right.get(field, 0), rtol=TOLERANCE)
    results, right = (
        json.loads((run.workdir / "results.json").read_text()) for run in (other, one)
    )
    np.testing.assert_allclose(results.pop("loss"), right.pop("loss"), rtol=TOLERANCE)
    assert results == right


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "file", "sites"),
    [
        ("two", "predictions", 10),
        ("two_then_one", "predictions", 10),
        ("one_then_two", "predictions", 10),
        ("two", "embeddings", 61),
    ],
)
def test_every_site_is_predicted_once_and_alike(one, name, file, sites, request):
    table, right = request.getfixturevalue(name).table(file), one.table(file)
    assert len(set(table["site_id"].to_pylist())) == table.num_rows == sites
    for column in right.column_names:
        if str(right.schema.field(column).type) == "float":
            found, expected = table[column].to_numpy(), right[column].to_numpy()
            scale = np.abs(expected).max()
            np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * scale)
        elif column != "top5_probability":
            assert table[column].to_pylist() == right[column].to_pylist(), column


@pytest.mark.long
@pytest.mark.parametrize("per_call", [1, 4])
def test_two_processes_name_the_whole_batch_that_diverged(tmp_path, per_call):
    config = settings(
        train__eval_every=0, train__checkpoint_every=3, train__steps_per_call=per_call
    )
    workdir = tmp_path / "run"
    outputs = end(start("diverges", json.dumps(config.to_dict()), workdir, processes=2, devices=4))
    ready = setup.prepare(config, tiny_images())
    expected = ready.images.sites["site_id"][ready.order(1)[0]].tolist()
    report = json.loads((workdir / "diverged.json").read_text())
    assert report["step"] == 2 and report["loss"] == "nan"
    assert report["site_ids"] == expected and report["not_finite"] == [expected[6]]
    code, _, stderr = outputs[0]
    last = next(line for line in stderr.splitlines() if line.startswith("error: "))
    assert code == 1 and last.startswith("error: step 2: loss is nan")
    assert ", ".join(expected[:4]) in last and expected[4] not in last
    assert outputs[1][0] != 0


@pytest.mark.long
def test_each_process_reads_its_share(one, two):
    (whole,), parts = one.read, two.read
    drawn = picture.SITES * (1 + picture.EPOCHS)  # by the first process alone
    for work in ("train", "embed"):
        assert parts[0][work] + parts[1][work] == whole[work]  # none twice, none missing
        totals = [part[work].total() for part in parts]
        totals[0] -= drawn if work == "train" else 0
        assert abs(totals[0] - totals[1]) <= 1
    assert not set(parts[0]["embed"]) & set(parts[1]["embed"])
    assert sorted(whole["embed"]) == list(range(61)) and set(whole["embed"].values()) == {1}
    # 8 steps of 8 sites, and the 10 test sites after steps 3, 5 and 8.
    assert whole["train"].total() == 8 * 8 + 3 * 10 + drawn


@pytest.mark.long
def test_only_process_0_prints(one, two):
    (_, alone, _), (_, first, _), (_, second, _) = *one.outputs, *two.outputs
    assert "said by process 0" in alone and "said by process 0" in first
    assert "step 8/8" in first and "said by process 1" not in second
    # Threads of Gloo tell of their connections, one in the middle of another's line.
    assert not re.sub(r"\[Gloo\] Rank|\d+ is connected to [^:]+: \d+|\s", "", second)


@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_that_dies_ends_the_other(tmp_path, killed):
    there = tmp_path / "there"
    children = start("together", there, -1, processes=2, devices=4)
    try:
        wait_for(there.exists, children[0])
        children[killed].send_signal(signal.SIGKILL)
        started = time.monotonic()
        ((code, _, stderr),) = end([children[1 - killed]], seconds=40)
    finally:
        end(children)
    assert code != 0
    assert time.monotonic() - started < 5 + 15  # LOST_SECONDS, and the dump of its threads
    assert re.search("another task died|(closed|reset) by peer", stderr), stderr


@pytest.mark.parametrize("failing", [0, 1])
def test_a_process_that_fails_does_not_wait_for_the_other(tmp_path, failing):
    children = start("together", tmp_path / "there", failing, processes=2, devices=4)
    outputs = end(children)
    assert outputs[failing][0] == 1 and "error: disk full" in outputs[failing][2]
    assert outputs[1 - failing][0] != 0


@pytest.mark.parametrize("there", [0, 1])
def test_a_process_that_never_comes(there):
    (first, second) = start("join", 3, processes=2)
    (second, first)[there].kill()
    started = time.monotonic()
    (code, _, stderr) = end([(first, second)[there]], seconds=60)[0]
    end([(second, first)[there]])
    assert code == 1 and time.monotonic() - started < 40
    assert "error: after 3 s" in stderr and "127.0.0.1:" in stderr
    assert "Check failure" not in stderr


def test_a_port_that_is_taken():
    import socket

    with socket.create_server(("", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        children = start("join", 30, processes=2, JAX_COORDINATOR_ADDRESS=address)
        children[1].kill()
        (code, _, stderr), _ = end(children)
    assert code == 1 and "Address already in use" in stderr and "JAX_COORDINATOR_ADDRESS" in stderr


def test_a_workdir_that_not_all_share(tmp_path):
    there = tmp_path / "config.json"
    there.touch()
    children = start("join", 60, there, tmp_path / "no" / "config.json", processes=2)
    # The first waits for nothing here; it is the second that must say what is wrong.
    _, (code, _, stderr) = end(children)
    assert code == 1 and f"error: {tmp_path / 'no' / 'config.json'}" in stderr, stderr


def test_two_tasks_of_a_slurm_step_join():
    """JAX's own reading of Slurm's variables; the port is made of the number of the job."""
    for _ in range(100):
        if (port := free_port()) >= 65535 - 2**12 + 1:
            break
    else:
        port = 65000
    variables = {
        "SLURM_JOB_ID": str(port - (65535 - 2**12 + 1)), "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1",
    }  # fmt: skip
    children = [
        start("join", 60, **variables, SLURM_PROCID=str(i), SLURM_LOCALID=str(i))[0]
        for i in range(2)
    ]
    outputs = end(children)
    assert [code for code, _, _ in outputs] == [0, 0], outputs
    assert [out.splitlines()[-1] for _, out, _ in outputs] == ["True 0 2", "True 1 2"]


def test_a_cluster_that_jax_does_not_know():
    ((code, _, stderr),) = end(start("join", 30, JAX_NUM_PROCESSES="auto"))
    assert code == 1 and "error: JAX finds no cluster" in stderr
