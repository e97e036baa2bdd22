"""Retrieval of siRNAs against loops, copairs, and data whose answer is known."""

import numpy as np
import pytest
from arrays import screen

from rxrx1_jax.methods import retrieval


def average_precision_by_hand(z, labels, experiment):
    z = z.astype(np.float64)
    found = np.full(len(z), np.nan)
    for i in range(len(z)):
        ranked = []
        for j in range(len(z)):
            positive = labels[j] == labels[i] and experiment[j] != experiment[i]
            if positive or labels[j] != labels[i]:
                cosine = z[i] @ z[j] / np.sqrt((z[i] @ z[i]) * (z[j] @ z[j]))
                ranked.append((-cosine, positive))
        precisions, seen = [], 0
        for rank, (_, positive) in enumerate(sorted(ranked), 1):
            if positive:
                seen += 1
                precisions.append(seen / rank)
        if precisions:
            found[i] = sum(precisions) / len(precisions)
    return found


@pytest.mark.parametrize("block", [retrieval.BLOCK, 200])
def test_average_precision_is_that_of_a_loop(monkeypatch, block):
    monkeypatch.setattr(retrieval, "BLOCK", block)  # 200: blocks of two rows
    z, sirna, experiment = screen(sirnas=11, batch=0.5)
    keep = (np.arange(len(z)) % 6 > 0) & ((sirna != 3) | (experiment == "HUVEC-02"))
    z, sirna, experiment = z[keep], sirna[keep], experiment[keep]  # siRNA 3 has no positive
    expected = average_precision_by_hand(z, sirna, experiment)
    found = retrieval.retrieval_map(z, sirna, experiment)
    assert np.isnan(expected).sum() == (sirna == 3).sum() > 0
    np.testing.assert_allclose(found.average_precision, expected, rtol=1e-12)
    by_label = [np.mean(expected[sirna == s]) for s in np.unique(sirna) if s != 3]
    assert found.mean == pytest.approx(np.mean(by_label), rel=1e-12)
    assert 0.2 < found.mean < 0.95


@pytest.mark.parametrize("effect", [0.0, 0.3])
def test_retrieval_and_its_p_values_are_those_of_copairs(effect):
    """P-values to within what 10,000 rankings say; a siRNA of fewer wells has another null."""
    copairs_map = pytest.importorskip("copairs.map")
    pandas = pytest.importorskip("pandas")
    z, sirna, experiment = screen(sirnas=11, batch=0.2, effect=effect)
    keep = (sirna > 2) | (experiment != "HUVEC-02") | (np.arange(len(z)) % 3 == 0)
    z, sirna, experiment = z[keep], sirna[keep], experiment[keep]
    meta = pandas.DataFrame({"sirna": sirna, "experiment": experiment})
    average = copairs_map.average_precision(
        meta, z, pos_sameby=["sirna"], pos_diffby=["experiment"], neg_sameby=[],
        neg_diffby=["sirna"], progress_bar=False,
    )  # fmt: skip
    theirs = copairs_map.mean_average_precision(
        average, ["sirna"], null_size=10_000, threshold=0.05, seed=0, progress_bar=False
    ).sort_values("sirna")
    found = retrieval.retrieval_map(z, sirna, experiment)
    np.testing.assert_allclose(found.average_precision, average["average_precision"], rtol=1e-6)
    assert found.labels.tolist() == theirs["sirna"].tolist()
    np.testing.assert_allclose(found.p_value, theirs["p_value"], atol=0.03, rtol=0.1)
    again = retrieval.retrieval_map(z[::-1], sirna[::-1], experiment[::-1])
    np.testing.assert_array_equal(again.p_value, found.p_value)


def test_chance_of_retrieval_is_the_mean_over_random_rankings():
    labels = np.array([0] * 2 + [1] * 3 + [2] * 3)
    experiment = np.array([0, 1, 0, 1, 2, 0, 1, 1])
    rng = np.random.default_rng(0)
    draws = (rng.normal(size=(8, 4)) for _ in range(1500))
    found = [retrieval.retrieval_map(x, labels, experiment) for x in draws]
    values = np.array([x.mean for x in found])
    error = values.std() / np.sqrt(len(values))
    assert abs(values.mean() - found[0].chance) < 4 * error < 0.02


def test_collapsed_embeddings_retrieve_nothing():
    z, sirna, experiment = screen(sirnas=30)
    found = retrieval.retrieval_map(np.ones_like(z), sirna, experiment)
    assert found.p_value.min() > 0.9 and found.mean < found.chance  # equal is no hit


def test_retrieval_refuses_what_has_no_answer():
    z, sirna, experiment = screen()
    for given, named in (
        ((z, sirna, np.full(len(z), "one")), "two experiments"),
        ((z, np.zeros(len(z)), experiment), "two labels"),
        ((np.where(np.arange(len(z)) == 5, 0, z.T).T, sirna, experiment), "row 5 .*zero"),
        ((np.where(np.arange(len(z)) == 5, np.nan, z.T).T, sirna, experiment), "row 5 .*finite"),
        ((z, sirna[:-1], experiment), str(len(z) - 1)),
    ):
        with pytest.raises(ValueError, match=named):
            retrieval.retrieval_map(*given)


def with_untreated(seed=0, **options):
    """`screen`, and three untreated wells per experiment, of label -1; all rows mixed."""
    z, sirna, experiment = screen(seed, **options)
    rng = np.random.default_rng(seed + 1)
    names = np.unique(experiment)
    untreated = rng.normal(size=(3 * len(names), z.shape[1])) * 0.5
    order = rng.permutation(len(z) + len(untreated))
    z = np.vstack([z, untreated])[order].astype(np.float32)
    sirna = np.append(sirna, np.full(len(untreated), -1))[order]
    return z, sirna, np.append(experiment, np.repeat(names, 3))[order]


@pytest.mark.parametrize("effect", [0.0, 1.0])
def test_activity_and_its_p_values_are_those_of_copairs(effect):
    copairs_map = pytest.importorskip("copairs.map")
    pandas = pytest.importorskip("pandas")
    z, sirna, experiment = with_untreated(sirnas=11, batch=0.2, effect=effect)
    keep = (sirna != 3) | (experiment != "HUVEC-02")
    z, sirna, experiment = z[keep], sirna[keep], experiment[keep]
    meta = pandas.DataFrame({"sirna": sirna, "experiment": experiment, "control": sirna < 0})
    average = copairs_map.average_precision(
        meta, z, pos_sameby=["sirna"], pos_diffby=["experiment"], neg_sameby=["experiment"],
        neg_diffby=["control"], progress_bar=False,
    )  # fmt: skip
    average = average[~average["control"]]
    theirs = copairs_map.mean_average_precision(
        average, ["sirna"], null_size=10_000, threshold=0.05, seed=0, progress_bar=False
    ).sort_values("sirna")
    found = retrieval.activity_map(z, sirna, experiment, sirna < 0)
    np.testing.assert_allclose(found.average_precision, average["average_precision"], rtol=1e-6)
    assert found.labels.tolist() == theirs["sirna"].tolist()
    np.testing.assert_allclose(found.p_value, theirs["p_value"], atol=0.03, rtol=0.1)
    assert (found.mean > found.chance + 0.1) == (effect > 0)


def test_activity_refuses_what_has_no_answer():
    z, sirna, experiment = with_untreated()
    for control, of in ((np.zeros(len(z), bool), experiment), (sirna < 0, sirna.astype(str))):
        with pytest.raises(ValueError, match="untreated"):
            retrieval.activity_map(z, sirna, of, control)
