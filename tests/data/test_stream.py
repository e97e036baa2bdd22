"""Batches against a plain reading of the pixels with NumPy."""

import itertools
import threading
from collections import Counter
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from screens import CHANNELS, SIZE, tiny_images
from screens import read as read
from stream_batches import evaluate, expected_image, make, train
from stream_batches import images as images

from rxrx1_jax.config import FIELDS
from rxrx1_jax.data import reading, samplers
from rxrx1_jax.data.images import DatasetError, InMemory, Vocabulary
from rxrx1_jax.data.reading import one_pass
from rxrx1_jax.data.stream import Augmentation, Host


@pytest.mark.parametrize("kind", FIELDS["data.normalisation"].valid)
def test_evaluation_values_order_and_padding(images, kind):
    rows = np.random.default_rng(0).permutation(len(images))[:21]  # any site, controls too
    found = evaluate(make(images, kind), rows)
    assert [batch["image"].shape for batch in found] == [(8, SIZE, SIZE, CHANNELS)] * 3
    joined = {name: np.concatenate([b[name] for b in found]) for name in found[0]}
    assert joined["mask"].tolist() == [True] * 21 + [False] * 3
    assert joined["site_index"].tolist() == rows.tolist() + [-1] * 3
    for k, row in enumerate(rows):
        np.testing.assert_allclose(
            joined["image"][k], expected_image(images, row, kind), rtol=1e-4, atol=1e-4
        )
    assert np.isfinite(joined["image"]).all()


def test_the_arithmetic_is_that_of_float32(images):
    """XLA multiplies by the reciprocal of the std: one rounding more than NumPy's division."""
    stream = make(images)
    rows = np.arange(8)
    (batch,) = evaluate(stream, rows)
    names = ("control_mean", "control_std")
    mean, std = (images.sites[name][rows][:, :, None, None] for name in names)
    expected = (images.planes[rows].astype(np.float32) - mean) / std
    np.testing.assert_array_max_ulp(batch["image"], np.moveaxis(expected, 1, -1), maxulp=2)


def test_fields_of_a_batch(images):
    (batch,) = evaluate(make(images), np.arange(len(images)), len(images))
    experiments, cell_types = ["HUVEC-01", "HUVEC-02", "U2OS-01"], ["HUVEC", "U2OS"]
    labels = [0, 1, 1107]  # the siRNAs of the tiny release
    for k, site in enumerate(images.sites):
        sirna = site["sirna_id"]
        assert batch["label"][k] == (labels.index(sirna) if sirna in labels else -1)
        assert experiments[batch["experiment"][k]] == site["experiment"]
        assert cell_types[batch["cell_type"][k]] == site["cell_type"]
        assert batch["plate"][k] == site["plate"]
    integers = ("label", "experiment", "plate", "cell_type", "site_index")
    assert batch["mask"].all() and {batch[name].dtype for name in integers} == {np.dtype("int32")}
    assert (batch["image"].dtype, batch["mask"].dtype) == (np.float32, np.bool_)
    assert set(batch) == {"image", "mask", *integers}


def test_codes_are_those_of_the_vocabulary(images):
    """Of another dataset a name keeps its code, and an unknown one has none."""
    own = make(images)
    experiments = ("HUVEC-02", "RPE-07", "U2OS-01")
    vocabulary = Vocabulary(("RPE", "U2OS"), experiments, np.array([1, 5], np.int32))
    (batch,) = evaluate(replace(own, vocabulary=vocabulary), np.arange(len(images)), len(images))
    codes = {"cell_type": {"U2OS": 1}, "experiment": {"HUVEC-02": 0, "U2OS-01": 2}}
    for field, known in codes.items():
        expected = [known.get(name, -1) for name in images.sites[field].tolist()]
        assert batch[field].tolist() == expected
    assert batch["label"].tolist() == [{1: 0}.get(x, -1) for x in images.sites["sirna_id"].tolist()]


def test_no_implicit_transfer(images):
    stream = make(images, "site")
    order = samplers.shuffled()(images.sites, stream.split, 4, 0)
    run = jax.jit(lambda store, draw: stream.batch(store, draw, 0, True))
    with jax.transfer_guard("disallow"):
        store = stream.store(stream.split.train)
        run(store, next(stream.draws(order, stream.split.train, 0, 1)))["image"].block_until_ready()


