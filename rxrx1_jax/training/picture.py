"""A picture of sites as the network sees them: normalised, then as augmented in a few epochs."""

import dataclasses
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh

from rxrx1_jax.data.orders import Order
from rxrx1_jax.data.reading import Host
from rxrx1_jax.training.setup import Setup
from tfds_builder.faux_colours import COMPOSITE_PERCENTILES, composite, contrast_limits, stretch

SITES, EPOCHS = 4, 4
GAP, SIDE = 2, 256  # pixels between images, and of one; of a larger one every other pixel or so


def draw_sites(setup: Setup) -> np.ndarray:
    """uint8 [H, W, 3]. A row per site, the first of each of up to SITES cell types, or of one.

    First the site as it is in an evaluation, then as in EPOCHS epochs of training. The colours of a
    row have one scale, that of its first image. Computed on one device of this process alone.
    """
    sites, train = setup.images.sites, setup.split.train
    _, first = np.unique(sites["cell_type"][train], return_index=True)
    wanted = list(dict.fromkeys([*first.tolist(), *range(len(train))]))[:SITES]
    rows = np.sort(train[wanted])
    host = Host(setup.stream.host.threads, mesh=Mesh(jax.local_devices()[:1], "rows"), number=0,
                count=1)  # fmt: skip
    stream = dataclasses.replace(setup.stream, host=host, cache="none", kept=None)

    def batch(step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return rows, np.full(len(rows), max(step - 1, 0), np.int32), np.full(len(rows), True)

    make = jax.jit(partial(stream.batch, i=0), static_argnames="train")
    draws = stream.draws(Order(1.0, batch), rows, 0, 1 + EPOCHS)
    store = stream.store(rows)
    views = [
        np.asarray(make(store, one, train=step > 0)["image"].astype(np.float32))
        for step, one in enumerate(draws)
    ]
    lines = []
    every = -(-max(views[0].shape[1:3]) // SIDE)
    for images in zip(*views, strict=True):
        planes = [255 * np.moveaxis(image[::every, ::every], -1, 0) for image in images]
        low, high = contrast_limits(planes[:1], COMPOSITE_PERCENTILES)
        shown = [composite(stretch(plane, low, high)) for plane in planes]
        lines.append(_joined(shown, axis=1))
    return (255 * _joined(lines, axis=0)).round().astype(np.uint8)


def _joined(images: list[np.ndarray], axis: int) -> np.ndarray:
    widths = [(0, GAP if i == axis else 0) for i in range(3)]
    padded = [np.pad(image, widths, constant_values=1.0) for image in images[:-1]]
    return np.concatenate([*padded, images[-1]], axis)
