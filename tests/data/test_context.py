"""Plates as batches, controls as context: rows by counting, BatchNorm and gradients by PyTorch."""

import itertools
from collections import Counter

import jax
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from screens import tiny_config, tiny_images

from rxrx1_jax.data.samplers import experiments, plates
from rxrx1_jax.data.splits import Split
from rxrx1_jax.training import setup

FIELDS = [("cell_type", "U8"), ("experiment", "U12"), ("plate", "i4"), ("well_type", "U16")]
NONE = np.zeros(0, np.int64)


def screen(sizes):
    """Sites of two plates per experiment; sizes: (treatments, controls) of each plate."""
    plates = itertools.product(("HUVEC", "RPE"), (0, 1), (1, 2))
    rows = [
        (cell_type, f"{cell_type}-{number:02}", plate, kind)
        for (cell_type, number, plate), counts in zip(plates, sizes, strict=True)
        for kind, count in zip(("treatment", "positive_control"), counts, strict=True)
        for _ in range(count)
    ]
    return np.array(rows, FIELDS)


def order_of(sampler, sites, batch_size, seed=0):
    train = np.flatnonzero(sites["well_type"] == "treatment")
    return train, sampler(sites, Split(train, NONE, NONE, NONE, {}), batch_size, seed)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(1, 15), st.integers(1, 9)), min_size=8, max_size=8),
    st.integers(2, 12), st.floats(0, 0.9), st.sampled_from(("plate", "experiment")),
)  # fmt: skip
def test_batches_with_context(sizes, rows_of_part, controls, by):
    sites = screen(sizes)
    count = 1 if by == "plate" else 2
    context = round(controls * rows_of_part)
    sampler = plates(controls) if by == "plate" else experiments(2, controls=controls)
    if context == rows_of_part:
        with pytest.raises(ValueError, match=f"controls {controls}"):
            order_of(sampler, sites, count * rows_of_part)
        return
    train, order = order_of(sampler, sites, count * rows_of_part)
    part = rows_of_part - context
    assert order.per_epoch == len(train) / (count * part)
    group = [f"{e}_{p}" if by == "plate" else e for e, p in sites[["experiment", "plate"]].tolist()]
    before, visits = Counter(), Counter()
    steps = 3 * max(1, round(order.per_epoch))
    for step in range(steps):
        row, epoch, mask = order(step)
        assert mask.sum() == count * part and len(row) == count * rows_of_part
        assert (sites["well_type"][row[mask]] == "treatment").all()
        assert (sites["well_type"][row[~mask]] == "positive_control").all()
        for first in range(0, len(row), rows_of_part):
            (name,) = {group[k] for k in row[first : first + rows_of_part]}
            visits[name] += 1
        for k, again in zip(row.tolist(), epoch.tolist(), strict=True):
            assert before[k] == again  # so no (row, epoch) comes twice
            before[k] += 1
    if by == "plate":  # a plate has batches in proportion to its treatments, within one per epoch
        for name in set(group):
            share = sum(group[k] == name for k in train) / len(train)
            assert abs(visits[name] - steps * share) < 2 * 3 + 1
    again = order_of(sampler, sites.copy(), count * rows_of_part)[1]
    jax.tree.map(np.testing.assert_array_equal, again(steps // 2), order(steps // 2))


def test_without_controls_to_be_context_there_is_none():
    sites = screen([(9, 3)] * 8)
    none = sites[sites["well_type"] == "treatment"]
    jax.tree.map(
        np.testing.assert_array_equal,
        order_of(plates(0.5), none, 8)[1](3), order_of(plates(), none, 8)[1](3),
    )  # fmt: skip
    lacking = sites[(sites["experiment"] != "RPE-01") | (sites["well_type"] == "treatment")]
    with pytest.raises(ValueError, match="RPE-01_1"):
        order_of(plates(0.5), lacking, 8)


@pytest.mark.parametrize("factory", [plates, lambda controls: experiments(1, controls=controls)])
@pytest.mark.parametrize("controls", [-0.1, 1, float("nan")])
def test_an_impossible_share_is_refused(factory, controls):
    with pytest.raises(ValueError, match=f"controls {controls}"):
        factory(controls)


def test_batch_norm_sees_the_context_and_the_loss_does_not():
    """One step of training against PyTorch."""
    images = tiny_images()
    config = tiny_config(
        data__sampler="plates(controls=0.5)", data__cell_type="HUVEC",
        model__name="small_network.network", optim__weight_decay=0.0, optim__ema_decay=0.0,
        optim__warmup_epochs=0.0,
    )  # fmt: skip
    ready = setup.prepare(config, images)
    store, draw = ready.train_store(), next(ready.train_draws(0))
    batch = ready.train_batch(0)
    mask = np.asarray(batch["mask"])
    sites = images.sites[np.asarray(batch["site_index"])]
    assert mask.sum() == 4 and (sites["well_type"][~mask] != "treatment").all()
    assert len(set(sites[["experiment", "plate"]].tolist())) == 1

    before = jax.tree.map(np.asarray, ready.init())
    after, _ = ready.train_step(jax.tree.map(jax.numpy.array, before), store, draw)
    x = torch.tensor(np.asarray(batch["image"]).transpose(0, 3, 1, 2).copy())
    bn1, bn2 = torch.nn.BatchNorm2d(6), torch.nn.BatchNorm1d(6)
    fc = torch.nn.Linear(6, len(ready.vocabulary.classes))
    with torch.no_grad():
        fc.weight.copy_(torch.tensor(before.params["fc"]["kernel"].T.copy()))
        fc.bias.copy_(torch.tensor(before.params["fc"]["bias"].copy()))
    logits = fc(bn2(torch.relu(bn1(x)).mean((2, 3))))
    chosen = torch.tensor(mask)
    label = torch.tensor(np.asarray(batch["label"])[mask].astype(np.int64))
    torch.nn.functional.cross_entropy(logits[chosen], label).backward()
    for name, module, rows in (("bn1", bn1, x.numel() / 6), ("bn2", bn2, len(x))):
        found = after.batch_stats[name]
        np.testing.assert_allclose(found["mean"], module.running_mean, atol=2e-6)
        # PyTorch keeps the unbiased variance: of n values n / (n - 1) of ours.
        var = (module.running_var - 0.9) * (rows - 1) / rows + 0.9
        np.testing.assert_allclose(found["var"], var, rtol=1e-5)
        # The first step of SGD goes by (1 + Nesterov's momentum) times the gradient.
        rate = 0.2 * 1.9
        for ours, theirs in (("scale", module.weight), ("bias", module.bias)):
            expected = theirs.detach().numpy() - rate * theirs.grad.numpy()
            np.testing.assert_allclose(after.params[name][ours], expected, atol=2e-5)
