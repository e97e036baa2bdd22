"""Samplers on small screens of any shape, against counting by hand."""

import hashlib
import logging
import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from screens import tiny_images

from rxrx1_jax.data import orders, samplers
from rxrx1_jax.data.samplers import cross_experiment_pairs, experiments, shuffled
from rxrx1_jax.data.splits import Split

FIELDS = [("cell_type", "U8"), ("experiment", "U12"), ("sirna_id", "i4"), ("site", "i4")]
PROPERTY = settings(max_examples=40, deadline=None, derandomize=True)
SCREEN = {"HUVEC": (40, 37, 40), "RPE": (18, 25), "U2OS": (9, 3, 4, 5)}


def screen(sizes, sirnas=5):
    """Sites of {cell_type: sites of each experiment}; siRNA 0 is the most frequent."""
    rows = [
        (cell_type, f"{cell_type}-{number:02}", site * site % sirnas, site)
        for cell_type, counts in sizes.items()
        for number, count in enumerate(counts)
        for site in range(count)
    ]
    return np.array(rows, FIELDS)


def shuffled_screen(sizes, seed, sirnas):
    """The same with siRNAs at random, in any order."""
    rng, sites = np.random.default_rng(seed), screen(sizes)
    sites["sirna_id"] = rng.integers(sirnas, size=len(sites))
    return rng.permutation(sites)


def screens(least):
    """Any small screen with `least` or more experiments of every cell type."""
    counts = st.lists(st.integers(1, 40), min_size=least, max_size=5)
    sizes = st.dictionaries(st.sampled_from(("HUVEC", "RPE", "U2OS")), counts, min_size=1)
    return st.builds(shuffled_screen, sizes, st.integers(0, 99), st.integers(1, 12))


def order_of(factory, sites, batch_size, seed, train=None):
    """Step -> (positions, epochs), of a split that trains on all sites; the mask is checked."""
    none = np.zeros(0, np.int64)
    train = np.arange(len(sites)) if train is None else train
    order = factory(sites, Split(train, none, none, none, {}), batch_size, seed)
    assert order.per_epoch == len(train) / batch_size

    def choose(step):
        row, epoch, mask = order(step)
        assert (row.dtype, epoch.dtype, mask.dtype) == (np.int64, np.int32, np.bool_)
        assert mask.all() and len(row) == len(epoch) == len(mask) == batch_size
        return row, epoch

    return choose


def digest(order, steps):
    packed = b"".join(part.astype("<i8").tobytes() for k in range(steps) for part in order(k))
    return hashlib.blake2b(packed, digest_size=8).hexdigest()


def test_seeds_of_shuffled():
    """No epoch of a seed is an epoch of another one, which may be of any size."""
    sites = np.zeros(50, FIELDS)
    epochs = {
        (seed, k): tuple(order_of(shuffled(), sites, 50, seed)(k)[0].tolist())
        for seed in (0, 1, -1, 2**40)
        for k in range(3)
    }
    assert len(set(epochs.values())) == 12