def test_draws_kept_are_never_overwritten(images):
    """On the CPU a device array may alias the host's: a reused buffer would show here."""
    stream = make(images)
    order = samplers.shuffled()(images.sites, stream.split, 4, 0)
    kept = list(stream.draws(order, stream.split.train, 0, 20))
    for step, draw in enumerate(kept):
        np.testing.assert_array_equal(draw.planes[0], images.planes[order(step)[0]])
        assert int(draw.count) == 1


def test_bfloat16_is_rounded_last(images):
    (full,), (half,) = train(make(images), 1), train(make(images, dtype=jnp.bfloat16), 1)
    assert half["image"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(half["image"], full["image"].astype(jnp.bfloat16))


ERRORS = {
    "batch_size 0": lambda stream: one_pass(np.arange(3), 0, Host()),
    "5 rows.* 2 hosts": lambda stream: train(stream, 1, 5, number=0, count=2),
    "batch_size 5.* 2 hosts": lambda stream: evaluate(stream, np.arange(5), 5, number=0, count=2),
    "host 2 of 2": lambda stream: train(stream, 1, number=2, count=2),
    "steps -1 to 3": lambda stream: train(stream, 4, start=-1),
    "at least one": lambda stream: stream.store(np.array([], np.int64)),
    "crop 17.* to 16": lambda stream: replace(stream, augment=Augmentation(crop=17)),
    "crop -1": lambda stream: replace(stream, augment=Augmentation(crop=-1)),
    "16x12.*square": lambda stream: replace(stream, images=ones((2, 6, 16, 12))),
    "rows 3 to 61: .* 0 to 60": lambda stream: stream.store(np.array([3, 61])),
    "rows -1 to 3": lambda stream: stream.store(np.array([-1, 3])),
    "rows 3 to 4": lambda stream: stream.store(np.array([4, 3])),
    "rows 3 to 3": lambda stream: stream.store(np.array([3, 3])),
}


def ones(shape, kind=InMemory):
    return kind(np.ones(shape, np.uint8), control_mean=np.ones(6), control_std=np.ones(6))


@pytest.mark.parametrize("named", ERRORS)
def test_errors(images, named):
    with pytest.raises(ValueError, match=named):
        ERRORS[named](make(images))


class Damaged(InMemory):
    def __getitem__(self, row):
        raise DatasetError("damaged")


def test_a_damaged_image_reaches_the_consumer(images):
    with pytest.raises(DatasetError, match="damaged"):
        evaluate(replace(make(images), images=ones(images.planes.shape, Damaged)), np.arange(4))


def test_nothing_is_read_beyond_the_last_step(images, read):
    found = train(make(images), 5, start=2, prefetch=3)
    assert read == Counter(int(i) for batch in found for i in batch["site_index"])
    assert train(make(images), 0, start=3) == []


@pytest.mark.parametrize("orient", [False, True])
def test_device_half_holds_the_floats_once(orient):
    """XLA's CPU backend makes a second copy of them unless it fuses the transposition."""
    n, side = 4, 64
    images = ones((n, 6, side, side))
    stream = replace(make(tiny_images()), images=images, augment=Augmentation(orient=orient))
    order, _ = one_pass(np.arange(n), n, Host())
    (draw,) = stream.draws(order, np.arange(n), 0, 1)
    batch = jax.jit(lambda store, draw: stream.batch(store, draw, 0, True)["image"])
    memory = batch.lower(stream.store(np.arange(n)), draw).compile().memory_analysis()
    assert memory.output_size_in_bytes == 4 * images.planes.size
    assert memory.temp_size_in_bytes < memory.output_size_in_bytes / 16


def test_planes_lie_where_a_device_can_take_them_over(images):
    choices = [(np.array([[k, -1, k + 1]]), k) for k in range(5)]
    kept = list(reading.planes(images, iter(choices), 2, 2))
    for (planes, k), (rows, number) in zip(kept, choices, strict=True):
        assert planes.ctypes.data % 64 == 0 and k == number
        assert planes.shape == (1, 3, *images.image_shape) and not planes[0, 1].any()
        np.testing.assert_array_equal(planes[0, ::2], images.planes[rows[0, ::2]])


def test_an_iterator_left_early_stops_reading(images):
    choices = ((np.arange(4), None) for _ in itertools.count())
    before = {thread for thread in threading.enumerate() if thread.name.startswith("read")}
    read = reading.planes(images, choices, 3, 4)
    next(read)
    mine = {t for t in threading.enumerate() if t.name.startswith("read")} - before
    assert 1 <= len(mine) <= 3
    read.close()
    for thread in mine:
        thread.join(10)
        assert not thread.is_alive()
