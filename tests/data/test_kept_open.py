"""A process of many runs opens a dataset once, and reads each of its images once."""

import gc
import shutil
import weakref
from collections import Counter

import jax
import numpy as np
import pytest
from dataset_fixture import make_config

from rxrx1_jax.data import cache, records
from rxrx1_jax.training import setup


@pytest.fixture
def opened(monkeypatch):
    """How often each image has been read of a dataset that is kept open."""
    monkeypatch.setattr(records, "_opened", None)
    records.keep_open()
    count: Counter[int] = Counter()
    fetch = records.Records.__getitem__
    monkeypatch.setattr(
        records.Records, "__getitem__", lambda self, i: (count.update([int(i)]), fetch(self, i))[1]
    )
    return count


def epoch(dataset, where, **changes):
    """The set-up of a run, and the images of its training batches."""
    ready = setup.prepare(make_config(dataset, data__cache=where, **changes))
    return ready, [np.asarray(ready.train_batch(step)["image"]) for step in range(6)]


@pytest.mark.parametrize("where", ["host", "device"])
def test_the_next_run_reads_no_image_again(tiny, opened, where):
    first, images = epoch(tiny.dataset, where)
    once = dict(opened)  # two threads may want an image at the same time, and both read it
    assert once
    again, same = epoch(tiny.dataset, where, optim__learning_rate=0.01)
    jax.tree.map(np.testing.assert_array_equal, same, images)
    assert dict(opened) == once and again.images is first.images
    if where == "device":
        assert again.train_store().planes is first.train_store().planes
    _, others = epoch(tiny.dataset, where, train__seed=3)  # other batches of the same sites
    assert {i: opened[i] for i in once} == once and (np.stack(others) != np.stack(images)).any()
    _, uncached = epoch(tiny.dataset, "none", train__seed=3)
    jax.tree.map(np.testing.assert_array_equal, others, uncached)


def test_the_device_keeps_the_sites_of_a_run_and_the_last_dataset_alone(tiny, opened, tmp_path):
    """Planes of another number of sites would want another program."""
    first, _ = epoch(tiny.dataset, "device")
    planes = first.train_store().planes
    fewer, images = epoch(tiny.dataset, "device", data__fraction=0.5, optim__batch_size=4)
    assert len(fewer.stream.kept) < len(first.stream.kept)
    assert fewer.train_store().planes.shape < planes.shape
    expected = epoch(tiny.dataset, "none", data__fraction=0.5, optim__batch_size=4)[1]
    jax.tree.map(np.testing.assert_array_equal, images, expected)
    other = tmp_path / "other" / "rxrx1" / "tiny" / tiny.dataset.name
    shutil.copytree(tiny.dataset, other)
    assert fewer.images.kept_images["device"]
    gone = weakref.ref(fewer.images)
    del first, fewer, planes
    epoch(other, "none")
    gc.collect()
    assert gone() is None


def test_what_is_kept_already_has_room(tiny, opened, monkeypatch):
    """The first run leaves less memory free; the next one finds the images there."""
    ready, _ = epoch(tiny.dataset, "host")
    size = len(ready.stream.kept) * ready.images[0].nbytes
    held = len(opened) * ready.images[0].nbytes
    monkeypatch.setattr(cache, "free", lambda: [2 * size - held])
    assert cache.choose("auto", ready.images, len(ready.stream.kept)) == "host"
    assert cache.choose("auto", records.Records(tiny.dataset), len(ready.stream.kept)) == "none"


def test_elsewhere_each_opening_is_of_its_own(tiny):
    one, two = (records.open_images(tiny.dataset.parents[2], "rxrx1/tiny") for _ in range(2))
    assert one is not two and one.kept_images == {}
