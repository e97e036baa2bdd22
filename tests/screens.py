"""The sites of the tiny release with random pixels, in memory: no build, no TensorFlow."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict
from tiny_release import tiny_rows

from configs import demo
from rxrx1_jax import config as config_lib
from rxrx1_jax.data.images import InMemory

SIZE, CHANNELS = 16, 6


def tiny_images(seed: int = 0, **changes: np.ndarray) -> InMemory:
    """61 sites of three experiments; changes: columns in place of the release's."""
    rows = tiny_rows()
    numbers = ("plate", "site", "sirna_id")
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    columns |= {name: columns[name].astype(np.int32) for name in numbers}
    rng = np.random.default_rng(seed)
    brightness = rng.uniform(5, 60, (len(rows), CHANNELS, 1, 1))  # sites and channels differ
    pixels = rng.gamma(2.0, brightness / 2, (len(rows), CHANNELS, SIZE, SIZE))
    planes = np.minimum(pixels, 255).astype(np.uint8)
    about = {"name": "tiny", "version": "1.0.0", "source": "release"}
    return InMemory(planes, columns | changes, about=about)


@pytest.fixture
def read(monkeypatch) -> Counter[int]:
    """How often each image in memory has been read."""
    count: Counter[int] = Counter()
    fetch = InMemory.__getitem__
    monkeypatch.setattr(
        InMemory, "__getitem__", lambda self, i: (count.update([int(i)]), fetch(self, i))[1]
    )
    return count


def tiny_config(**changes: Any) -> ConfigDict:
    """The demo's, small, for the tiny release: 21 training sites, 8 steps in 3 epochs.

    changes: section__name=value.
    """
    settings = {
        "data.protocol": "official",  # three experiments are too few for the paper's draws
        "model.width": 8, "optim.batch_size": 8, "optim.epochs": 3, "optim.warmup_epochs": 1.0,
        "optim.ema_decay": 0.5, "train.log_every": 2, "train.eval_every": 1,
        "train.checkpoint_every": 1, "eval.batch_size": 8,
    }  # fmt: skip
    config = demo.get_config()
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    config_lib.change(config, settings | changes)
    return config


def params(workdir, which: str = "last"):
    """Everything that a checkpoint of a run holds of its network."""
    from rxrx1_jax.training.run import Run  # conftest imports this module before it sets up JAX

    state = Run.open(workdir).load(which)
    return state.params, state.batch_stats, state.ema_params, state.ema_batch_stats
