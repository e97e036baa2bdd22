"""The train state, and what is computed in a step of training, of evaluation and of embedding.

All three are pure functions of (state, batch); `parallel` wraps them for several devices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from rxrx1_jax.model import losses

OPTIMIZERS = ("sgd", "adam")
CONTEXT = ("cell_type", "experiment")  # of a batch, what the head of a network gets
CROSS_ENTROPY = losses.cross_entropy()

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


class TrainState(flax.struct.PyTreeNode):
    """Everything that changes during training; one tree, whatever the number of devices."""

    step: jax.Array  # int32 scalar: updates made so far
    params: Any  # float32
    batch_stats: Any  # running mean and variance of every BatchNorm, float32
    opt_state: optax.OptState
    # Moving averages of params and batch_stats, or None: averaged weights need the statistics that
    # go with them.
    ema_params: Any = None
    ema_batch_stats: Any = None
    loss_state: Any = ()  # what the loss keeps from step to step


def create_schedule(optim: Any, steps: int) -> Callable[[jax.Array | int], jax.Array]:
    """Learning rate of update t = 0 .. steps - 1: linear warm-up, then half a cosine towards 0.

    With w = round(steps * warmup_epochs / epochs): peak * (t + 1) / w for t < w, and
    peak * (1 + cos(pi * (t - w) / (steps - w))) / 2 after it (Goyal et al. 2017, arXiv:1706.02677;
    Loshchilov and Hutter 2017, arXiv:1608.03983).
    """
    if not 0 <= optim.warmup_epochs < optim.epochs:
        raise ValueError(
            f"optim.warmup_epochs is {optim.warmup_epochs}; expected 0 or more and less than "
            f"optim.epochs = {optim.epochs}"
        )
    # At least one step is left to the cosine, however short the run.
    warmup = min(round(steps * optim.warmup_epochs / optim.epochs), steps - 1)
    peak = optim.learning_rate

    def schedule(step: jax.Array | int) -> jax.Array:
        t = jnp.asarray(step, jnp.float32)
        rising = peak * (t + 1) / max(warmup, 1)
        falling = peak * 0.5 * (1 + jnp.cos(jnp.pi * (t - warmup) / (steps - warmup)))
        return jnp.where(t < warmup, rising, falling)

    return schedule


def is_decayed(params: Any) -> Any:
    """Which parameters weight decay acts on: kernels, not biases nor BatchNorm's scale and bias."""
    return jax.tree.map_with_path(lambda path, _: path[-1].key == "kernel", params)


def create_optimizer(
    optim: Any, steps: int
) -> tuple[optax.GradientTransformation, Callable[[jax.Array | int], jax.Array]]:
    """SGD or Adam as in torch.optim, and its learning rate for a run of `steps` updates.

    optim: config section with name, learning_rate, momentum and nesterov (of SGD), weight_decay,
    warmup_epochs and epochs. Weight decay is added to the gradient of the kernels (L2), before the
    moments. Adam (Kingma and Ba 2015, arXiv:1412.6980) has decay rates 0.9 and 0.999.
    Raises ValueError naming the field when a value is impossible.
    """
    if steps < 1:
        raise ValueError(f"a run needs at least one step, found {steps}; raise optim.epochs")
    if optim.learning_rate <= 0 or not 0 <= optim.momentum < 1 or optim.weight_decay < 0:
        raise ValueError(
            "optim needs learning_rate > 0, 0 <= momentum < 1 and weight_decay >= 0; found "
            f"{optim.learning_rate}, {optim.momentum} and {optim.weight_decay}"
        )
    schedule = create_schedule(optim, steps)
    update = (
        optax.adam(schedule)
        if optim.name == "adam"
        else optax.sgd(schedule, momentum=optim.momentum, nesterov=optim.nesterov)
    )
    tx = optax.chain(optax.add_decayed_weights(optim.weight_decay, mask=is_decayed), update)
    return tx, schedule


