"""losses.py against PyTorch's automatic gradients and by hand, and what holds for every loss."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from loss_batches import INFO, ROWS, VOCABULARY, added, compiled, make_batch, make_outputs, masked
from loss_batches import float64 as float64

from rxrx1_jax.config import FIELDS
from rxrx1_jax.model import losses

pytestmark = pytest.mark.usefixtures("float64")


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
