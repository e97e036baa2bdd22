"""Optimizers and learning rates.

Of what a search varies nothing is in the compiled program (`numbers_of`): it is compiled once.

An optimizer factory returns a function (schedule, decayed, settings) -> optax transformation:

  schedule: step -> learning rate.
  decayed: params -> tree of bool, the parameters that weight decay acts on.
  settings: the config's section optim, with weight_decay (of ours: traced), momentum and the rest.

A schedule factory returns a function (t, steps) -> factor of the peak learning rate, for update
t = 0 .. steps - 1 after the warm-up; t is float32 and traced. steps: of ours, too; of a plug-in it
is an int, so that a program holds it.
"""

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rxrx1_jax.config import load

LearningRate = Callable[[jax.Array | int], jax.Array]
Optimizer = Callable[[LearningRate, Callable[[Any], Any], Any], optax.GradientTransformation]
Schedule = Callable[[jax.Array, Any], jax.Array | float]
Numbers = Mapping[str, Any]  # name -> scalar, traced or not


def sgd() -> Optimizer:
    """SGD as in torch.optim: weight decay is added to the gradient (L2), before the momentum."""
    return lambda schedule, decayed, settings: optax.chain(
        optax.add_decayed_weights(settings.weight_decay, mask=decayed),
        optax.sgd(schedule, momentum=settings.momentum, nesterov=settings.nesterov),
    )


def adam(b1: float = 0.9, b2: float = 0.999) -> Optimizer:
    """Adam (Kingma and Ba 2015, arXiv:1412.6980) as in torch.optim, weight decay as in `sgd`."""
    return lambda schedule, decayed, settings: optax.chain(
        optax.add_decayed_weights(settings.weight_decay, mask=decayed),
        optax.adam(schedule, b1, b2),
    )


def adamw(b1: float = 0.9, b2: float = 0.999) -> Optimizer:
    """Adam whose weight decay is not part of the gradient: learning rate * weight_decay * value.

    Loshchilov and Hutter 2019 (arXiv:1711.05101), as in torch.optim.
    """
    return lambda schedule, decayed, settings: optax.adamw(
        schedule, b1, b2, weight_decay=settings.weight_decay, mask=decayed
    )


def cosine() -> Schedule:
    """Half a cosine from 1 to 0 (Loshchilov and Hutter 2017, arXiv:1608.03983)."""
    return lambda t, steps: 0.5 * (1 + jnp.cos(t * (jnp.pi * (1 / steps))))


def linear() -> Schedule:
    """A straight line from 1 to 0."""
    return lambda t, steps: 1 - t * (1 / steps)


def step(at: Sequence[float] = (1 / 3, 2 / 3), factor: float = 0.1) -> Schedule:
    """1, and `factor` times as much from each part of the steps in `at` on."""
    if not all(0 < part < 1 for part in at) or factor <= 0:
        raise ValueError(f"at is {at} and factor {factor}; expected parts in (0, 1) and above 0")

    def schedule(t: jax.Array, steps: jax.Array) -> jax.Array:
        starts = (jnp.maximum(jnp.round(part * steps), 1) for part in at)
        passed = sum((t >= start).astype(jnp.float32) for start in starts)
        return jnp.asarray(factor, jnp.float32) ** passed

    return schedule


def constant() -> Schedule:
    return lambda t, steps: 1.0


def numbers_of(settings: Any, steps: int) -> dict[str, np.float32]:
    """The numbers of a run of `steps` updates that its compiled step takes as arguments.

    Of the warm-up's w = round(steps * warmup_epochs / epochs) steps. One as long as the run is cut
    to half of it, so that one epoch is a trial of the settings of a long run.
    """
    epochs = settings.epochs
    rising_epochs = settings.warmup_epochs if settings.warmup_epochs < epochs else epochs / 2
    # At least one step is left to the schedule, however short the run.
    warmup = min(round(steps * rising_epochs / epochs), steps - 1)
    found = {
        "total_steps": steps, "warmup": warmup, "learning_rate": settings.learning_rate,
        "weight_decay": settings.weight_decay,
    }  # fmt: skip
    return {name: np.float32(value) for name, value in found.items()}


def create_schedule(settings: Any, steps: int, given: Numbers | None = None) -> LearningRate:
    """Learning rate of update t = 0 .. steps - 1: linear warm-up, then the schedule.

    With w steps of warm-up it is peak * (t + 1) / w for t < w (Goyal et al. 2017,
    arXiv:1706.02677), and peak * schedule(t - w, steps - w) from there on.

    given: numbers in place of those of the settings.
    """
    if settings.warmup_epochs < 0:
        raise ValueError(f"optim.warmup_epochs is {settings.warmup_epochs}; expected 0 or more")
    schedule, known = load("optim.schedule", settings.schedule), numbers_of(settings, steps)
    numbers = known if given is None else given
    peak, warmup = numbers["learning_rate"], numbers["warmup"]
    falling = numbers["total_steps"] - warmup
    if not _is_ours(settings.schedule):
        falling = steps - int(known["warmup"])

    def learning_rate(step: jax.Array | int) -> jax.Array:
        t = jnp.asarray(step, jnp.float32)
        # The order in which XLA computes it of constants, too.
        rising = (t + 1) * (peak * (1 / jnp.maximum(warmup, 1)))
        return jnp.where(t < warmup, rising, peak * schedule(t - warmup, falling))

    return learning_rate


def _is_ours(plug_in: str) -> bool:
    return "." not in plug_in.partition("(")[0]


def is_decayed(params: Any) -> Any:
    """Which parameters weight decay acts on: those named kernel, not biases nor scales."""
    return jax.tree.map_with_path(lambda path, _: getattr(path[-1], "key", "") == "kernel", params)


def create_optimizer(
    settings: Any, steps: int, given: Numbers | None = None
) -> tuple[optax.GradientTransformation, LearningRate]:
    """The optimizer of a run of `steps` updates, and its learning rate.

    settings: the config's section optim. given: as in `create_schedule`. With clip_norm > 0 a
    gradient whose norm over all parameters is larger is first scaled to that norm. Raises
    ValueError naming the field when a value is impossible.
    """
    if steps < 1:
        raise ValueError(f"a run needs at least one step, found {steps}; raise optim.epochs")
    if settings.learning_rate <= 0 or not 0 <= settings.momentum < 1 or settings.weight_decay < 0:
        raise ValueError(
            "optim needs learning_rate > 0, 0 <= momentum < 1 and weight_decay >= 0; found "
            f"{settings.learning_rate}, {settings.momentum} and {settings.weight_decay}"
        )
    learning_rate = create_schedule(settings, steps, given)
    make = load("optim.name", settings.name)
    if given is not None and _is_ours(settings.name):
        settings = SimpleNamespace(**{**settings, "weight_decay": given["weight_decay"]})
    try:
        tx = make(learning_rate, is_decayed, settings)
    except Exception as error:  # it is anybody's
        raise ValueError(f"optim.name={settings.name!r}: {error}") from error
    if settings.clip_norm > 0:
        tx = optax.chain(optax.clip_by_global_norm(settings.clip_norm), tx)
    return tx, learning_rate