@PROPERTY
@given(st.integers(1, 60), st.integers(1, 70), st.integers(-5, 5))
def test_shuffled_is_one_permutation_after_another(count, batch_size, seed):
    order = order_of(shuffled(), np.zeros(count, FIELDS), batch_size, seed)
    batches = [order(k) for k in range(-(-4 * count // batch_size))]
    rows, epochs = (np.concatenate(part)[: 4 * count] for part in zip(*batches, strict=True))
    assert (np.sort(rows.reshape(4, count)) == np.arange(count)).all()
    np.testing.assert_array_equal(epochs, np.arange(4 * count) // count)


def test_shuffled_is_uniform():
    """Every site comes first equally often, and every neighbour follows it equally often."""
    order = order_of(shuffled(), np.zeros(4, FIELDS), 4, 0)
    first, pairs = Counter(), Counter()
    for k in range(2400):
        rows = order(k)[0].tolist()
        first[rows[0]] += 1
        pairs[tuple(rows[:2])] += 1
    assert len(pairs) == 12 and all(abs(n - 200) < 60 for n in pairs.values())  # sd 13.5
    assert all(abs(n - 600) < 90 for n in first.values())  # sd 21


@pytest.mark.parametrize(
    "factory, expected",
    [
        (shuffled(), "18f9dd14d8d049f9"),
        (experiments(), "db86b361726f4ab0"),
        (experiments(count=1), "5ec620cce5099ac2"),
        (cross_experiment_pairs(), "e6266ac4d9008d3f"),
    ],
)
def test_the_order_is_the_same_on_every_machine(factory, expected):
    order = order_of(factory, screen(SCREEN), 12, 3)
    assert digest(order, 100) == expected
    assert digest(order_of(factory, screen(SCREEN), 12, 4), 100) != expected


@pytest.mark.parametrize("factory", [shuffled(), experiments(), cross_experiment_pairs()])
def test_an_epoch_is_drawn_at_once(factory, monkeypatch):
    draw, names = orders.random_bits, []
    for module in (orders, samplers):
        monkeypatch.setattr(
            module, "random_bits", lambda *given: names.append(given[0]) or draw(*given)
        )
    order = order_of(factory, screen({"HUVEC": (40, 37, 40), "RPE": (38, 35)}), 4, 3)
    assert len([order(step) for step in range(140)]) > 4 * len(names) == 4 * len(set(names))


@PROPERTY
@given(screens(2), st.integers(1, 2), st.integers(1, 8), st.integers(0, 5), st.data())
def test_an_order_is_a_function_of_the_step(sites, count, half, seed, data):
    tried = [shuffled(), experiments(count)]
    if any(partners(sites).values()):
        tried.append(cross_experiment_pairs())
    for sampler in tried:
        order = order_of(sampler, sites, 2 * half, seed)
        batches = [order(k) for k in range(12)]
        for k in data.draw(st.lists(st.integers(0, 11), min_size=1, max_size=3)):
            for again in (order, order_of(sampler, sites.copy(), 2 * half, seed)):
                np.testing.assert_array_equal(again(k), batches[k])
        seen = Counter(zip(*(np.concatenate(part).tolist() for part in zip(*batches, strict=True)),
                           strict=True))  # fmt: skip
        assert max(seen.values()) == 1  # no (position, epoch) twice
        assert all(0 <= position < len(sites) for position, _ in seen)


def proportions(sizes, count):
    """Parts of a batch of each experiment, by bisection: min(1, x * size), `count` in sum."""
    sizes, low, high = np.array(sizes, float), 0.0, float(count)
    for _ in range(200):
        x = (low + high) / 2
        low, high = (x, high) if np.minimum(1, x * sizes).sum() < count else (low, x)
    return np.minimum(1, high * sizes)


@PROPERTY
@given(screens(3), st.integers(1, 3), st.integers(1, 7), st.integers(0, 99))
def test_batches_of_experiments(sites, count, part, seed):
    batch_size = count * part
    steps = max(1, round(len(sites) / batch_size))
    order = order_of(experiments(count), sites, batch_size, seed)
    before: Counter[int] = Counter()
    for epoch in range(4):
        of_type, of_experiment = Counter(), Counter()
        for step in range(epoch * steps, (epoch + 1) * steps):
            positions, epochs = order(step)
            parts = sites["experiment"][positions].reshape(count, part)
            assert (parts == parts[:, :1]).all() and len(set(parts[:, 0])) == count
            (cell_type,) = set(sites["cell_type"][positions].tolist())
            of_type[cell_type] += 1
            of_experiment.update(parts[:, 0].tolist())
            for position, again in zip(positions.tolist(), epochs.tolist(), strict=True):
                assert again == before[position]
                before[position] += 1
            for experiment in set(parts[:, 0].tolist()):
                drawn = [before[k] for k in np.flatnonzero(sites["experiment"] == experiment)]
                assert max(drawn) - min(drawn) <= 1
        for cell_type in set(sites["cell_type"].tolist()):
            own = sites[sites["cell_type"] == cell_type]
            assert abs(of_type[cell_type] - steps * len(own) / len(sites)) < 1
            names, sizes = np.unique(own["experiment"], return_counts=True)
            shares = of_type[cell_type] * proportions(sizes, count)
            for name, share in zip(names.tolist(), shares, strict=True):
                assert abs(of_experiment[name] - share) < 1 + 1e-9


@pytest.mark.parametrize("count", [1, 4, 7])
def test_across_cell_types_they_count_as_one(count):
    sites = screen(SCREEN)
    one = sites.copy()
    one["cell_type"] = "all"
    orders = [order_of(experiments(count, across=True), sites, 28, 3),
              order_of(experiments(count), one, 28, 3)]  # fmt: skip
    types = set()
    for step in range(20):
        rows, expected = (order(step)[0] for order in orders)
        assert len(set(sites["experiment"][rows].tolist())) == count
        types.add(len(set(sites["cell_type"][rows].tolist())))
        np.testing.assert_array_equal(rows, expected)
    assert max(types) > 1 or count == 1


def test_experiments_in_the_long_run():
    """Whole numbers of steps and parts are drawn so that nobody loses in the end."""
    sites, epochs, batch_size = screen(SCREEN), 1500, 12
    steps = round(len(sites) / batch_size)
    order = order_of(experiments(2), sites, batch_size, 0)
    parts, together = Counter(), Counter()
    for step in range(epochs * steps):
        names = sites["experiment"][order(step)[0][:: batch_size // 2]].tolist()
        parts.update(names)
        together[frozenset(names)] += 1
    for cell_type, sizes in SCREEN.items():
        batches = epochs * steps * sum(sizes) / len(sites)
        for number, share in enumerate(proportions(sizes, 2)):
            # Four standard errors of the roundings, each of less than one step and one part.
            assert abs(parts[f"{cell_type}-{number:02}"] - batches * share) < 4 * epochs**0.5
    pairs = [together[frozenset(pair)] for pair in (("HUVEC-00", "HUVEC-01"),
             ("HUVEC-00", "HUVEC-02"), ("HUVEC-01", "HUVEC-02"))]  # fmt: skip
    assert min(pairs) > 0.8 * max(pairs)


def partners(sites):
    """{(cell_type, siRNA): how many of its sites an epoch of pairs can hold}."""
    kinds = defaultdict(list)
    for cell_type, experiment, sirna_id in sites[["cell_type", "experiment", "sirna_id"]].tolist():
        kinds[cell_type, sirna_id].append(experiment)
    held = {}
    for kind, names in kinds.items():
        most = Counter(names).most_common(1)[0][1]
        held[kind] = 2 * min(len(names) // 2, len(names) - most)
    return held


@PROPERTY
@given(screens(1), st.integers(1, 7), st.integers(0, 99))
def test_pairs(sites, half, seed):
    held = partners(sites)
    total = sum(held.values())
    if not total:
        with pytest.raises(ValueError, match="cross_experiment_pairs"):
            order_of(cross_experiment_pairs(), sites, 2 * half, seed)
        return
    order = order_of(cross_experiment_pairs(), sites, 2 * half, seed)
    steps = -(-3 * total // (2 * half))
    batches = [order(k) for k in range(steps)]
    positions, epochs = (np.concatenate(part)[: 3 * total] for part in zip(*batches, strict=True))
    one, two = sites[positions].reshape(-1, 2).T
    for field in ("cell_type", "sirna_id"):
        np.testing.assert_array_equal(one[field], two[field])
    assert (one["experiment"] != two["experiment"]).all()
    np.testing.assert_array_equal(epochs, np.arange(3 * total) // total)
    for epoch in range(3):
        drawn = positions[epochs == epoch]
        assert len(set(drawn.tolist())) == total  # nobody twice
        kinds = Counter(sites[["cell_type", "sirna_id"]][drawn].tolist())
        assert kinds == {kind: count for kind, count in held.items() if count}


def test_who_sits_out_and_with_whom_is_drawn_every_epoch(caplog):
    rows = [("RPE", f"RPE-{n}", 0, site) for n, count in ((1, 5), (2, 2)) for site in range(count)]
    rows += [("RPE", f"RPE-{n}", 1, 0) for n in (1, 2, 3)]
    rows += [("U2OS", "U2OS-1", sirna, site) for sirna in (0, 1) for site in (1, 2)]
    sites = np.array(rows, FIELDS)
    with caplog.at_level(logging.WARNING):
        order = order_of(cross_experiment_pairs(), sites, 6, 0)  # 2 and 1 pairs: a step is an epoch
    assert re.search(r"\b4 of 14\b.* 2 siRNAs", caplog.text)
    pairs, drawn = Counter(), Counter()
    for step in range(300):
        positions = order(step)[0]
        drawn.update(positions.tolist())
        pairs.update(tuple(sorted(pair)) for pair in positions.reshape(3, 2).tolist())
    assert [drawn[k] for k in (5, 6)] == [300, 300]
    assert all(abs(drawn[k] - 120) < 40 for k in range(5))  # 2 of 5 a step, sd 8.5
    assert all(abs(drawn[k] - 200) < 40 for k in range(7, 10))  # 2 of 3, sd 8.2
    assert len(pairs) == 10 + 3 and min(pairs.values()) > 30
    assert not any(drawn[k] for k in range(10, 14))


def test_rows_are_those_of_the_training_sites():
    """Of the whole table, whose fields are text and int32, some are trained on."""
    sites = tiny_images().sites
    train = np.flatnonzero(sites["cell_type"] == "HUVEC")[3:]
    rows, _ = order_of(experiments(2), sites, 6, 0, train)(0)
    assert set(sites["experiment"][rows].tolist()) == {"HUVEC-01", "HUVEC-02"}
    one, two = sites[order_of(cross_experiment_pairs(), sites, 6, 0, train)(0)[0]].reshape(-1, 2).T
    assert (one["sirna_id"] == two["sirna_id"]).all()
    assert (one["experiment"] != two["experiment"]).all()
    order = order_of(shuffled(), sites, 4, 0, train)
    drawn = np.concatenate([order(k)[0] for k in range(len(train))])
    assert Counter(drawn.tolist()) == dict.fromkeys(train.tolist(), 4)


@pytest.mark.parametrize("sampler, arguments, named", [
    (experiments, (0,), "count 0"), (experiments, (1.5,), "count 1.5"),
    (experiments, (2,), "batch_size 9"), (experiments, (3,), "count 3: .*RPE has 2"),
    (cross_experiment_pairs, (), "batch_size 9"),
])  # fmt: skip
def test_errors(sampler, arguments, named):
    with pytest.raises(ValueError, match=named):
        order_of(sampler(*arguments), screen(SCREEN), 9, 0)
