"""Checkpoints: bit-equal restoring, other classes refused, loading from other projects."""

import jax
import numpy as np
import pytest
from example_info import make_info
from small_state import CLASSES, make_state

from rxrx1_jax.training import checkpoint


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_restoring_gives_the_same_bits(tmp_path):
    _, saved = make_state(ema=True)
    with checkpoint.manager(tmp_path, keep=2) as checkpoints:
        checkpoint.save(checkpoints, 7, saved, CLASSES)
    _, other = make_state(ema=True, seed=1)
    with checkpoint.manager(tmp_path, keep=2) as checkpoints:
        restored, _ = checkpoint.restore(checkpoints, other, CLASSES)
    assert_equal(saved, restored)


def test_no_checkpoint_keeps_the_state(tmp_path):
    _, state = make_state()
    with checkpoint.manager(tmp_path, keep=2) as checkpoints:
        restored, recent = checkpoint.restore(checkpoints, state, CLASSES)
    assert restored is state and recent == []


def test_only_the_last_are_kept(tmp_path):
    _, state = make_state()
    with checkpoint.manager(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoint.save(checkpoints, step, state, CLASSES)
        checkpoints.wait_until_finished()
        assert sorted(checkpoints.all_steps(read=True)) == [2, 3]


def test_other_classes_are_refused(tmp_path):
    _, state = make_state()
    with checkpoint.manager(tmp_path, keep=2) as checkpoints:
        checkpoint.save(checkpoints, 7, state, CLASSES)
        checkpoints.wait_until_finished()
        with pytest.raises(checkpoint.CheckpointError, match=r"trained on 3 siRNA classes.* 4 "):
            checkpoint.restore(checkpoints, state, np.arange(4))
        with pytest.raises(checkpoint.CheckpointError, match="other siRNAs"):
            checkpoint.restore(checkpoints, state, CLASSES + 1)


@pytest.mark.parametrize("ema", [False, True])
def test_load_params_gives_the_evaluated_network(tmp_path, ema):
    model, state = make_state(ema)
    if ema:
        state = state.replace(
            ema_params=jax.tree.map(lambda x: x + 1, state.params),
            ema_batch_stats=jax.tree.map(lambda x: x + 2, state.batch_stats),
        )
    with checkpoint.manager(tmp_path, keep=2) as checkpoints:
        checkpoint.save(checkpoints, 7, state, CLASSES)
    variables, classes = checkpoint.load_params(tmp_path)
    assert_equal(variables["params"], state.ema_params if ema else state.params)
    assert_equal(variables["batch_stats"], state.ema_batch_stats if ema else state.batch_stats)
    np.testing.assert_array_equal(classes, CLASSES)
    images = jax.random.normal(jax.random.key(0), (2, 16, 16, 6))
    assert model.apply(variables, images, {}, make_info(3)).shape == (2, 3)


def test_load_params_without_checkpoint(tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint found"):
        checkpoint.load_params(tmp_path)
