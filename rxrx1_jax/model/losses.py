"""Losses: what training minimises.

Each factory below returns a `Loss`: a function (outputs, batch, state, info) -> (losses [N], state)
and init(vocabulary) -> state, the state it starts with. The mean of the losses over the rows is
minimised.

  outputs: logits [N, K]; embedding [N, d], the input of the head; cross_entropy [N], with label
    smoothing, and of the mixed target where images were mixed; and whatever the head has sown.
  batch: label, experiment, cell_type int32 [N] and mask bool [N]; other_label int32 [N] and share
    float [N] where an augmentation mixes images. Masked rows have no influence on the other rows.
  state: arrays, saved in checkpoints. A loss without a state leaves `init` out.
  info: an `Info`; the codes of the batch are positions in its vocabulary.

A domain is an experiment, which has one cell type; a row of mixed images belongs to the experiment
of its own image. A penalty of the whole batch is added to every row. "The batch" is what the
function is given: under pmap a device's share, with accumulation a part. The penalties compare
rows of one experiment with each other, so they need several rows per experiment: use a sampler that
draws few experiments per batch. A batch with nothing to compare has penalty 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rxrx1_jax.data.images import Vocabulary
from rxrx1_jax.data.info import Info
from rxrx1_jax.model.domains import domains, gram, mean_where, squared_distances
from rxrx1_jax.model.heads import normalise, wide

Arrays = Mapping[str, jax.Array]
Rows = tuple[jax.Array, Any]  # losses [N], state


class Loss(NamedTuple):
    """A loss of rows, and how its state starts (arrays, or nothing)."""

    function: Callable[[Arrays, Arrays, Any, Info], Rows]
    init: Callable[[Vocabulary], Any] = lambda vocabulary: ()


def cross_entropy_rows(
    logits: jax.Array, labels: jax.Array, label_smoothing: float | jax.Array
) -> jax.Array:
    """Negative log-likelihood of each row: [N, K], int32 [N] -> [N].

    The target is 1 - label_smoothing on the label plus label_smoothing / K on every class, as in
    torch.nn.CrossEntropyLoss. label_smoothing: may be traced.
    """
    log_probs = jax.nn.log_softmax(logits)
    nll = -jnp.take_along_axis(log_probs, labels[:, None], axis=1)[:, 0]
    if isinstance(label_smoothing, float) and label_smoothing == 0:
        return nll
    label_smoothing = jnp.asarray(label_smoothing, log_probs.dtype)
    # In the order in which XLA computes it of a constant, too. Where there is none, a class that is
    # impossible (-inf) says nothing.
    spread = jnp.sum(log_probs, axis=1) * (label_smoothing * (1 / logits.shape[1]))
    return jnp.where(label_smoothing > 0, (1 - label_smoothing) * nll - spread, nll)


def of_target(rows: Callable[[jax.Array], jax.Array], batch: Arrays) -> jax.Array:
    """rows(labels) of the target: share * rows(label) + (1 - share) * rows(other_label) if mixed.

    rows: int32 [N] -> [N]. Without `share` in the batch this is rows(label).
    """
    values = rows(batch["label"])
    if "share" not in batch:
        return values
    share = batch["share"].astype(values.dtype)
    return share * values + (1 - share) * rows(batch["other_label"])


def cross_entropy() -> Loss:
    """The cross-entropy of the logits, with label smoothing and mixing as configured."""
    return Loss(lambda outputs, batch, state, info: (outputs["cross_entropy"], state))


def arcface(margin: float = 0.5, scale: float = 30.0, beside: float = 0.0) -> Loss:
    """Cross-entropy of scale * cosine with `margin` (radians) added to the angle of the label.

    Additive angular margin (Deng et al. 2019, arXiv:1801.07698, eq. 3). Where angle + margin would
    pass pi, cos(angle) - margin * sin(margin) takes its place, as in the authors' code: it keeps
    falling. Of a mixed target the losses of both labels are averaged by share; label smoothing has
    no effect. Needs the head `cosine`, with the same scale if its probabilities are to be used.
    With beside > 0 the loss is the cross-entropy of the logits plus beside * this; then the head
    may be `linear_and_cosine`, too. Raises ValueError unless 0 <= margin < pi, scale > 0 and
    beside >= 0, or when the head is another.
    """
    _check("arcface: beside", beside)
    if not 0 <= margin < math.pi or scale <= 0:
        raise ValueError(
            f"arcface: margin is {margin} and scale {scale}; expected 0 to pi and more than 0"
        )

    def function(outputs: Arrays, batch: Arrays, state: Any, info: Info) -> Rows:
        if "cosine" not in outputs:
            raise ValueError("loss arcface needs cosines: set model.head to 'cosine', with a neck")
        cosines = outputs["cosine"]
        # The floor keeps the gradient of the root finite at angle 0 and pi.
        sine = jnp.sqrt(jnp.maximum(1 - cosines**2, 1e-6))
        moved = jnp.where(
            cosines > -math.cos(margin),
            cosines * math.cos(margin) - sine * math.sin(margin),
            cosines - margin * math.sin(margin),
        )

        def rows(labels: jax.Array) -> jax.Array:
            is_label = labels[:, None] == jnp.arange(cosines.shape[1], dtype=labels.dtype)[None, :]
            return cross_entropy_rows(scale * jnp.where(is_label, moved, cosines), labels, 0.0)

        found = of_target(rows, batch)
        return outputs["cross_entropy"] + beside * found if beside else found, state

    return Loss(function)


def coral(weight: float = 1.0, across: bool = False) -> Loss:
    """Adds weight * mean over pairs of domains of |m_a - m_b|^2 / d + |C_a - C_b|^2 / d^2.

    Deep CORAL (Sun and Saenko 2016, arXiv:1607.01719) as in WILDS (Koh et al. 2021,
    arXiv:2012.07421), m and C (ddof 1, Frobenius norm) being mean and covariance of the embedding
    in a domain. Pairs are of one cell type; with across=True of any, as in WILDS, which gives
    RxRx1 weight 0.1 and 9 experiments a batch. Domains with a single row have no covariance and
    take no part. Raises ValueError if weight < 0.
    """
    _check("coral: weight", weight)

    def function(outputs: Arrays, batch: Arrays, state: Any, info: Info) -> Rows:
        x, valid = wide(outputs["embedding"]), batch["mask"].astype(bool)[:, None]
        rows, features = x.shape
        domain, count = domains(batch, x.dtype)
        total = partial(jax.ops.segment_sum, segment_ids=domain, num_segments=rows)
        # Distances do not depend on the origin; near the data they lose fewer digits.
        middle = jnp.sum(jnp.where(valid, x, 0), 0) / jnp.maximum(jnp.sum(count), 1)
        x = jnp.where(valid, x - middle[None, :], 0)
        means = total(x) / jnp.maximum(count, 1)[:, None]
        # tr(C_a C_b) is the sum of the squared inner products of the centred rows of a and of b:
        # N^2 d operations, and no d x d matrix.
        products = total(total(gram(x - means[domain]) ** 2).T)
        freedom = jnp.maximum(count - 1, 1)
        traces = products / (freedom[:, None] * freedom[None, :])
        mean_distances, distances = (squared_distances(p) for p in (gram(means), traces))
        distances = mean_distances / features + distances / features**2
        # Domain a is numbered by its first row, whose cell type it has.
        cell_type, several = batch["cell_type"], count > 1
        pairs = across | (cell_type[:, None] == cell_type[None, :])
        pairs &= several[:, None] & several[None, :]
        return _add(weight, mean_where(jnp.triu(pairs, 1), distances), outputs), state

    return Loss(function)


def irm(weight: float = 1.0) -> Loss:
    """Adds weight * mean over domains of (d/ds mean cross-entropy of the logits s z at s = 1)^2.

    IRMv1 (Arjovsky et al. 2019, arXiv:1907.02893, eq. 4). For one row the derivative is
    g = sum_k p_k z_k - z_label. The square of a mean over n rows exceeds the square of the
    expectation by variance / n, so the estimator is the mean of g_i g_j over the pairs i != j:
    unbiased, like the product of two halves of the rows in WILDS, and the mean of that product over
    all ways to halve. It can be negative. Domains with a single row take no part. Label smoothing
    has no effect on the penalty. Raises ValueError if weight < 0.
    """
    _check("irm: weight", weight)

    def function(outputs: Arrays, batch: Arrays, state: Any, info: Info) -> Rows:
        z = outputs["logits"]

        def label_logit(labels: jax.Array) -> jax.Array:
            return jnp.take_along_axis(z, labels[:, None], axis=1)[:, 0]

        g = jnp.sum(jax.nn.softmax(z) * z, axis=1) - of_target(label_logit, batch)
        domain, count = domains(batch, z.dtype)
        total = partial(jax.ops.segment_sum, segment_ids=domain, num_segments=len(count))
        penalties = (total(g) ** 2 - total(g**2)) / jnp.maximum(count * (count - 1), 1)
        return _add(weight, mean_where(count > 1, penalties), outputs), state

    return Loss(function)


def group_dro(step_size: float = 0.01) -> Loss:
    """Weighs the experiments by q, which moves towards those with a large loss.

    Sagawa et al. 2020 (arXiv:1911.08731), Algorithm 1: q_g is multiplied by
    exp(step_size * mean loss of g) for the experiments of the batch, normalised, and the loss is
    sum_g q_g * mean loss of g over them, times (experiments seen so far) / (experiments in the
    batch), so that its expectation does not depend on how many experiments share a batch.

    State: q float32 [experiments], which sums to 1; 0 is an experiment not seen yet, and a new one
    enters with the mean of the others. Raises ValueError if step_size < 0.
    """
    _check("group_dro: step_size", step_size)

    def function(outputs: Arrays, batch: Arrays, state: Any, info: Info) -> Rows:
        valid, experiment = batch["mask"].astype(bool), batch["experiment"]
        losses = jnp.where(valid, outputs["cross_entropy"], 0)
        experiments = len(info.vocabulary.experiments)
        total = partial(jax.ops.segment_sum, segment_ids=experiment, num_segments=experiments)
        count = total(valid.astype(losses.dtype))
        mean = jax.lax.stop_gradient(total(losses)) / jnp.maximum(count, 1)

        old = jnp.asarray(state).astype(losses.dtype)
        entry = 1 / jnp.maximum(jnp.sum(old > 0), 1).astype(losses.dtype)
        q = jnp.where((count > 0) & (old == 0), entry, old)
        growth = step_size * mean  # 0 outside the batch
        q = q * jnp.exp(growth - jnp.max(growth))
        # The floor tells a weight that has become very small from "not seen yet".
        seen = (old > 0) | (count > 0)
        q = jnp.where(seen, jnp.maximum(q / jnp.maximum(jnp.sum(q), 1e-30), 1e-30), 0)

        share = jnp.sum(seen) / jnp.maximum(jnp.sum(count > 0), 1)
        by_group = q * share.astype(q.dtype) * jnp.sum(count) / jnp.maximum(count, 1)
        return by_group[experiment] * losses, q.astype(jnp.float32)

    return Loss(function, lambda names: np.zeros(len(names.experiments), np.float32))


def dann(weight: float = 1.0) -> Loss:
    """Adds weight * cross-entropy of the experiment classifier of the head `domain_adversary`.

    Ganin et al. 2016 (arXiv:1505.07818): the classifier minimises it, the features receive the
    reversed gradient. To tell cell types is biology, so a row's experiment is sought among the
    experiments of its cell type only: those seen up to and with this batch.

    State: float32 [cell types, experiments], above 0 where an experiment was seen in a cell type.
    Raises ValueError if weight < 0, or when the head has no domain_logits.
    """
    _check("dann: weight", weight)

    def function(outputs: Arrays, batch: Arrays, state: Any, info: Info) -> Rows:
        if "domain_logits" not in outputs:
            raise ValueError("loss dann needs domain_logits: set model.head to 'domain_adversary'")
        logits, valid = outputs["domain_logits"], batch["mask"].astype(bool)
        experiment, cell_type = batch["experiment"], batch["cell_type"]
        seen = jnp.asarray(state).at[cell_type, experiment].max(valid.astype(jnp.float32))
        # A masked row of an experiment not seen yet would have no candidate at all.
        own = experiment[:, None] == jnp.arange(logits.shape[1], dtype=experiment.dtype)[None, :]
        candidates = jnp.where((seen[cell_type] > 0) | own, logits, -jnp.inf)
        penalty = cross_entropy_rows(candidates, experiment, 0.0)
        return outputs["cross_entropy"] + weight * penalty, seen

    def init(vocabulary: Vocabulary) -> np.ndarray:
        return np.zeros((len(vocabulary.cell_types), len(vocabulary.experiments)), np.float32)

    return Loss(function, init)


def cross_experiment_contrastive(weight: float = 1.0, temperature: float = 0.1) -> Loss:
    """Adds weight * supervised contrastive loss whose positives are from other experiments.

    Khosla et al. 2020 (arXiv:2004.11362, eq. 2, L_out) on the embedding at length 1. For a row,
    positives are the rows of the same siRNA in other experiments (of any cell type) and negatives
    those of other siRNAs; the same siRNA in the same experiment is neither. The mean is over rows
    that have a positive. Raises ValueError unless weight >= 0 and temperature > 0, and when an
    augmentation mixes images, whose rows have no single siRNA.
    """
    if weight < 0 or temperature <= 0:
        raise ValueError(
            f"cross_experiment_contrastive: weight is {weight} and temperature {temperature}; "
            "expected 0 or more and more than 0"
        )

    def function(outputs: Arrays, batch: Arrays, state: Any, info: Info) -> Rows:
        if "share" in batch:
            raise ValueError(
                "loss cross_experiment_contrastive needs one siRNA a row: take the augmentations "
                "that mix images out of data.augmentation"
            )
        label, experiment = batch["label"], batch["experiment"]
        valid = batch["mask"].astype(bool)
        valid = valid[:, None] & valid[None, :]
        same_label = label[:, None] == label[None, :]
        positive = valid & same_label & (experiment[:, None] != experiment[None, :])
        similarity = gram(normalise(wide(outputs["embedding"]), 1)) / temperature
        # Finite, for rows that have nothing to compare with.
        others = jnp.where(positive | (valid & ~same_label), similarity, -1e9)
        normaliser = jax.nn.logsumexp(others, axis=1)
        positives = jnp.sum(positive, axis=1).astype(similarity.dtype)
        attraction = jnp.sum(jnp.where(positive, similarity, 0), 1) / jnp.maximum(positives, 1)
        penalty = mean_where(positives > 0, normaliser - attraction)
        return _add(weight, penalty, outputs), state

    return Loss(function)


def _check(name: str, value: float) -> None:
    if value < 0:
        raise ValueError(f"{name} is {value}; expected 0 or more")


def _add(weight: float, penalty: jax.Array, outputs: Arrays) -> jax.Array:
    losses = outputs["cross_entropy"]
    return losses + weight * penalty.astype(losses.dtype)
