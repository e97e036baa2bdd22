"""Orientation, crop and further augmentations of a stream, against NumPy."""

import itertools
from collections import Counter
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from screens import SIZE
from stream_batches import (
    assert_same,
    batches,
    evaluate,
    expected_image,
    make,
    orientations,
    train,
    which,
)  # fmt: skip
from stream_batches import images as images

from rxrx1_jax.data import samplers
from rxrx1_jax.data.stream import Augmentation


def test_all_eight_orientations_and_no_other(images):
    stream = make(images)
    expected = {i: orientations(expected_image(images, i)) for i in stream.split.train}
    seen, per_site = Counter(), {}
    for batch in train(stream, 80, 8):
        for image, index in zip(batch["image"], batch["site_index"].tolist(), strict=True):
            k = which(image, expected[index])
            seen[k] += 1
            per_site.setdefault(index, set()).add(k)
    assert len(seen) == 8 and min(seen.values()) > 45 and max(seen.values()) < 120  # 80 +- 8.4
    assert all(len(kinds) > 5 for kinds in per_site.values())  # 30 draws each: not fixed per site


def test_an_orientation_belongs_to_seed_epoch_and_site(images):
    """Whatever the batch: another order of the same epochs gives the same images."""
    stream = make(images)
    rows = stream.split.train

    def drawn(batch_size, seed=0):
        order = samplers.shuffled()(images.sites, stream.split, batch_size, 0)
        own = replace(stream, augment=Augmentation(seed))
        steps = 2 * len(rows) // batch_size
        found = {}
        for step, draw in enumerate(own.draws(order, rows, 0, steps)):
            (batch,) = batches(own, [draw], own.store(rows), True)
            for k, site in enumerate(batch["site_index"].tolist()):
                found[site, int(order(step)[1][k])] = batch["image"][k].tobytes()
        return found

    one, two, other = drawn(3), drawn(7), drawn(7, seed=1)
    shared = one.keys() & two.keys()
    assert len(shared) > 1.5 * len(rows) and all(one[key] == two[key] for key in shared)
    assert sum(two[key] != other[key] for key in two) > 0.6 * len(two)


def test_random_crop_is_a_window_of_the_image(images):
    crop, offsets = 13, SIZE - 13 + 1
    corners = Counter()
    for batch in train(make(images, augment=Augmentation(crop=crop)), 60):
        for image, index in zip(batch["image"], batch["site_index"], strict=True):
            whole = expected_image(images, index)
            windows = [
                turned
                for top, left in itertools.product(range(offsets), repeat=2)
                for turned in orientations(whole[top : top + crop, left : left + crop])
            ]
            corners[which(image, windows) // 8] += 1
    assert len(corners) == offsets**2 and max(corners.values()) < 40  # 240 draws, 15 each


def test_evaluation_takes_the_centre(images):
    rows = make(images).split.test[:8]
    (batch,) = evaluate(make(images, augment=Augmentation(crop=10)), rows)
    for image, index in zip(batch["image"], batch["site_index"], strict=True):
        np.testing.assert_allclose(
            image, expected_image(images, index)[3:13, 3:13], rtol=1e-4, atol=1e-4
        )
    whole = evaluate(make(images, augment=Augmentation(crop=SIZE)), rows)[0]
    assert_same(whole, evaluate(make(images), rows)[0])


def further(scale):
    """An augmentation of a user's: multiplies by a draw, `scale` and the progress."""

    def augment(keys, batch, info):
        assert info.train and info.vocabulary.cell_types == ("HUVEC", "U2OS")
        factor = jax.vmap(jax.random.uniform)(keys) * scale * info.progress
        return {**batch, "image": batch["image"] * factor[:, None, None, None]}

    return augment


def test_further_augmentations_follow_in_turn_and_know_the_progress(images):
    stream = make(images, augment=Augmentation(orient=False, further=(further(2.0), further(3.0))))
    rows = stream.split.train
    order = samplers.shuffled()(images.sites, stream.split, 4, 0)
    (draw,) = stream.draws(order, rows, 0, 1)
    run = jax.jit(lambda *given: stream.batch(*given[:2], 0, True, given[2]))
    half = run(stream.store(rows), draw, jnp.float32(0.5))["image"]
    index, epoch, _ = order(0)
    for k, site in enumerate(index):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), epoch[k]), site)
        draws = [float(jax.random.uniform(jax.random.fold_in(key, n))) for n in (2, 3)]
        expected = expected_image(images, site) * np.prod(draws) * 2 * 3 * 0.5**2
        np.testing.assert_allclose(half[k], expected, rtol=1e-4, atol=1e-4)
    assert_same(evaluate(stream, rows[:4], 4)[0], evaluate(make(images), rows[:4], 4)[0])
