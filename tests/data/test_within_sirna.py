"""Mixing within a siRNA (LISA), and channels that are left out, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from screens import tiny_config, tiny_images

from rxrx1_jax.data.augmentations import channel_dropout, cutmix, mixup
from rxrx1_jax.data.images import Vocabulary
from rxrx1_jax.data.info import Info
from rxrx1_jax.training import setup

ROWS = 48
INFO = Info(Vocabulary((), (), np.arange(3)), train=True)


def batch_of(seed=0):
    rng = np.random.default_rng(seed)
    columns = {
        "label": rng.integers(0, 4, ROWS), "cell_type": rng.integers(0, 2, ROWS),
        "experiment": rng.integers(0, 3, ROWS),
    }  # fmt: skip
    columns["label"][:2] = 7, 8  # nobody else's
    image = rng.normal(size=(ROWS, 8, 8, 6)).astype(np.float32)
    mask = rng.random(ROWS) < 0.8
    given = {name: jnp.asarray(column, jnp.int32) for name, column in columns.items()}
    return given | {"image": jnp.asarray(image), "mask": jnp.asarray(mask)}


def able_by_hand(batch):
    """For each row, those that it may be mixed with."""
    given = {name: np.asarray(column) for name, column in batch.items()}
    return [
        [
            j for j in range(ROWS)
            if given["mask"][i] and given["mask"][j] and given["label"][i] == given["label"][j]
            and given["cell_type"][i] == given["cell_type"][j]
            and given["experiment"][i] != given["experiment"][j]
        ]
        for i in range(ROWS)
    ]  # fmt: skip


@pytest.mark.parametrize("factory", [mixup, cutmix])
def test_partners_are_of_the_same_sirna_in_another_experiment(factory):
    batch = batch_of()
    able = able_by_hand(batch)
    alone = [i for i in range(ROWS) if not able[i]]
    augment = jax.jit(lambda keys: factory(2.0, within_sirna=True)(keys, batch, INFO))
    image, drawn = np.asarray(batch["image"], np.float64), {i: [] for i in range(ROWS)}
    for seed in range(40):
        keys = jax.random.split(jax.random.key(seed), ROWS)
        result = jax.tree.map(np.asarray, augment(keys))
        np.testing.assert_array_equal(result["other_label"], batch["label"])
        np.testing.assert_array_equal(result["image"][alone], batch["image"][np.array(alone)])
        for i in set(range(ROWS)) - set(alone):
            # The partner is who explains the pixels that changed.
            changed = result["image"][i] != np.asarray(batch["image"][i])
            if not changed.any():
                continue
            share = result["share"][i]
            mixed = [
                share * image[i] + (1 - share) * image[j] if factory is mixup else image[j]
                for j in able[i]
            ]
            fits = [np.abs(result["image"][i] - m)[changed].max() < 1e-5 for m in mixed]
            assert sum(fits) == 1
            drawn[i].append(able[i][fits.index(True)])
    assert {0, 1} <= set(alone) and len(alone) < ROWS / 2
    for i in set(range(ROWS)) - set(alone):
        counts = np.array([drawn[i].count(j) for j in able[i]])
        expected = len(drawn[i]) / len(able[i])
        assert (np.abs(counts - expected) < 5 * expected**0.5).all()


def test_with_pairs_every_row_has_a_partner():
    config = tiny_config(
        data__sampler="cross_experiment_pairs", data__augment=False, data__protocol="random_well",
        data__augmentation="mixup(alpha=2.0, within_sirna=True)",
    )  # fmt: skip
    sites = tiny_images().sites
    names = np.char.replace(sites["experiment"], "U2OS-01", "HUVEC-03")
    images = tiny_images(cell_type=np.full(len(sites), "HUVEC"), experiment=names)
    batch = setup.prepare(config, images).train_batch(0)
    plain = setup.prepare(tiny_config(
        data__sampler="cross_experiment_pairs", data__augment=False, data__protocol="random_well",
    ), images).train_batch(0)  # fmt: skip
    np.testing.assert_array_equal(batch["label"], batch["other_label"])
    assert (np.asarray(batch["image"]) != np.asarray(plain["image"])).any((1, 2, 3)).all()


@pytest.mark.parametrize("probability", [0.0, 0.4, 1.0])
def test_channel_dropout(probability):
    rows, channels = 4000, 6
    image = jnp.full((rows, 2, 2, channels), 3.0, jnp.bfloat16)
    keys = jax.random.split(jax.random.key(0), rows)
    result = jax.jit(channel_dropout(probability), static_argnums=2)(keys, {"image": image}, None)
    found = np.asarray(result["image"], np.float32)
    assert result["image"].dtype == jnp.bfloat16
    gone = (found == 0).all((1, 2))
    np.testing.assert_array_equal(found, np.where(gone[:, None, None], 0, image))
    number = gone.sum(1)
    assert number.max(initial=0) <= 1
    error = (probability * (1 - probability) / rows) ** 0.5
    assert abs(number.mean() - probability) <= 4 * error
    share = probability / channels
    assert (np.abs(gone.mean(0) - share) <= 4 * (share / rows) ** 0.5).all()


@pytest.mark.parametrize("probability", [-0.1, 1.1])
def test_an_impossible_probability_is_refused(probability):
    with pytest.raises(ValueError, match=f"probability {probability}"):
        channel_dropout(probability)
