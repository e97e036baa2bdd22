"""The stage `adapt`: a trained network run differently at test time, its weights untouched.

AdaBN: Li, Wang, Shi, Liu and Hou 2016, "Revisiting batch normalization for practical domain
adaptation" (arXiv:1603.04779). The running mean and variance of each BatchNorm layer are replaced
by those of images of one experiment or plate, as they come through the adapted layers below it.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rxrx1_jax.data.info import Info
from rxrx1_jax.methods.evidence import AdaBN, Evidence, Method, Orientations
from rxrx1_jax.training import evaluate, orientations, steps
from rxrx1_jax.training.run import Run

BATCH = 256  # images of a batch at most
MULTIPLE = 16  # of them, so that groups of nearly one size share a compiled program
MOMENTUM_DIGITS = 4  # momenta that networks use are exact to these decimals


def adapted(run: Run, method: Method, evidence: Evidence) -> Evidence:
    """The evidence as the adapted network sees it: test sites, or all if they are classified.

    Raises ValueError: AdaBN of a network without BatchNorm.
    """
    wanted = np.full(len(evidence.role), method.classify is not None)
    wanted |= np.isin(evidence.role, ("test", "val"))
    if isinstance(method.adapt, AdaBN):
        return _batch_norm(run, method.adapt, evidence, wanted)
    assert isinstance(method.adapt, Orientations)
    return _updated(run, evidence, wanted, orientations.embed_step, run.state)


def adapted_statistics(
    spec: steps.StepSpec, params: Any, batch_stats: Any, batches: Iterable[steps.Batch]
) -> Any:
    """Running statistics from the images of `batches`, which are of equal size and not padded.

    A tree like `batch_stats`, of which only the structure is used: mean of the batches' means m,
    and by the law of total variance mean(v + m^2) - mean(m)^2. In the first layer these are the
    moments of all images exactly; above it each batch was normalised by its own statistics, so
    larger batches are closer. Raises ValueError: no batch; a network without BatchNorm.
    """
    if not jax.tree.leaves(batch_stats):
        raise ValueError("AdaBN needs a network with BatchNorm; model.name names one without")
    count, total, kept = 0, None, None
    zeros, ones = (jax.tree.map(fill, batch_stats) for fill in (jnp.zeros_like, jnp.ones_like))
    for batch in batches:
        new = _after(spec, params, zeros, batch)
        if kept is None:
            # An update is momentum * old + (1 - momentum) * new, so the two differ by the momentum.
            kept = jax.tree.map(_momentum, _after(spec, params, ones, batch), new)
        new = jax.tree.map(lambda x, m: x / (1 - m), new, kept)
        moments = _map_layers(lambda mean, var: (mean, var + mean**2), new)
        total = moments if total is None else jax.tree.map(jnp.add, total, moments)
        count += 1
    if total is None:
        raise ValueError("no images to estimate BatchNorm statistics from")
    return _map_layers(
        lambda mean, second: (mean, jnp.maximum(second - mean**2, 0)),
        jax.tree.map(lambda x: x / count, total),
    )


def _batch_norm(run: Run, adapt: AdaBN, evidence: Evidence, wanted: np.ndarray) -> Evidence:
    """AdaBN in each experiment or plate with wanted sites; it needs images there to learn from."""
    setup, state = run.setup, run.state
    average = state.ema_params is not None
    params = state.ema_params if average else state.params
    group = evidence.sites["experiment"]
    if adapt.by == "plate":
        group = np.char.add(np.char.add(group, "_"), evidence.sites["plate"].astype(str))
    rows = _rows(run, evidence)
    for name in np.unique(group[wanted]):
        learn = rows[(group == name) & evidence.part(adapt.on)]
        if not len(learn):
            continue  # a part of the release without controls: the network stays as it is
        whole, size = learning_batches(learn, max(MULTIPLE, setup.devices.mesh.size))
        batches = setup.batches(whole, size)
        statistics = adapted_statistics(setup.spec, params, state.batch_stats, batches)
        statistics = jax.device_put(statistics, setup.devices.copied)
        changed = state.replace(batch_stats=statistics)
        if average:
            changed = changed.replace(ema_batch_stats=statistics)
        there = wanted & (group == name)
        evidence = _updated(run, evidence, there, steps.embed_step, changed)
    return evidence


def learning_batches(rows: np.ndarray, multiple: int) -> tuple[np.ndarray, int]:
    """Rows in a random order, and the size of the batches to cut them into.

    In the order of the records a batch would be neighbouring wells of one plate, both sites of
    each. Batches are of one size, a multiple of `multiple`; some rows come twice to fill them up.
    """
    count = -(-len(rows) // BATCH)
    size = -(-len(rows) // (count * multiple)) * multiple
    return np.resize(np.random.default_rng(0).permutation(rows), count * size), size


def _updated(
    run: Run, evidence: Evidence, where: np.ndarray, step: Callable[..., Any], state: Any
) -> Evidence:
    """The evidence with what a step gives the sites of `where`."""
    outputs = evaluate.predict(run.setup, step, state, _rows(run, evidence)[where])
    x, log_probs = evidence.x.copy(), evidence.log_probs.copy()  # type: ignore[union-attr]
    x[where], log_probs[where] = outputs["embedding"], outputs["log_probs"]
    return evidence._replace(x=x, log_probs=log_probs)


def _rows(run: Run, evidence: Evidence) -> np.ndarray:
    """Rows of the dataset [n] that the evidence is of."""
    row_of = {name: row for row, name in enumerate(run.setup.images.sites["site_id"].tolist())}
    return np.array([row_of[name] for name in evidence.sites["site_id"].tolist()], np.int64)


@partial(jax.jit, static_argnums=0)
def _after(spec: steps.StepSpec, params: Any, before: Any, batch: steps.Batch) -> Any:
    """Running statistics after one batch: the network of an evaluation, its BatchNorm as in
    training. Dropout is off."""
    context = {name: batch[name] for name in steps.CONTEXT if name in batch}
    with nn.intercept_methods(_by_batch):
        _, updated = spec.model.apply(
            {"params": params, "batch_stats": before}, batch["image"], context,
            Info(spec.vocabulary, False, 1.0), mutable=["batch_stats"],
        )  # fmt: skip
    return updated["batch_stats"]


def _by_batch(call: Callable, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
    if isinstance(context.module, nn.BatchNorm):
        object.__setattr__(context.module, "use_running_average", None)  # or it could not be given
        return call(args[0], **kwargs | {"use_running_average": False})
    return call(*args, **kwargs)


def _momentum(from_ones: jax.Array, from_zeros: jax.Array) -> float:
    difference = np.asarray(from_ones, np.float64) - np.asarray(from_zeros, np.float64)
    return round(float(np.median(difference)), MOMENTUM_DIGITS)


def _map_layers(function: Any, tree: Any) -> Any:
    """Applies function(mean, var) -> (mean, var) to each {"mean", "var"} of a tree."""
    if set(tree) == {"mean", "var"}:
        return dict(zip(("mean", "var"), function(tree["mean"], tree["var"]), strict=True))
    return {name: _map_layers(function, part) for name, part in tree.items()}
