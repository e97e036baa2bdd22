"""Losses that compare experiments, against NumPy loops over pairs and PyTorch's gradients."""

import itertools
from functools import partial

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from loss_batches import (
    CELL_TYPE_OF,
    CLASSES,
    EXPERIMENTS,
    INFO,
    VOCABULARY,
    added,
    compiled,
    make_batch,
    make_outputs,
    masked,
    rows_of,
)  # fmt: skip
from loss_batches import float64 as float64

from rxrx1_jax.model import losses

pytestmark = pytest.mark.usefixtures("float64")


def coral_by_loops(x, batch, across=False):
    """The paper's, which WILDS's coral_penalty is, too: there across cell types."""
    rows = {e: r for e, r in rows_of(batch).items() if len(r) > 1}
    penalties = []
    for pair in itertools.combinations(sorted(rows), 2):
        if across or len({int(batch["cell_type"][rows[e][0]]) for e in pair}) == 1:
            means = [x[rows[e]].mean(0) for e in pair]
            covariances = [np.cov(x[rows[e]], rowvar=False) for e in pair]
            penalties.append(sum(np.mean((a - b) ** 2) for a, b in (means, covariances)))
    return np.mean(penalties)


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("left_out", [(), (0, 4)])  # (0, 4): the first rows of two experiments
def test_coral_is_the_loop_over_pairs_of_experiments(left_out, across):
    batch, outputs = masked(make_batch(), left_out), make_outputs()
    expected = 0.7 * coral_by_loops(outputs["embedding"], batch, across)
    assert expected > 0.1
    found = added(losses.coral(0.7, across), outputs, batch)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_coral_needs_no_float64_far_from_the_origin():
    batch, outputs = make_batch(), make_outputs()
    outputs["embedding"] += 100
    expected = coral_by_loops(outputs["embedding"], batch)
    outputs = {name: np.float32(x) for name, x in outputs.items()}
    outputs["cross_entropy"][:] = 0
    np.testing.assert_allclose(added(losses.coral(), outputs, batch), expected, rtol=1e-4)


