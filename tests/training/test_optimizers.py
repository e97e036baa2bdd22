"""optimizers.py against PyTorch, its schedulers, and closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from ml_collections import ConfigDict

from rxrx1_jax.training import optimizers


def optim(**changes):
    fields = dict(
        name="sgd", learning_rate=0.2, momentum=0.9, nesterov=False, weight_decay=0.1,
        schedule="cosine", clip_norm=0.0, warmup_epochs=2, epochs=10,
    )  # fmt: skip
    return ConfigDict(fields | changes)


@pytest.mark.parametrize(
    "changes, reference",
    [
        ({}, lambda groups: torch.optim.SGD(groups, momentum=0.9)),
        ({"nesterov": True}, lambda groups: torch.optim.SGD(groups, momentum=0.9, nesterov=True)),
        ({"name": "adam", "learning_rate": 1e-3}, torch.optim.Adam),
        ({"name": "adam(b1=0.8, b2=0.9)", "learning_rate": 1e-3},
         lambda groups: torch.optim.Adam(groups, betas=(0.8, 0.9))),
        ({"name": "adamw", "learning_rate": 1e-2}, torch.optim.AdamW),
        ({"clip_norm": 4.6}, lambda groups: torch.optim.SGD(groups, momentum=0.9)),
    ],
)  # fmt: skip
def test_optimizer_is_torchs_with_decay_on_kernels_only(changes, reference):
    rng = np.random.default_rng(0)
    start = {"fc": {"kernel": rng.normal(size=(4, 3)), "bias": rng.normal(size=3)},
             "bn": {"scale": rng.normal(size=3), "bias": rng.normal(size=3)}}  # fmt: skip
    start = jax.tree.map(np.float32, start)
    settings = optim(**changes)
    tx, schedule = optimizers.create_optimizer(settings, 10)
    params = jax.tree.map(jnp.asarray, start)
    opt_state = tx.init(params)

    tensors = jax.tree.map(lambda x: torch.tensor(x, requires_grad=True), start)
    kernel = tensors["fc"]["kernel"]
    rest = [tensors["fc"]["bias"], tensors["bn"]["scale"], tensors["bn"]["bias"]]
    torchs = reference(
        [{"params": [kernel], "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    )
    norms = []
    for step in range(10):
        grads = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), start)
        with jax.numpy_dtype_promotion("standard"):  # Optax's Adam relies on it
            updates, opt_state = tx.update(jax.tree.map(jnp.asarray, grads), opt_state, params)
        params = optax.apply_updates(params, updates)
        for group in torchs.param_groups:
            group["lr"] = float(schedule(step))
        jax.tree.map(lambda t, g: setattr(t, "grad", torch.from_numpy(g)), tensors, grads)
        if settings.clip_norm:
            norms.append(torch.nn.utils.clip_grad_norm_([kernel, *rest], settings.clip_norm))
        torchs.step()
    for found, expected in zip(*map(jax.tree.leaves, (params, tensors)), strict=True):
        np.testing.assert_allclose(found, expected.detach().numpy(), rtol=0, atol=2e-6)
    assert not norms or min(norms) < 4.6 < max(norms)  # some are clipped, some are not


def multi_step(t):
    """torch.optim.lr_scheduler.MultiStepLR at 40 and 60 of the 80 steps after the warm-up."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.2)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [40, 60], gamma=0.5)
    for _ in range(t):
        optimizer.step()
        scheduler.step()
    return scheduler.get_last_lr()[0]


