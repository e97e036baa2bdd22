"""What is damaged, of another version or in the wrong place is refused by one clear line."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from children import PROGRAMS, ROOT, environment
from dataset_fixture import make_config
from small_state import assert_equal, make_state, restore, save

from rxrx1_jax.data.splits import Split
from rxrx1_jax.training import checkpoint, run_dir, setup


@pytest.fixture
def copy(tiny, tmp_path):
    """A copy of the dataset."""
    path = tmp_path / "data" / "rxrx1" / "tiny" / tiny.dataset.name
    shutil.copytree(tiny.dataset, path)
    return path


def test_a_run_keeps_to_its_data_and_split(copy, tmp_path):
    """Whatever the version of the dataset: the records may be the same."""
    config = make_config(copy)
    ready = setup.prepare(config)
    sites, classes = ready.images.sites, ready.vocabulary.classes
    data = run_dir.describe_data(ready.images.about["version"], sites, ready.split, classes)
    run_dir.open_run(tmp_path / "run", config, data)
    run_dir.open_run(tmp_path / "run", config, data | {"version": "1.2.0"})
    for field in ("data", "split", "order"):
        with pytest.raises(run_dir.RunError, match=f"dataset.{field}=.*this one has 'x'"):
            run_dir.open_run(tmp_path / "run", config, data | {field: "x"})


def test_the_order_of_records_binds_a_run_until_it_is_complete(copy, tmp_path):
    config = make_config(copy)
    ready = setup.prepare(config)
    sites, classes, none = ready.images.sites, ready.vocabulary.classes, np.zeros(0, np.int64)
    split = Split(none, none, none, none, {})
    data, other = (run_dir.describe_data("1", s, split, classes) for s in (sites, sites[::-1]))
    assert data["data"] == other["data"]
    run_dir.open_run(tmp_path / "run", config, data)
    with pytest.raises(run_dir.RunError, match="dataset.order"):
        run_dir.open_run(tmp_path / "run", config, other)
    (tmp_path / "run" / "results.json").write_text('{"step": 8, "total_steps": 8}')
    run_dir.open_run(tmp_path / "run", config, other)


# Run directories


def open_run(workdir, **changes):
    config = make_config(Path("data/rxrx1/tiny/1.0.0"))
    run_dir.open_run(workdir, config, {"version": "1", "data_fingerprint": "a"})
    return config


def test_settings_of_another_version_of_the_program(tmp_path):
    open_run(tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    settings = json.loads(path.read_text())
    del settings["optim"]["schedule"]
    path.write_text(json.dumps(settings))
    open_run(tmp_path / "run")  # what it lacks means what was done before
    settings["optim"] |= {"betas": [0.9, 0.99]}
    path.write_text(json.dumps(settings))
    with pytest.raises(run_dir.RunError, match="newer.*optim.betas"):
        open_run(tmp_path / "run")
    del settings["optim"]["betas"], settings["made_with"]  # as version 0.2 wrote it
    path.write_text(json.dumps(settings))
    with pytest.raises(run_dir.RunError, match="0.2"):
        run_dir.check_workdir(tmp_path / "run")  # of training, which drew sites in another order


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"optim": 3}'])
def test_settings_that_are_none(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(run_dir.RunError, match="config.json: "):
        open_run(tmp_path)


def test_a_run_that_was_killed_while_it_opened_goes_on(tmp_path):
    for name in (".lock", "environment.json", ".config.json.0a1b.tmp"):
        (tmp_path / name).write_text("")
    open_run(tmp_path)
    assert (tmp_path / "config.json").exists()


def test_workdirs_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(run_dir.RunError, match="file is a file"):
            run_dir.check_workdir(path)
    run_dir.check_workdir(tmp_path / "new" / "run")
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    for path in (tmp_path / "new" / "run", tmp_path):
        with pytest.raises(run_dir.RunError, match="cannot be written.*--workdir"):
            run_dir.check_workdir(path)
    monkeypatch.undo()

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(run_dir.RunError, match="Permission denied.*--workdir"):
        open_run(tmp_path / "run")
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(run_dir.RunError, match="cannot be written .Permission denied"):
        with run_dir.hold(tmp_path):
            pass


# Checkpoints


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(workdir with the checkpoints of steps 7 and 8, state)."""
    workdir = tmp_path_factory.mktemp("saved")
    _, state = make_state()
    with checkpoint.manager(workdir, keep=2) as checkpoints:
        for step in (7, 8):
            save(checkpoints, step, state, [{"loss": 0.5}], 1.0 / step)
        checkpoint.wait(checkpoints)
    return workdir, state


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("params", lambda x: {**x, "more": {"kernel": jnp.zeros(3)}}, "params/more.*model.name"),
        ("params", lambda x: {**x, "fc": {"bias": jnp.zeros((7, 2)), "kernel": x["fc"]["kernel"]}},
         r"params/fc/bias is \(3,\).*\(7, 2\).*model.head"),
        ("ema_params", lambda x: {"a": jnp.zeros(1)}, "ema_params.*optim.ema_decay"),
        ("opt_state", lambda x: {"m": jnp.zeros(1)}, "opt_state/m.*optim.name"),
        ("loss_state", lambda x: {"q": jnp.zeros(1)}, "loss_state/q.*optim.loss"),
    ],
)  # fmt: skip
def test_a_checkpoint_of_another_model(saved, part, change, said):
    """What differs and what to check are named. The checkpoint is good: nobody may remove it."""
    workdir, state = saved
    with pytest.raises(checkpoint.CheckpointError, match=f"/8: .*{said}") as error:
        restore(workdir, state.replace(**{part: change(getattr(state, part))}))
    for word in ("\n", "remove", "move", "damaged"):
        assert word not in str(error.value)


