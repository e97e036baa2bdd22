"""A training state of the demo's network, for tests of checkpoints and the programs they start."""

import jax
import jax.numpy as jnp
import numpy as np
from example_info import make_info
from ml_collections import ConfigDict

from rxrx1_jax.model import networks
from rxrx1_jax.training import optimizers, steps

CLASSES = np.array([3, 5, 8], np.int32)


def make_state(ema: bool = False, seed: int = 0):
    """(model, state at step 7)."""
    model = networks.create_model("resnet_demo", width=8)
    optim = ConfigDict(
        {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9, "nesterov": False,
         "weight_decay": 1e-4, "warmup_epochs": 0.0, "epochs": 1, "schedule": "cosine",
         "clip_norm": 0.0}
    )  # fmt: skip
    spec = steps.StepSpec(
        model, *optimizers.create_optimizer(optim, 10), make_info(len(CLASSES)).vocabulary, 10,
        ema_decay=0.9 * ema,
    )  # fmt: skip
    state = steps.create_state(spec, jax.random.key(seed), (16, 16, 6))
    return model, state.replace(step=jnp.int32(7))