def create_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    key: jax.Array,
    image_shape_hwc: tuple[int, int, int],
    ema: bool,
    loss: losses.Loss = CROSS_ENTROPY,
) -> TrainState:
    """The state before the first update; a pure function of the key. ema: keep averaged params."""

    # A program that runs once: XLA's CPU back-end compiles it up to three times faster at its first
    # level of optimization, and the values are the same bits.
    options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None

    @partial(jax.jit, compiler_options=options)
    def initialise(key: jax.Array) -> TrainState:
        images, code = jnp.zeros((1, *image_shape_hwc), jnp.float32), jnp.zeros(1, jnp.int32)
        batch = dict.fromkeys(CONTEXT, code)
        variables = model.init(key, images, train=False, batch=batch)
        params = variables["params"]
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=variables["batch_stats"],
            opt_state=tx.init(params),
            # A copy: the state is donated to the step, and one buffer cannot be donated twice.
            ema_params=jax.tree.map(jnp.copy, params) if ema else None,
            ema_batch_stats=jax.tree.map(jnp.copy, variables["batch_stats"]) if ema else None,
            loss_state=jax.tree.map(jnp.asarray, loss.state),
        )

    return initialise(key)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: nn.Module,
    tx: optax.GradientTransformation,
    schedule: Callable[[jax.Array | int], jax.Array],
    loss: losses.Loss = CROSS_ENTROPY,
    label_smoothing: float = 0.0,
    ema_decay: float = 0.0,
    accumulation: int = 1,
    axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
    """One update. batch: image float [N, H, W, C], label int32 [N], mask bool [N], and what the
    network's head and the loss read.

    Returns the new state and float32 scalars on the device: `loss` and `accuracy` over the rows
    whose mask is true, `gradient_norm` (before weight decay) and `learning_rate` of this update.
    Masked rows count nothing in loss, accuracy and gradient; BatchNorm sees them, which is why
    training batches are never padded. With ema_decay d, ema = d * ema + (1 - d) * new, of
    params and of batch_stats.

    loss: the mean of what it gives for the rows is minimised. Of a batch that mixes images it finds
    the target `share` on label and 1 - `share` on `other_label` in outputs["cross_entropy"].

    accumulation: number of micro-batches the batch is cut into, their gradients summed; each has
    its own BatchNorm statistics and updates the running values in turn. The loop over them is
    unrolled, as XLA's CPU back-end runs convolutions inside `scan` many times slower.
    """
    pmean = partial(jax.lax.pmean, axis_name=axis_name) if axis_name else lambda x: x
    rows = batch["label"].shape[0]
    if rows % accumulation:
        raise ValueError(
            f"optim.accumulation is {accumulation}, which does not divide the {rows} rows of a "
            "batch; change it or optim.batch_size"
        )
    mask = batch["mask"].astype(jnp.float32)
    # Mean over devices: with pmean of the sums below it makes the quotient the global one.
    count = jnp.maximum(pmean(jnp.sum(mask)), 1e-6)

    def loss_fn(params, batch_stats, loss_state, batch):
        logits, updated = model.apply(
            {"params": params, "batch_stats": batch_stats}, batch["image"], train=True,
            batch=_context(batch), mutable=["batch_stats", "intermediates"],
        )  # fmt: skip
        sown = updated.get("intermediates", {})
        outputs = {name: value for name, (value,) in sown.items()}
        outputs["logits"] = logits
        smoothed = partial(losses.cross_entropy_rows, logits, label_smoothing=label_smoothing)
        outputs["cross_entropy"] = losses.of_target(smoothed, batch)
        given = {name: x for name, x in batch.items() if name != "image"}
        rows, loss_state = loss.function(outputs, given, loss_state)
        mask = batch["mask"].astype(jnp.float32)
        correct = jnp.sum(jnp.where(jnp.argmax(logits, -1) == batch["label"], mask, 0))
        # The mean over devices belongs here and over the gradients below: with only the second,
        # gradients inside shard_map come out too large by the number of devices.
        mean = pmean(jnp.sum(jnp.where(mask > 0, rows, 0)) / count)
        return mean, (updated["batch_stats"], loss_state, pmean(correct / count))

    batch_stats, loss_state = state.batch_stats, state.loss_state
    mean_loss, accuracy, grads = 0.0, 0.0, None
    for i in range(accumulation):
        # Every accumulation-th row, so that a sharded batch is cut without moving rows.
        part_batch = {
            name: x.reshape(rows // accumulation, accumulation, *x.shape[1:])[:, i]
            for name, x in batch.items()
        }
        (part_loss, aux), part = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params, batch_stats, loss_state, part_batch
        )
        batch_stats, loss_state, part_accuracy = aux
        mean_loss, accuracy = mean_loss + part_loss, accuracy + part_accuracy
        grads = part if grads is None else jax.tree.map(jnp.add, grads, part)
    # Running statistics are averaged too, so that every device keeps the same state.
    grads, batch_stats = pmean(grads), pmean(batch_stats)

    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = (state.ema_params, state.ema_batch_stats)
    if state.ema_params is not None:
        ema = jax.tree.map(
            lambda old, new: ema_decay * old + (1 - ema_decay) * new, ema, (params, batch_stats)
        )
    metrics = {
        "loss": mean_loss,
        "accuracy": accuracy,
        "gradient_norm": optax.tree.norm(grads),
        "learning_rate": schedule(state.step),
    }
    state = TrainState(state.step + 1, params, batch_stats, opt_state, *ema, loss_state)
    return state, metrics


def eval_step(
    state: TrainState, batch: Batch, *, model: nn.Module, axis_name: str | None = None
) -> dict[str, jax.Array]:
    """Log-probabilities and loss of each row, with the averaged parameters where there are any.

    batch as in `train_step`. Returns log_probs float32 [N, K] and loss float32 [N], the negative
    log-likelihood of the label without smoothing, 0 in masked rows. Rows do not depend on each
    other, so nothing is communicated under axis_name.
    """
    del axis_name
    logits = model.apply(_variables(state), batch["image"], train=False, batch=_context(batch))
    return _scores(logits, batch)


def embed_step(
    state: TrainState, batch: Batch, *, model: nn.Module, axis_name: str | None = None
) -> dict[str, jax.Array]:
    """As `eval_step`, and embedding float32 [N, d], the input of the network's last layer."""
    del axis_name
    logits, kept = model.apply(
        _variables(state), batch["image"], train=False, batch=_context(batch),
        mutable=["intermediates"],
    )  # fmt: skip
    (embedding,) = kept["intermediates"]["embedding"]
    return _scores(logits, batch) | {"embedding": embedding.astype(jnp.float32)}


def _context(batch: Batch) -> dict[str, jax.Array]:
    """What the head of a network may know of an image."""
    return {name: batch[name] for name in CONTEXT if name in batch}


def _variables(state: TrainState) -> dict[str, Any]:
    if state.ema_params is None:
        return {"params": state.params, "batch_stats": state.batch_stats}
    return {"params": state.ema_params, "batch_stats": state.ema_batch_stats}


def _scores(logits: Any, batch: Batch) -> dict[str, jax.Array]:
    nll = losses.cross_entropy_rows(logits, batch["label"], 0.0)
    loss = jnp.where(batch["mask"].astype(bool), nll, 0)
    return {"log_probs": jax.nn.log_softmax(logits), "loss": loss}