def damage(folder: Path, how: str) -> None:
    """Changes every file of the arrays; which of them are still in use, TensorStore knows."""
    for path in (folder / "state").glob("**/d/*"):
        data = bytearray(path.read_bytes())
        if how == "flip":
            data[len(data) // 2] ^= 1
        path.write_bytes(data[: len(data) // 2] if how == "cut" else data)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of orbax's tasks
@pytest.mark.parametrize("how", ["flip", "cut"])
def test_a_damaged_checkpoint(saved, tmp_path, how):
    workdir, state = saved
    run_copy = tmp_path / "run"
    shutil.copytree(workdir, run_copy)
    damage(run_copy / "checkpoints" / "8", how)
    for resume in (True, False):
        with pytest.raises(checkpoint.CheckpointError, match="checkpoints/8: .* move this folder"):
            restore(run_copy, state, resume)
    shutil.move(run_copy / "checkpoints" / "8", tmp_path / "8")  # as the message says
    restored, recent = restore(run_copy, state)
    assert_equal(restored, state)
    assert recent == [{"loss": 0.5}]


def test_arrays_that_changed_without_a_word(saved, monkeypatch):
    """As TensorStore returned for a changed bit inside a large array: the checksum finds it."""
    workdir, state = saved
    read = checkpoint._read

    def changed(path, reading):
        found = read(path, reading)
        if hasattr(found, "keys") and "state" in found.keys():
            params = found["state"]["params"]
            kernel = params["fc"]["kernel"]
            flipped = (kernel.view(jnp.uint32) ^ jnp.uint32(1)).view(jnp.float32)
            one = kernel.at[0, 0].set(flipped[0, 0])
            params = params | {"fc": params["fc"] | {"kernel": one}}
            return {"state": found["state"] | {"params": params}}
        return found

    monkeypatch.setattr(checkpoint, "_read", changed)
    with pytest.raises(checkpoint.CheckpointError, match="damaged.* params "):
        restore(workdir, state)


def test_half_written_checkpoints_are_not_picked_up(saved, tmp_path):
    """What a crash leaves while a checkpoint is written, and while an old one is removed."""
    workdir, state = saved
    folder = tmp_path / "run" / "checkpoints"
    shutil.copytree(workdir, tmp_path / "run")
    shutil.copytree(folder / "8", folder / "9.orbax-checkpoint-tmp-3")
    shutil.rmtree(folder / "7" / "state")
    with checkpoint.manager(tmp_path / "run", keep=1) as checkpoints:
        assert checkpoints.latest_step() == 8
        assert checkpoint.find(tmp_path / "run").name == "8"
        assert_equal(restore(tmp_path / "run", state)[0], state.replace(step=jnp.int32(8)))
        save(checkpoints, 9, state, [], 2.0)
        checkpoint.wait(checkpoints)
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["9"]


def test_the_best_and_the_last_are_kept(tmp_path):
    _, state = make_state()
    with checkpoint.manager(tmp_path, keep=2) as checkpoints:
        for step, score in ((1, 0.5), (2, 0.9), (3, 0.8), (4, None), (5, 0.1), (6, 0.2)):
            other = state.replace(params=jax.tree.map(lambda x, k=step: x * 0 + k, state.params))
            save(checkpoints, step, other, [], score)
        checkpoint.wait(checkpoints)
        assert sorted(checkpoints.all_steps(read=True)) == [2, 5, 6]
    for which, step in (("last", 6), ("best", 2)):
        found, _ = restore(tmp_path, state, False, which)
        assert all((leaf == step).all() for leaf in jax.tree.leaves(found.params))
    with pytest.raises(checkpoint.CheckpointError, match="expected one of last, best"):
        checkpoint.find(tmp_path, "newest")


def test_a_state_that_is_not_finite_is_not_saved(saved, tmp_path):
    _, state = saved
    bad = state.replace(batch_stats=jax.tree.map(lambda x: x * jnp.inf, state.batch_stats))
    with checkpoint.manager(tmp_path, keep=2) as checkpoints:
        save(checkpoints, 1, state)
        with pytest.raises(FloatingPointError, match="step 2: batch_stats have values that"):
            save(checkpoints, 2, bad)
        checkpoint.wait(checkpoints)
        assert list(checkpoints.all_steps(read=True)) == [1]


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path):
    """On a file system of 4 MB, mounted for one process; skipped where that is not allowed."""
    mount = f"mount -t tmpfs -o size=4m none {tmp_path}"
    probe = ["unshare", "--mount", "sh", "-c", f"mount -t tmpfs none {tmp_path}"]
    if not shutil.which("unshare") or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    inside = f"{mount} && exec {sys.executable} {PROGRAMS / 'full_disk.py'} {tmp_path}"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", inside],
        cwd=ROOT, env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["steps"] == [1]
    assert "step 1" in found["refused"] and "0.0 MB" in found["refused"]