def irm_by_torch(logits, batch):
    """Per experiment the product of the gradients of two halves, over all ways to halve."""
    penalties = []
    for rows in rows_of(batch).values():
        if len(rows) < 2:
            continue
        assert len(rows) % 2 == 0
        products = []
        for half in itertools.combinations(rows, len(rows) // 2):
            gradients = []
            for part in (list(half), sorted(set(rows) - set(half))):
                scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
                z, y = torch.tensor(logits[part]), torch.tensor(batch["label"][part]).long()
                loss = F.cross_entropy(scale * z, y)
                gradients.append(torch.autograd.grad(loss, scale)[0].item())
            products.append(gradients[0] * gradients[1])
        penalties.append(np.mean(products))
    return np.mean(penalties)


def test_irm_is_the_mean_over_all_split_halves_by_torch_gradients():
    # Four, four, two and one rows; two more are masked.
    batch = make_batch((3, 9, 3, 20, 9, 3, 9, 9, 20, 3, 40, 3, 20))
    batch = masked(batch, (11, 12))
    outputs = make_outputs(13)
    expected = irm_by_torch(outputs["logits"], batch)
    assert abs(expected) > 0.01
    found = added(losses.irm(0.5), outputs, batch)
    np.testing.assert_allclose(found, 0.5 * expected, rtol=1e-10)


def test_irm_of_a_mixed_target_has_the_derivative_of_its_cross_entropy():
    batch, z = make_batch((3, 3)), make_outputs(2)["logits"]
    batch["other_label"] = (batch["label"] + 1) % CLASSES
    batch["share"] = np.float32([0.25, 0.5])

    def cross_entropy(scale, i):
        log_probs = jax.nn.log_softmax(scale * z[i])
        share = float(batch["share"][i])
        labels = batch["label"][i], batch["other_label"][i]
        return -share * log_probs[labels[0]] - (1 - share) * log_probs[labels[1]]

    derivative = jax.jit(jax.grad(cross_entropy), static_argnums=1)
    expected = np.prod([derivative(1.0, i) for i in range(2)])
    outputs = {"logits": z, "cross_entropy": np.ones(2)}
    np.testing.assert_allclose(added(losses.irm(), outputs, batch), expected, rtol=1e-10)


def group_dro_step(q, outputs, batch, step_size):
    """Algorithm 1 with the groups of a batch, as dictionaries: (objective, q after the step)."""
    groups = {e: outputs["cross_entropy"][rows].mean() for e, rows in rows_of(batch).items()}
    known = dict(q)
    for e in groups:
        known.setdefault(e, np.mean(list(q.values())) if q else 1.0)
    q = {e: w * np.exp(step_size * groups.get(e, 0.0)) for e, w in known.items()}
    q = {e: w / sum(q.values()) for e, w in q.items()}
    objective = sum(q[e] * loss for e, loss in groups.items()) * len(q) / len(groups)
    return objective, q


def test_group_dro_follows_the_algorithm_step_by_step():
    loss, q = losses.group_dro(step_size=0.3), {}
    function, state = jax.jit(partial(loss.function, info=INFO)), loss.init(VOCABULARY)
    for step, experiments in enumerate([(3, 9, 3), (9, 20, 20), (3, 3, 3), (40, 9, 3), (9, 3, 20)]):
        batch, outputs = make_batch(experiments), make_outputs(3, seed=step)
        batch = masked(batch, (2,) if step == 2 else ())
        outputs["cross_entropy"] *= 1 + 4 * (batch["experiment"] == 9)
        objective, q = group_dro_step(q, outputs, batch, 0.3)
        found, state = function(outputs, batch, state)
        mean = np.asarray(found).sum() / batch["mask"].sum()
        np.testing.assert_allclose(mean, objective, rtol=1e-6)
        np.testing.assert_allclose(state, [q.get(e, 0) for e in range(EXPERIMENTS)], rtol=1e-5)
    assert state.dtype == np.float32 and max(q, key=q.get) == 9


def test_group_dro_forgets_no_experiment_however_small_its_weight():
    loss = losses.group_dro(step_size=50.0)
    batch, outputs = make_batch((3, 9)), make_outputs(2)
    outputs["cross_entropy"] = np.float32([100.0, 0.1])
    state = loss.init(VOCABULARY)
    for _ in range(3):
        found, state = jax.jit(partial(loss.function, info=INFO))(outputs, batch, state)
        assert np.isfinite(found).all() and np.isfinite(state).all()
    assert 0 < state[9] < 1e-20 and state[3] == 1


def test_dann_asks_for_the_experiment_among_those_of_the_cell_type():
    loss, seen = losses.dann(0.5), set()
    function, state = jax.jit(partial(loss.function, info=INFO)), loss.init(VOCABULARY)
    for step, experiments in enumerate([(3, 20, 9, 3), (10, 21, 40, 3)]):
        batch, outputs = make_batch(experiments), make_outputs(4, seed=step)
        seen |= set(experiments)
        expected = []
        for e, logits in zip(experiments, outputs["domain_logits"], strict=True):
            candidates = [c for c in seen if CELL_TYPE_OF[c] == CELL_TYPE_OF[e]]
            expected.append(np.log(np.exp(logits[candidates]).sum()) - logits[e])
        found, state = function(outputs, batch, state)
        found = found - outputs["cross_entropy"]
        np.testing.assert_allclose(found, 0.5 * np.array(expected), rtol=1e-10, atol=1e-12)
    assert found[2] == 0  # 40 is the only one of its cell type


def test_dann_learns_no_experiment_from_masked_rows():
    loss, batch = losses.dann(), masked(make_batch((3, 9)), (1,))
    found, state, _ = compiled(loss.function)(make_outputs(2), batch, loss.init(VOCABULARY))
    assert np.isfinite(found).all()
    assert np.argwhere(state).tolist() == [[0, 3]]


def contrastive_by_loops(x, batch, temperature):
    z = x / np.linalg.norm(x, axis=1, keepdims=True)
    labels, experiments, valid = batch["label"], batch["experiment"], batch["mask"]
    terms = []
    for i in np.flatnonzero(valid):
        positives, others = [], []
        for j in np.flatnonzero(valid):
            if labels[j] != labels[i]:
                others.append(z[i] @ z[j] / temperature)
            elif experiments[j] != experiments[i]:
                positives.append(z[i] @ z[j] / temperature)
        if positives:
            normaliser = np.log(np.sum(np.exp(positives + others)))
            terms.append(np.mean([normaliser - p for p in positives]))
    return np.mean(terms)


@pytest.mark.parametrize("left_out", [(), (0, 7)])
def test_contrastive_is_the_double_loop(left_out):
    # Rows 1 and 2 share siRNA and experiment; siRNA 5 has one row.
    batch = make_batch(labels=[0, 1, 1, 1, 0, 2, 2, 0, 2, 1, 5, 1])
    batch, outputs = masked(batch, left_out), make_outputs()
    expected = contrastive_by_loops(outputs["embedding"], batch, 0.2)
    found = added(losses.cross_experiment_contrastive(2.0, 0.2), outputs, batch)
    np.testing.assert_allclose(found, 2 * expected, rtol=1e-10)
