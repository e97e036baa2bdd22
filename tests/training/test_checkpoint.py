"""Checkpoints: bit-equal restoring; what is damaged or of another run is refused by one line."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_state import VOCABULARY, assert_equal, make_state, restore, save

from rxrx1_jax.training import checkpoint
from rxrx1_jax.training.origin import check_resumable


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(workdir with the checkpoints of steps 7 and 8, state)."""
    workdir = tmp_path_factory.mktemp("saved")
    _, state = make_state(ema=True)
    with checkpoint.manager(workdir, keep=2) as checkpoints:
        for step in (7, 8):
            save(checkpoints, step, state, [{"loss": 0.5}], 1.0 / step)
        checkpoint.wait(checkpoints)
    return workdir, state


def test_restoring_gives_the_same_bits(saved):
    workdir, state = saved
    state = state.replace(step=jnp.int32(8))
    _, other = make_state(ema=True, seed=1)
    restored, recent = restore(workdir, other)
    assert_equal(state, restored)
    assert jax.tree.structure(state) == jax.tree.structure(restored) and recent == [{"loss": 0.5}]
    evaluated, _ = restore(workdir, other, resume=False)
    assert_equal(state.replace(opt_state=(), loss_state=()), evaluated)
    about = checkpoint.describe(checkpoint.find(workdir))
    assert about.vocabulary.to_json() == VOCABULARY.to_json()
    assert about.classes.tolist() == [3, 5, 8] and about.classes.dtype == np.int32
    assert about.fingerprint == {"data": "1", "split": "2"}


def test_no_checkpoint_is_none(tmp_path):
    for which in checkpoint.WHICH:
        assert checkpoint.find(tmp_path, which) is None
    with checkpoint.manager(tmp_path, keep=2) as checkpoints:
        save(checkpoints, 7, make_state()[1])
    assert checkpoint.find(tmp_path, "best") is None  # none has a score


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"classes": np.arange(4)}, r"3 siRNA classes.* 4 "),
        ({"classes": VOCABULARY.classes + 1}, "other ones"),
        ({"experiments": ("HUVEC-01",)}, "2 experiments.* of 1"),
    ],
)
def test_other_names_and_classes_are_refused(saved, changes, said):
    about = checkpoint.describe(checkpoint.find(saved[0]))
    check_resumable(about, VOCABULARY)
    with pytest.raises(checkpoint.CheckpointError, match=said):
        check_resumable(about, VOCABULARY._replace(**changes))


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("params", lambda x: {**x, "more": {"kernel": jnp.zeros(3)}}, "params/more.*model.name"),
        ("params", lambda x: {**x, "fc": {"bias": jnp.zeros((7, 2)), "kernel": x["fc"]["kernel"]}},
         r"params/fc/bias is \(3,\).*\(7, 2\).*model.head"),
        ("ema_params", lambda x: None, "ema_params.*optim.ema_decay"),
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
    with pytest.raises(checkpoint.CheckpointError, match="last, best"):
        checkpoint.find(tmp_path, "newest")


def test_a_state_that_is_not_finite_is_not_saved(saved, tmp_path):
    _, state = saved
    bad = state.replace(batch_stats=jax.tree.map(lambda x: x * jnp.inf, state.batch_stats))
    with checkpoint.manager(tmp_path, keep=2) as checkpoints:
        save(checkpoints, 1, state)
        with pytest.raises(FloatingPointError, match="step 2: batch_stats"):
            save(checkpoints, 2, bad)
        checkpoint.wait(checkpoints)
        assert list(checkpoints.all_steps(read=True)) == [1]
