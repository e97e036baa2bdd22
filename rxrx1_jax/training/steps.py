"""The train state, and what is computed in a step of training, of evaluation and of embedding.

All three are pure functions of (spec, state, batch); `parallel` wraps them for several devices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from rxrx1_jax.data.images import Vocabulary
from rxrx1_jax.data.info import Info
from rxrx1_jax.model import losses
from rxrx1_jax.model.resnet import on_cpu

CONTEXT = ("cell_type", "experiment")  # of a batch, what the head of a network gets
NUMBERS = ("seed", "total_steps", "label_smoothing")  # of a spec, that a program may be given
METRICS = ("loss", "accuracy", "gradient_norm", "learning_rate")  # of a training step, in order

Batch = Mapping[str, jax.Array]


@dataclass(frozen=True, eq=False)
class StepSpec:
    """What the steps of a run have in common. Compared by identity, so it can be a static argument.

    Those of NUMBERS may be traced: they are then arguments of a program, not parts of it.

    label_smoothing: part of the target that is spread over all classes.
    ema_decay: d > 0 keeps the averages d * average + (1 - d) * new of params and of batch_stats.
    accumulation: number of micro-batches per batch, their gradients summed; each has its own
      BatchNorm statistics and updates the running values in turn.
    seed: of dropout.
    """

    model: nn.Module
    tx: optax.GradientTransformation
    schedule: Callable[[jax.Array | int], jax.Array]
    vocabulary: Vocabulary
    total_steps: int
    loss: losses.Loss = losses.cross_entropy()
    label_smoothing: float = 0.0
    ema_decay: float = 0.0
    accumulation: int = 1
    seed: int = 0


class TrainState(flax.struct.PyTreeNode):
    """Everything that changes during training; one tree, whatever the number of devices."""

    step: jax.Array  # int32 scalar: updates made so far
    params: Any  # float32
    batch_stats: Any  # running mean and variance of every BatchNorm, float32; {} without any
    opt_state: optax.OptState
    # Moving averages of params and batch_stats, or None: averaged weights need the statistics that
    # go with them.
    ema_params: Any = None
    ema_batch_stats: Any = None
    loss_state: Any = ()  # what the loss keeps from step to step


def create_state(
    spec: StepSpec, key: jax.Array, image_shape_hwc: tuple[int, int, int]
) -> TrainState:
    """The state before the first update; a pure function of the key. Not to be called in a trace.

    Raises ValueError if the network has variables other than params and batch_stats.
    """
    # A program that runs once: XLA's CPU back-end compiles it up to three times faster at its first
    # level of optimization, and the values are the same bits.
    options = {"xla_backend_optimization_level": 1} if on_cpu() else None
    make = partial(initial_state, spec, image_shape_hwc=image_shape_hwc)
    return jax.jit(make, compiler_options=options)(key)


def initial_state(
    spec: StepSpec, key: jax.Array, image_shape_hwc: tuple[int, int, int]
) -> TrainState:
    """What `create_state` compiles; `jax.eval_shape` of it gives the shapes alone."""
    images, code = jnp.zeros((1, *image_shape_hwc), jnp.float32), jnp.zeros(1, jnp.int32)
    info = Info(spec.vocabulary, False, jnp.zeros(()))
    variables = spec.model.init(key, images, dict.fromkeys(CONTEXT, code), info)
    if more := set(variables) - {"params", "batch_stats"}:
        raise ValueError(
            f"model.name: the network has the variables {', '.join(sorted(more))}; expected "
            "params and batch_stats alone"
        )
    return state_of(spec, variables["params"], variables.get("batch_stats", {}))


def state_of(spec: StepSpec, params: Any, batch_stats: Any) -> TrainState:
    """The state before the first update of a network with these values."""
    ema = spec.ema_decay > 0
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=spec.tx.init(params),
        # A copy: the state is donated to the step, and one buffer cannot be donated twice.
        ema_params=jax.tree.map(jnp.copy, params) if ema else None,
        ema_batch_stats=jax.tree.map(jnp.copy, batch_stats) if ema else None,
        loss_state=jax.tree.map(jnp.asarray, spec.loss.init(spec.vocabulary)),
    )


def train_step(
    spec: StepSpec, state: TrainState, batch: Batch, axis_name: str | None = None
) -> tuple[TrainState, jax.Array]:
    """One update. batch: image float [N, H, W, C], label int32 [N], mask bool [N], and what the
    network's head and the loss read.

    Returns the new state and float32 [4] on the device, in the order of METRICS: loss and accuracy
    over the rows whose mask is true, the norm of the gradient before clipping and weight decay, the
    learning rate of this update. The mean of what the loss gives for the rows is minimised.
    For mixed images outputs["cross_entropy"] has the mixed target: `share` on label and 1 - `share`
    on `other_label`.

    Masked rows count nothing in loss, accuracy and gradient. BatchNorm sees them, which is why
    training batches are never padded.
    """
    pmean = partial(jax.lax.pmean, axis_name=axis_name) if axis_name else lambda x: x
    rows, parts = batch["label"].shape[0], spec.accumulation
    if rows % parts:
        raise ValueError(
            f"optim.accumulation is {parts}, which does not divide the {rows} rows of a "
            "batch; change it or optim.batch_size"
        )
    # Mean over devices: with pmean of the sums below it makes the quotient the global one.
    count = jnp.maximum(pmean(jnp.sum(batch["mask"].astype(jnp.float32))), 1e-6)
    info = _info(spec, state, train=True)
    key = jax.random.fold_in(jax.random.key(spec.seed), state.step)
    if axis_name:
        key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))

    def loss_fn(params, batch_stats, loss_state, batch, key):
        logits, updated = spec.model.apply(
            _variables(params, batch_stats), batch["image"], _context(batch), info,
            mutable=["batch_stats", "intermediates"], rngs={"dropout": key},
        )  # fmt: skip
        _check_logits(logits, batch, info)
        # Modules within the network sow into a mapping of their own.
        sown = updated.get("intermediates", {}).items()
        outputs = {name: value[-1] for name, value in sown if isinstance(value, tuple)}
        outputs["logits"] = logits
        smoothed = partial(losses.cross_entropy_rows, logits, label_smoothing=spec.label_smoothing)
        outputs["cross_entropy"] = losses.of_target(smoothed, batch)
        given = {name: x for name, x in batch.items() if name != "image"}
        rows, loss_state = spec.loss.function(outputs, given, loss_state, info)
        mask = batch["mask"].astype(jnp.float32)
        correct = jnp.sum(jnp.where(jnp.argmax(logits, -1) == batch["label"], mask, 0))
        # The mean over devices belongs here and over the gradients below: with only the second,
        # gradients inside shard_map come out too large by the number of devices.
        mean = pmean(jnp.sum(jnp.where(mask > 0, rows, 0)) / count)
        accuracy = pmean(correct / count)
        return mean, (updated.get("batch_stats", {}), loss_state, accuracy)

    def add_part(sums, numbered):
        grads, batch_stats, loss_state, mean_loss, accuracy = sums
        number, part = numbered
        arguments = (batch_stats, loss_state, part, jax.random.fold_in(key, number))
        (part_loss, aux), part_grads = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params, *arguments
        )
        batch_stats, loss_state, part_accuracy = aux
        grads = jax.tree.map(jnp.add, grads, part_grads)
        mean_loss, accuracy = mean_loss + part_loss, accuracy + part_accuracy
        return (grads, batch_stats, loss_state, mean_loss, accuracy), None

    # Every parts-th row, so that a sharded batch is cut without moving rows.
    cut = {
        name: jnp.moveaxis(x.reshape(rows // parts, parts, *x.shape[1:]), 1, 0)
        for name, x in batch.items()
    }
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    sums = (zeros, state.batch_stats, state.loss_state, jnp.zeros(()), jnp.zeros(()))
    # XLA's CPU back-end runs convolutions inside a loop 30 times slower, even of one pass, which
    # scan's unroll=True leaves a loop. Elsewhere copies of the network take minutes to compile.
    if parts == 1 or on_cpu():
        for number in range(parts):
            part = jax.tree.map(lambda x, number=number: x[number], cut)
            sums, _ = add_part(sums, (number, part))
    else:
        sums, _ = jax.lax.scan(add_part, sums, (jnp.arange(parts), cut))
    grads, batch_stats, loss_state, mean_loss, accuracy = sums
    # Running statistics are averaged too, so that every device keeps the same state.
    grads, batch_stats = pmean(grads), pmean(batch_stats)

    updates, opt_state = spec.tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = (state.ema_params, state.ema_batch_stats)
    if state.ema_params is not None:
        decay = spec.ema_decay
        ema = jax.tree.map(
            lambda old, new: decay * old + (1 - decay) * new, ema, (params, batch_stats)
        )
    metrics = (mean_loss, accuracy, optax.tree.norm(grads), spec.schedule(state.step))
    state = TrainState(state.step + 1, params, batch_stats, opt_state, *ema, loss_state)
    return state, jnp.stack([jnp.asarray(x, jnp.float32) for x in metrics])


def eval_step(
    spec: StepSpec, state: TrainState, batch: Batch, axis_name: str | None = None
) -> dict[str, jax.Array]:
    """Log-probabilities and loss of each row, with the averaged parameters where there are any.

    batch as in `train_step`. Returns log_probs float32 [N, K] and loss float32 [N], the negative
    log-likelihood of the label without smoothing, 0 in masked rows. Rows do not depend on each
    other, so nothing is communicated under axis_name.
    """
    return scores(_evaluate(spec, state, batch)[0], batch)


def embed_step(
    spec: StepSpec, state: TrainState, batch: Batch, axis_name: str | None = None
) -> dict[str, jax.Array]:
    """As `eval_step`, and embedding float32 [N, d], which the network sows before its head.

    Raises ValueError if it sows none.
    """
    logits, sown = _evaluate(spec, state, batch)
    if "embedding" not in sown:
        raise ValueError(
            "model.name: the network has no embedding; it must call "
            'self.sow("intermediates", "embedding", features)'
        )
    return scores(logits, batch) | {"embedding": sown["embedding"][-1].astype(jnp.float32)}


def progress(spec: StepSpec, state: TrainState) -> jax.Array:
    """The part of the training that is done."""
    return state.step.astype(jnp.float32) * (1 / spec.total_steps)


def _info(spec: StepSpec, state: TrainState, train: bool) -> Info:
    return Info(spec.vocabulary, train, progress(spec, state) if train else 1.0)


def _evaluate(spec: StepSpec, state: TrainState, batch: Batch) -> tuple[jax.Array, Any]:
    """Logits and what the network sows."""
    variables = _variables(state.params, state.batch_stats)
    if state.ema_params is not None:
        variables = _variables(state.ema_params, state.ema_batch_stats)
    info = _info(spec, state, train=False)
    logits, kept = spec.model.apply(
        variables, batch["image"], _context(batch), info, mutable=["intermediates"]
    )
    _check_logits(logits, batch, info)
    return logits, kept.get("intermediates", {})


def _check_logits(logits: jax.Array, batch: Batch, info: Info) -> None:
    expected = (batch["label"].shape[0], len(info.vocabulary.classes))
    if logits.shape != expected:
        raise ValueError(
            f"model.name: the network gives logits of shape {logits.shape}; expected {expected}, "
            "rows and classes"
        )


def _context(batch: Batch) -> dict[str, jax.Array]:
    """What the head of a network may know of an image."""
    return {name: batch[name] for name in CONTEXT if name in batch}


def _variables(params: Any, batch_stats: Any) -> dict[str, Any]:
    return {"params": params, "batch_stats": batch_stats}


def scores(logits: Any, batch: Batch) -> dict[str, jax.Array]:
    """What `eval_step` gives, of logits [N, K] or of log-probabilities."""
    nll = losses.cross_entropy_rows(logits, batch["label"], 0.0)
    loss = jnp.where(batch["mask"].astype(bool), nll, 0)
    return {"log_probs": jax.nn.log_softmax(logits), "loss": loss}