@pytest.mark.parametrize(
    "schedule, after",
    [
        ("cosine", lambda t: 0.2 * math.cos(math.pi / 2 * t / 80) ** 2),
        ("linear", lambda t: 0.2 * (80 - t) / 80),
        ("constant", lambda t: 0.2),
        ("step(at=[0.5, 0.75], factor=0.5)", multi_step),
        ("step", lambda t: 0.2 * 0.1 ** ((t >= 27) + (t >= 53))),
    ],
)
def test_learning_rate_warms_up_and_follows_the_schedule(schedule, after):
    found = optimizers.create_schedule(optim(schedule=schedule), 100)  # 20 steps are warm-up
    for step in range(100):
        expected = 0.2 * (step + 1) / 20 if step < 20 else after(step - 20)
        assert float(found(step)) == pytest.approx(expected, rel=1e-4, abs=1e-7)
    no_warmup = optim(schedule=schedule, warmup_epochs=0)
    assert float(optimizers.create_schedule(no_warmup, 100)(0)) == pytest.approx(0.2)
    trial = optimizers.create_schedule(optim(schedule=schedule, warmup_epochs=4, epochs=1), 20)
    rising = [float(trial(t)) for t in range(10)]  # half of the run
    assert rising == pytest.approx([0.02 * (t + 1) for t in range(10)])
    short = optim(schedule=schedule, warmup_epochs=9)
    assert float(optimizers.create_schedule(short, 1)(0)) == pytest.approx(0.2)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "step(at=[0.35, 0.5])"])
@pytest.mark.parametrize("warmup", [0, 2, 9.5, 30])
def test_numbers_that_are_arguments_give_the_bits_of_constants(schedule, warmup):
    """A program that holds them as constants, and one for all of them.

    But for a line without a warm-up: of constants XLA leaves out t - 0, and then rounds once less.
    """
    rounding = 2**-23 if (schedule, warmup) == ("linear", 0) else 0

    @jax.jit
    def rates(numbers, t):
        return optimizers.create_schedule(optim(schedule=schedule), 10, numbers)(t)

    t = jnp.arange(1000)
    for steps, peak in ((801, 0.2), (1000, 0.123), (1, 3e-4)):
        settings = optim(schedule=schedule, learning_rate=peak, warmup_epochs=warmup, epochs=13)
        expected = jax.jit(optimizers.create_schedule(settings, steps))(t)
        found = rates(optimizers.numbers_of(settings, steps), t)
        rates_of_run = found[:steps], expected[:steps]
        np.testing.assert_allclose(*rates_of_run, rtol=0, atol=rounding * peak)
    assert rates._cache_size() == 1


def counting_down():
    """A schedule that needs its number of steps as a number."""
    return lambda t, steps: jnp.arange(steps, 0, -1, jnp.float32)[t.astype(int)] / steps


def plain_decay():
    """An optimizer that asks for the value of its weight decay."""
    return lambda schedule, _, settings: optax.sgd(schedule) if settings.weight_decay else None


def test_plug_ins_get_plain_numbers_in_a_program_whose_arguments_they_are():
    own = {"schedule": f"{__name__}.counting_down", "name": f"{__name__}.plain_decay"}
    settings = optim(**own, warmup_epochs=0)

    @jax.jit
    def update(numbers, step):
        tx, schedule = optimizers.create_optimizer(settings, 10, numbers)
        update, _ = tx.update({"kernel": jnp.ones(1)}, tx.init({"kernel": jnp.zeros(1)}))
        return update["kernel"][0], schedule(step)

    numbers = optimizers.numbers_of(optim(learning_rate=0.5, warmup_epochs=0), 10)
    assert [float(x) for x in update(numbers, 4)] == pytest.approx([-0.5, 0.5 * 0.6])


@pytest.mark.parametrize(
    "changes, steps, field",
    [
        ({"warmup_epochs": -1}, 10, "warmup_epochs"),
        ({"momentum": 1.0}, 10, "momentum"),
        ({"learning_rate": 0.0}, 10, "learning_rate"),
        ({"schedule": "step(at=[1.5])"}, 10, "optim.schedule.*1.5"),
        ({"schedule": "cosin"}, 10, "optim.schedule.*cosine"),
        ({"name": "sdg"}, 10, "optim.name.*sgd"),
        ({}, 0, "at least one step"),
    ],
)
def test_impossible_settings_are_refused(changes, steps, field):
    with pytest.raises(ValueError, match=field):
        optimizers.create_optimizer(optim(**changes), steps)
