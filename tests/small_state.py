"""A training state of the demo's network, for tests of checkpoints and the programs they start."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from rxrx1_jax.data.images import Vocabulary
from rxrx1_jax.model import networks
from rxrx1_jax.training import checkpoint, optimizers, steps

VOCABULARY = Vocabulary(("HUVEC",), ("HUVEC-01", "HUVEC-02"), np.array([3, 5, 8], np.int32))
ORIGIN = checkpoint.Origin(VOCABULARY, {"data": "1", "split": "2"}, {"data.fold": 0}, 10)


def make_state(ema: bool = False, seed: int = 0):
    """(model, state at step 7)."""
    model = networks.create_model("resnet_demo", width=8)
    optim = ConfigDict(
        {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9, "nesterov": False,
         "weight_decay": 1e-4, "warmup_epochs": 0.0, "epochs": 1, "schedule": "cosine",
         "clip_norm": 0.0}
    )  # fmt: skip
    spec = steps.StepSpec(
        model, *optimizers.create_optimizer(optim, 10), VOCABULARY, 10, ema_decay=0.9 * ema
    )
    state = steps.create_state(spec, jax.random.key(seed), (16, 16, 6))
    return model, state.replace(step=jnp.int32(7))


def save(checkpoints, step, state, recent=(), score=None):
    state = state.replace(step=jnp.int32(step))
    checkpoint.save(checkpoints, state, ORIGIN, recent, score)
    return state


def abstract(state):
    """Shapes and places of a state, as a set-up has them."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def restore(workdir, state, resume=True, which="last"):
    """The last checkpoint in the form of `state`, and its `recent`."""
    saved = checkpoint.describe(checkpoint.find(workdir, which))
    return checkpoint.restore(saved, abstract(state), resume), saved.recent


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)
