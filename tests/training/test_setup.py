"""A set-up: what it refuses before a training begins, and what it holds."""

import jax
import numpy as np
import pytest
from screens import tiny_config, tiny_images

from rxrx1_jax.training import run_dir, setup, train
from rxrx1_jax.training.run import Run


@pytest.fixture(scope="module")
def images():
    return tiny_images()


@pytest.mark.devices
@pytest.mark.parametrize("name", ["cutmix", "mixup"])
def test_mixing_needs_the_whole_batch(images, name):
    config = tiny_config(train__parallelism="pmap", data__augmentation=name)
    with pytest.raises(run_dir.RunError, match=f"data.augmentation='{name}'.* pmap"):
        setup.prepare(config, images)


def test_runs_that_cannot_work_are_refused_before_training(images, tmp_path):
    for changes, message in [
        ({"data__crop": 17}, r"data.crop 17.*16"),
        ({"optim__batch_size": 24}, r"batch_size=24.*only 21 training sites"),
        ({"data__fold": 1}, r"fold 1 of the official split"),
        ({"data__cell_type": "CHO"}, r"cell type 'CHO'.*HUVEC"),
    ]:
        with pytest.raises(ValueError, match=message):
            train.train_and_evaluate(tiny_config(**changes), tmp_path / "run", images)
        assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="build"):
        train.train_and_evaluate(tiny_config(data__name="rxrx1/native"), tmp_path / "run")
    with pytest.raises(run_dir.RunError, match="config.json"):
        Run.open(tmp_path / "run")


def test_a_set_up_holds_no_state(images):
    """The shapes are known; a state is made when it is asked for, the same each time."""
    ready = setup.prepare(tiny_config(), images)
    assert not [x for x in jax.tree.leaves(vars(ready)) if isinstance(x, jax.Array)]
    one, two = ready.init(), ready.init()
    jax.tree.map(np.testing.assert_array_equal, one, two)
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), (one, ready.abstract_state))
    assert shapes[0] == shapes[1]
