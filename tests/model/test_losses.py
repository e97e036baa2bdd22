"""losses.py against NumPy loops over pairs, PyTorch's automatic gradients, and by hand."""

import itertools
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rxrx1_jax.config import FIELDS
from rxrx1_jax.data.images import Vocabulary
from rxrx1_jax.data.info import Info
from rxrx1_jax.model import losses

ROWS, FEATURES, CLASSES, EXPERIMENTS = 12, 5, 7, 45
VOCABULARY = Vocabulary(tuple("abc"), tuple(map(str, range(EXPERIMENTS))), np.arange(CLASSES))
INFO = Info(VOCABULARY)
CELL_TYPE_OF = {3: 0, 9: 0, 10: 0, 20: 1, 21: 1, 40: 2}  # of experiments
MIXED = (3, 9, 9, 20, 10, 3, 9, 21, 20, 10, 3, 40)  # 40 has a single row


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def make_batch(experiments=MIXED, labels=None, **more):
    rng = np.random.default_rng(1)
    labels = rng.integers(0, CLASSES, len(experiments)) if labels is None else labels
    return {
        "label": np.int32(labels),
        "experiment": np.int32(experiments),
        "cell_type": np.int32([CELL_TYPE_OF[e] for e in experiments]),
        "mask": np.ones(len(experiments), bool),
    } | more


def make_outputs(rows=ROWS, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "logits": rng.normal(0, 2, (rows, CLASSES)),
        "embedding": rng.normal(1, 1, (rows, FEATURES)),
        "cosine": rng.uniform(-1, 1, (rows, CLASSES)),
        "domain_logits": rng.normal(0, 2, (rows, EXPERIMENTS)),
        "cross_entropy": rng.uniform(1, 3, rows),
    }


def rows_of(batch):
    """Experiment -> positions of its rows, masked rows left out."""
    valid = np.flatnonzero(batch["mask"])
    return {e: valid[batch["experiment"][valid] == e] for e in set(batch["experiment"][valid])}


@cache  # compiled once a shape
def compiled(loss_function):
    """Compiled function (outputs, batch, state) -> losses, state, gradients of their sum."""

    def total(outputs, batch, state):
        found, state = loss_function(outputs, batch, state, INFO)
        return jnp.sum(found), (found, state)

    def function(outputs, batch, state):
        gradients, (found, state) = jax.grad(total, has_aux=True)(outputs, batch, state)
        return found, state, gradients

    return jax.jit(function)


def added(loss, outputs, batch):
    """What a loss adds to the cross-entropy of the rows: one number for all of them."""
    found, _, _ = compiled(loss.function)(outputs, batch, loss.init(VOCABULARY))
    difference = np.asarray(found) - outputs["cross_entropy"]
    np.testing.assert_allclose(difference, difference[0], rtol=0, atol=1e-12)
    return difference[0]


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cross_entropy_rows_is_torch(label_smoothing):
    logits, labels = make_outputs()["logits"], make_batch()["label"]
    expected = F.cross_entropy(
        torch.tensor(logits), torch.tensor(labels).long(), reduction="none",
        label_smoothing=label_smoothing,
    )  # fmt: skip
    found = losses.cross_entropy_rows(jnp.asarray(logits), jnp.asarray(labels), label_smoothing)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-12)


def torch_arcface(cosines, labels, margin, scale):
    """By the angle itself. insightface's rule where angle + margin passes pi."""
    label = F.one_hot(labels, cosines.shape[1]).bool()
    angle = torch.acos(cosines)
    moved = torch.where(
        angle + margin < torch.pi, torch.cos(angle + margin), cosines - margin * np.sin(margin)
    )
    return F.cross_entropy(scale * torch.where(label, moved, cosines), labels, reduction="none")


@pytest.mark.parametrize("mixed", [False, True])
def test_arcface_and_its_gradient_are_torchs(mixed):
    batch, outputs = make_batch(), make_outputs()
    labels = batch["label"]
    outputs["cosine"][0, labels[0]] = -0.95  # angle + margin passes pi
    if mixed:
        rng = np.random.default_rng(2)
        batch["other_label"] = np.roll(labels, -1)
        batch["share"] = rng.uniform(0, 1, ROWS).astype(np.float32)
    loss = losses.arcface(margin=0.4, scale=16.0)

    found, _, gradients = compiled(loss.function)({"cosine": outputs["cosine"]}, batch, ())
    cosines = torch.tensor(outputs["cosine"], requires_grad=True)
    expected = torch_arcface(cosines, torch.tensor(labels).long(), 0.4, 16.0)
    if mixed:
        share = torch.tensor(batch["share"]).double()
        other = torch.tensor(batch["other_label"]).long()
        expected = share * expected + (1 - share) * torch_arcface(cosines, other, 0.4, 16.0)
    expected.sum().backward()
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-10)
    np.testing.assert_allclose(gradients["cosine"], cosines.grad.numpy(), rtol=1e-8, atol=1e-10)


def test_arcface_beside_the_cross_entropy_is_added_to_it():
    batch, outputs = make_batch(), make_outputs()
    alone = losses.arcface(0.4, 16.0).function(outputs, batch, (), INFO)[0]
    found = losses.arcface(0.4, 16.0, beside=0.2).function(outputs, batch, (), INFO)[0]
    np.testing.assert_allclose(found, outputs["cross_entropy"] + 0.2 * alone, rtol=1e-6)


