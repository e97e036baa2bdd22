"""Streams of the tiny screen, their batches, and the same by a plain reading of the pixels."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from screens import CHANNELS, tiny_images

from rxrx1_jax.data import normalisation, samplers
from rxrx1_jax.data.images import InMemory, Vocabulary
from rxrx1_jax.data.reading import one_pass
from rxrx1_jax.data.splits import classes_of, make_split
from rxrx1_jax.data.stream import Host, Stream


@pytest.fixture(scope="module")
def images() -> InMemory:
    return tiny_images()


def make(images, kind="plate_control", host=None, **changes) -> Stream:
    vocabulary = Vocabulary.of(images.sites, classes_of(images.sites, "official"))
    return Stream(
        images, make_split(images.sites, "official"), vocabulary, getattr(normalisation, kind)(),
        host=host or Host(), **changes,
    )  # fmt: skip


PROGRAMS: dict = {}  # what the device half depends on -> compiled


def batches(stream, draws, store, train):
    """The device half alone, in one program per batch; NumPy arrays."""
    key = stream.augment, stream.dtype, train
    if key not in PROGRAMS:
        PROGRAMS[key] = jax.jit(lambda store, draw: stream.batch(store, draw, 0, train))
    return [jax.tree.map(np.asarray, PROGRAMS[key](store, draw)) for draw in draws]


def train(stream, n, batch_size=4, start=0, seed=0, **host):
    stream = replace(stream, augment=replace(stream.augment, seed=seed)) if seed else stream
    stream = replace(stream, host=replace(stream.host, **host))
    rows = stream.split.train
    order = samplers.shuffled()(stream.images.sites, stream.split, batch_size, seed)
    draws = stream.draws(order, rows, start, start + n)
    return batches(stream, draws, stream.store(rows), True)


def evaluate(stream, rows, batch_size=8, **host):
    stream = replace(stream, host=replace(stream.host, **host))
    order, steps = one_pass(rows, batch_size, stream.host)
    stored = np.unique(rows)
    return batches(stream, stream.draws(order, stored, 0, steps), stream.store(stored), False)


def control_pixels(images, experiments, plate=None, end="_control"):
    """All pixels of the control wells, [6, n]; of the experiments if the plate has none."""
    sites = images.sites
    chosen = np.isin(sites["experiment"], list(experiments))
    chosen &= np.char.endswith(sites["well_type"], end)
    own = chosen & (sites["plate"] == plate)
    planes = images.planes[own if own.any() else chosen].astype(float)
    return np.moveaxis(planes, 1, 0).reshape(CHANNELS, -1)


def expected_image(images, row, kind="plate_control"):
    """float64 [H, W, 6] of a site, normalised with figures from the pixels alone."""
    site, image = images.sites[row], images.planes[row].astype(float)
    own = {site["experiment"]}
    match kind:
        case "plate_control":
            population = control_pixels(images, own, site["plate"])
        case "experiment_control":
            population = control_pixels(images, own)
        case "global_control":
            population = control_pixels(images, {"HUVEC-01", "U2OS-01"})  # dataset = train
        case "plate_negative_control":
            population = control_pixels(images, own, site["plate"], "negative_control")
        case "plate_control_robust":
            population = control_pixels(images, own, site["plate"])
            median = np.median(population, 1)[:, None, None]
            deviation = np.median(np.abs(population - median[:, :, 0]), 1)[:, None, None]
            return np.moveaxis((image - median) / (1.4826 * deviation), 0, -1)
        case "site":
            population = image.reshape(CHANNELS, -1)
        case "none":
            return np.moveaxis(image, 0, -1) / 255
    mean, std = population.mean(1), population.std(1)
    return np.moveaxis((image - mean[:, None, None]) / std[:, None, None], 0, -1)


def orientations(image):
    """The 8 by rotation and mirroring (the code transposes and mirrors)."""
    return [np.rot90(m, k) for m in (image, image[:, ::-1]) for k in range(4)]


def which(image, candidates):
    """Index of the one candidate that is equal."""
    found = [
        k for k, candidate in enumerate(candidates)
        if candidate.shape == image.shape and np.allclose(image, candidate, rtol=1e-4, atol=1e-4)
    ]  # fmt: skip
    assert len(found) == 1, found
    return found[0]


def assert_same(one, two, **tolerance):
    assert one.keys() == two.keys()
    for name in one:
        assert one[name].dtype == two[name].dtype
        if tolerance and name == "image":
            np.testing.assert_allclose(one[name], two[name], **tolerance)
        else:
            np.testing.assert_array_equal(one[name], two[name])
