"""Batches and outputs of a network for tests of losses, in float64."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rxrx1_jax.data.images import Vocabulary
from rxrx1_jax.data.info import Info

ROWS, FEATURES, CLASSES, EXPERIMENTS = 12, 5, 7, 45
VOCABULARY = Vocabulary(tuple("abc"), tuple(map(str, range(EXPERIMENTS))), np.arange(CLASSES))
INFO = Info(VOCABULARY)
CELL_TYPE_OF = {3: 0, 9: 0, 10: 0, 20: 1, 21: 1, 40: 2}  # of experiments
MIXED = (3, 9, 9, 20, 10, 3, 9, 21, 20, 10, 3, 40)  # 40 has a single row


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def masked(batch, positions):
    mask = np.ones(len(batch["label"]), bool)
    mask[list(positions)] = False
    return batch | {"mask": mask}


def make_batch(experiments=MIXED, labels=None, **more):
    rng = np.random.default_rng(1)
    labels = rng.integers(0, CLASSES, len(experiments)) if labels is None else labels
    return {
        "label": np.int32(labels),
        "experiment": np.int32(experiments),
        "cell_type": np.int32([CELL_TYPE_OF[e] for e in experiments]),
        "mask": np.ones(len(experiments), bool),
    } | more


def make_outputs(rows=ROWS, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "logits": rng.normal(0, 2, (rows, CLASSES)),
        "embedding": rng.normal(1, 1, (rows, FEATURES)),
        "cosine": rng.uniform(-1, 1, (rows, CLASSES)),
        "domain_logits": rng.normal(0, 2, (rows, EXPERIMENTS)),
        "cross_entropy": rng.uniform(1, 3, rows),
    }


def rows_of(batch):
    """Experiment -> positions of its rows, masked rows left out."""
    valid = np.flatnonzero(batch["mask"])
    return {e: valid[batch["experiment"][valid] == e] for e in set(batch["experiment"][valid])}


@cache  # compiled once a shape
def compiled(loss_function):
    """Compiled function (outputs, batch, state) -> losses, state, gradients of their sum."""

    def total(outputs, batch, state):
        found, state = loss_function(outputs, batch, state, INFO)
        return jnp.sum(found), (found, state)

    def function(outputs, batch, state):
        gradients, (found, state) = jax.grad(total, has_aux=True)(outputs, batch, state)
        return found, state, gradients

    return jax.jit(function)


def added(loss, outputs, batch):
    """What a loss adds to the cross-entropy of the rows: one number for all of them."""
    found, _, _ = compiled(loss.function)(outputs, batch, loss.init(VOCABULARY))
    difference = np.asarray(found) - outputs["cross_entropy"]
    np.testing.assert_allclose(difference, difference[0], rtol=0, atol=1e-12)
    return difference[0]