def test_arcface_grows_with_the_angle_and_has_finite_gradients_at_its_ends():
    loss = losses.arcface()

    angles = np.linspace(0, np.pi, 60)
    cosines = np.stack([np.cos(angles), np.full(60, 0.9)], 1)
    batch = {"label": np.zeros(60, np.int32)}
    values = np.asarray(loss.function({"cosine": cosines}, batch, (), INFO)[0])
    assert values[0] > 1e-3 and np.all(np.diff(values) > 0)

    cosines = np.float32([[-1, 0.9], [1, 0.9], [1 + 1e-6, 0.9]])  # rounding can pass 1
    batch = {"label": np.zeros(3, np.int32)}
    _, _, gradients = compiled(loss.function)({"cosine": cosines}, batch, ())
    assert np.isfinite(gradients["cosine"]).all() and gradients["cosine"].any()


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


def masked(batch, positions):
    mask = np.ones(len(batch["label"]), bool)
    mask[list(positions)] = False
    return batch | {"mask": mask}


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


LOSSES = {name: getattr(losses, name)() for name in FIELDS["optim.loss"].valid}
DEGENERATE = {
    "one experiment": make_batch((3,) * 6),
    "one row a domain": make_batch((3, 9, 10, 20, 21, 40)),
    "one row": make_batch((3,)),
    "no positives": make_batch((3, 3, 9, 9, 3, 9), labels=[0, 1, 2, 3, 4, 5]),
    "one siRNA": make_batch((3, 3, 9, 9, 3, 9), labels=[2] * 6),
    "one row not masked": masked(make_batch((3, 9, 3, 9, 3, 9)), range(5)),
    "all rows masked": masked(make_batch((3, 9, 3, 9, 3, 9)), range(6)),
}


@pytest.mark.parametrize("name", FIELDS["optim.loss"].valid)
def test_any_batch_has_finite_losses_and_gradients(name):
    loss = LOSSES[name]
    for batch, constant in itertools.product(DEGENERATE.values(), (None, 0.0, 1.0)):
        rows = len(batch["label"])
        outputs = make_outputs(rows)
        if constant is not None:  # all rows equal, and all zero
            outputs["embedding"][:] = constant
            outputs["cosine"][:] = constant
        outputs = {key: np.float32(x) for key, x in outputs.items()}
        found, state, gradients = compiled(loss.function)(outputs, batch, loss.init(VOCABULARY))
        assert found.shape == (rows,) and found.dtype == np.float32
        for x in jax.tree.leaves((found, state, gradients)):
            assert np.isfinite(x).all()
        assert jax.tree.map(np.shape, state) == jax.tree.map(np.shape, loss.init(VOCABULARY))


@pytest.mark.parametrize(
    "name, batches",
    [
        ("coral", ("one experiment", "one row a domain", "one row not masked", "all rows masked")),
        ("irm", ("one row a domain", "one row not masked", "all rows masked")),
        ("dann", ("one experiment",)),
        ("cross_experiment_contrastive", ("one experiment", "no positives", "all rows masked")),
    ],
)
def test_nothing_to_compare_is_penalty_zero(name, batches):
    for batch in (DEGENERATE[which] for which in (*batches, "one row")):
        assert added(LOSSES[name], make_outputs(len(batch["label"])), batch) == 0


@pytest.mark.parametrize("name", FIELDS["optim.loss"].valid)
def test_masked_rows_change_nothing_for_the_others(name):
    loss, batch, outputs = LOSSES[name], masked(make_batch(), (2, 7, 11)), make_outputs()
    keep = batch["mask"]
    other = {key: np.where(keep[:, None] if x.ndim > 1 else keep, x, -x)
             for key, x in outputs.items()}  # fmt: skip
    found, state, _ = compiled(loss.function)(outputs, batch, loss.init(VOCABULARY))
    changed, other_state, _ = compiled(loss.function)(other, batch, loss.init(VOCABULARY))
    np.testing.assert_allclose(changed[keep], found[keep], rtol=1e-12)
    np.testing.assert_array_equal(state, other_state)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: losses.coral(-1.0), "coral: weight.*-1.0"),
        (lambda: losses.irm(-1.0), "irm: weight.*-1.0"),
        (lambda: losses.dann(-1.0), "dann: weight.*-1.0"),
        (lambda: losses.group_dro(-0.1), "group_dro: step_size.*-0.1"),
        (lambda: losses.arcface(margin=3.2), "arcface: margin.*3.2"),
        (lambda: losses.arcface(beside=-1.0), "arcface: beside.*-1"),
        (lambda: losses.cross_experiment_contrastive(temperature=0.0), "temperature 0.0"),
    ],
)
def test_impossible_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "loss, more, message",
    [
        (losses.arcface(), {}, "model.head.*'cosine'"),
        (losses.dann(), {}, "model.head.*'domain_adversary'"),
        (losses.cross_experiment_contrastive(), {"share": np.ones(12)}, "data.augmentation"),
    ],
)
def test_a_loss_that_lacks_its_input_says_what_to_set(loss, more, message):
    outputs = make_outputs()
    outputs = {name: outputs[name] for name in ("logits", "embedding", "cross_entropy")}
    with pytest.raises(ValueError, match=message):
        loss.function(outputs, make_batch(**more), loss.init(VOCABULARY), INFO)
