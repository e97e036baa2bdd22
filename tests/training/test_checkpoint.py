"""Checkpoints: bit-equal restoring, other classes refused, loading from other projects."""

import jax
import numpy as np
import pytest
from small_state import VOCABULARY, abstract, assert_equal, make_state, restore, save

from rxrx1_jax.data.info import Info
from rxrx1_jax.training import checkpoint


def test_restoring_gives_the_same_bits(tmp_path):
    _, state = make_state(ema=True)
    with checkpoint.manager(tmp_path, keep=2) as checkpoints:
        save(checkpoints, 7, state, [{"loss": 0.5}])
    _, other = make_state(ema=True, seed=1)
    restored, recent = restore(tmp_path, other)
    assert_equal(state, restored)
    assert jax.tree.structure(state) == jax.tree.structure(restored) and recent == [{"loss": 0.5}]
    evaluated, _ = restore(tmp_path, other, resume=False)
    assert_equal(state.replace(opt_state=(), loss_state=()), evaluated)


def test_it_says_what_it_is_of(tmp_path):
    with checkpoint.manager(tmp_path, keep=2) as checkpoints:
        save(checkpoints, 7, make_state()[1])
    saved = checkpoint.describe(checkpoint.find(tmp_path))
    assert saved.vocabulary.to_json() == VOCABULARY.to_json()
    assert saved.classes.tolist() == [3, 5, 8] and saved.classes.dtype == np.int32
    assert saved.fingerprint == {"data": "1", "split": "2"} and saved.recent == []


def test_reading_changes_and_says_nothing(tmp_path, caplog, recwarn):
    _, state = make_state(ema=True)
    with checkpoint.manager(tmp_path, keep=2) as checkpoints:
        save(checkpoints, 7, state)
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    caplog.clear()
    saved = checkpoint.describe(checkpoint.find(tmp_path, "last"))
    checkpoint.restore(saved, abstract(state), True)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    assert_equal(checkpoint.restore(saved, checkpoint.abstract(saved, place), False).params,
                 state.params)  # fmt: skip
    assert before == sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    assert [r.message for r in caplog.records if r.levelname != "INFO"] == []
    assert [str(w.message) for w in recwarn] == []


def test_no_checkpoint_is_none(tmp_path):
    for which in checkpoint.WHICH:
        assert checkpoint.find(tmp_path, which) is None
    with checkpoint.manager(tmp_path, keep=2) as checkpoints:
        save(checkpoints, 7, make_state()[1])
    assert checkpoint.find(tmp_path, "best") is None  # none has a score


def test_only_the_last_are_kept(tmp_path):
    _, state = make_state()
    with checkpoint.manager(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3):
            save(checkpoints, step, state)
        checkpoints.wait_until_finished()
        assert sorted(checkpoints.all_steps(read=True)) == [2, 3]


def test_other_names_and_classes_are_refused(tmp_path):
    with checkpoint.manager(tmp_path, keep=2) as checkpoints:
        save(checkpoints, 7, make_state()[1])
    saved = checkpoint.describe(checkpoint.find(tmp_path))
    checkpoint.check_resumable(saved, VOCABULARY)
    for other, said in (
        (VOCABULARY._replace(classes=np.arange(4)), r"3 siRNA classes.* 4 "),
        (VOCABULARY._replace(classes=VOCABULARY.classes + 1), "other ones"),
        (VOCABULARY._replace(experiments=("HUVEC-01",)), "2 experiments.* of 1"),
    ):
        with pytest.raises(checkpoint.CheckpointError, match=said):
            checkpoint.check_resumable(saved, other)


@pytest.mark.devices
def test_without_a_model_the_parameters_are_those_that_were_saved(tmp_path):
    model, state = make_state()
    with checkpoint.manager(tmp_path, keep=2) as checkpoints:
        save(checkpoints, 7, state)
    saved = checkpoint.describe(checkpoint.find(tmp_path))
    place = jax.sharding.SingleDeviceSharding(jax.devices()[3])
    found = checkpoint.restore(saved, checkpoint.abstract(saved, place), False)
    assert_equal(found, state.replace(opt_state=(), loss_state=()))
    assert found.params["fc"]["kernel"].devices() == {jax.devices()[3]}
    images = jax.device_put(np.ones((2, 16, 16, 6), np.float32), place)
    variables = {"params": found.params, "batch_stats": found.batch_stats}
    assert model.apply(variables, images, {}, Info(VOCABULARY)).shape == (2, 3)
