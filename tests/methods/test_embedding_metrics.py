"""Metrics of embeddings against loops, SciPy, copairs, and data whose answer is known."""

import json

import numpy as np
import pytest
from arrays import screen
from scipy import stats

from rxrx1_jax.methods import embedding_metrics as bm


def test_mean_profiles_are_the_means_of_a_loop():
    z, sirna, experiment = screen()
    keep = np.arange(len(z)) % 7 > 0  # groups of unequal size
    z, sirna, experiment = z[keep], sirna[keep], experiment[keep]
    means, labels, batches = bm.mean_profiles(z, sirna, experiment)
    found = list(zip(labels, batches, strict=True))
    assert found == sorted(set(zip(sirna, experiment, strict=True)))
    for mean, (label, batch) in zip(means, found, strict=True):
        rows = z[(sirna == label) & (experiment == batch)].astype(float)
        np.testing.assert_allclose(mean, sum(rows) / len(rows), rtol=1e-12, atol=1e-12)


def predictability(z, experiment, sirna):
    pytest.importorskip("sklearn")
    return bm.experiment_predictability(z, experiment, sirna)


def test_probe_is_the_best_linear_classifier_of_the_likelihood():
    """Against Newton's method on the penalised likelihood, in NumPy, for two experiments."""
    z, sirna, experiment = screen(sirnas=15, experiments=2, batch=0.4)
    found = predictability(z, experiment, sirna)
    from sklearn.model_selection import GroupKFold

    target = (experiment == "HUVEC-02").astype(float)
    predicted = np.empty(len(z))
    for train, test in GroupKFold(bm.FOLDS, shuffle=True, random_state=0).split(z, groups=sirna):
        assert not set(sirna[train]) & set(sirna[test])
        mean, sd = z[train].mean(0, dtype=float), z[train].std(0, dtype=float)
        x = np.hstack([(z - mean) / sd, np.ones((len(z), 1))])
        penalty = np.diag([1.0] * z.shape[1] + [0.0])
        w = np.zeros(x.shape[1])
        for _ in range(30):
            p = 1 / (1 + np.exp(-x[train] @ w))
            gradient = x[train].T @ (p - target[train]) + penalty @ w
            w -= np.linalg.solve((x[train].T * (p * (1 - p))) @ x[train] + penalty, gradient)
        predicted[test] = x[test] @ w > 0
    recall = [(predicted == k)[target == k].mean() for k in (0, 1)]
    assert found == pytest.approx((np.mean(recall), 0.5), abs=1e-9)
    assert 0.55 < found.accuracy < 0.95  # a case that can go wrong either way


@pytest.mark.parametrize("effect", [0.0, 3.0])
def test_without_batch_effects_experiments_are_predicted_by_chance(effect):
    # With strong effects of the siRNAs, folds over wells would give 2 % here.
    found = []
    for seed in range(6):
        z, sirna, experiment = screen(seed, sirnas=100, dim=60, effect=effect, batch=0.0)
        found.append(predictability(z, experiment, sirna))
    assert {x.chance for x in found} == {0.25}
    assert np.mean([x.accuracy for x in found]) == pytest.approx(0.25, abs=0.03)


def test_shifted_experiments_are_found():
    z, sirna, experiment = screen(sirnas=100, batch=5.0)
    assert predictability(z, experiment, sirna).accuracy > 0.95
    z[:, 0] = 3  # a feature without spread does no harm
    assert predictability(z, experiment, sirna).accuracy > 0.95


def test_experiments_of_unequal_size_have_equal_say():
    # Constant features: every row is given to the larger experiment.
    experiment = np.where(np.arange(60) < 45, "b0", "b1")
    assert predictability(np.ones((60, 3)), experiment, np.arange(60)) == (0.5, 0.5)


def test_probe_refuses_what_it_cannot_hold_out():
    z, sirna, experiment = screen(sirnas=6)
    keep = (experiment != "HUVEC-02") | (sirna < 4)
    with pytest.raises(ValueError, match="HUVEC-02 has 4"):
        predictability(z[keep], experiment[keep], sirna[keep])
    one = experiment == "HUVEC-02"
    with pytest.raises(ValueError, match="HUVEC-02"):
        predictability(z[one], experiment[one], sirna[one])


def profiles(**options):
    z, sirna, experiment = screen(**options)
    return bm.mean_profiles(z, sirna, experiment)


def test_similarity_is_the_mean_cosine_over_pairs_and_its_null_the_mean_over_permutations():
    z, labels, experiment = profiles(sirnas=5, experiments=3)
    keep = ~((labels == 1) & (experiment != "HUVEC-01"))  # label 1 has one profile, label 4 two
    keep &= ~((labels == 4) & (experiment == "HUVEC-03"))
    z, labels, experiment = z[keep], labels[keep], experiment[keep]
    cosine = np.array([[a @ b / np.sqrt((a @ a) * (b @ b)) for b in z] for a in z])
    found = bm.replicate_consistency(z, labels, experiment, draws=4000)
    assert found.labels.tolist() == [0, 2, 3, 4]
    for label, similarity, null in zip(found.labels, found.similarity, found.null, strict=True):
        rows = np.flatnonzero(labels == label)
        pairs = [cosine[i, j] for i in rows for j in rows if i < j]
        assert similarity == pytest.approx(np.mean(pairs), abs=1e-6)
        # A permutation gives every pair of its experiments two profiles, all equally likely.
        batches = np.unique(experiment[rows])
        between = [cosine[np.ix_(experiment == a, experiment == b)].mean()
                   for a in batches for b in batches if a < b]  # fmt: skip
        assert null == pytest.approx(np.mean(between), abs=0.02)


def test_p_values_are_uniform_without_effects_whatever_the_batches():
    z, labels, experiment = profiles(sirnas=300, effect=0.0, experiments=3)
    z += 2 + 2 * (experiment == "HUVEC-02")[:, None]  # alike in all, more so in some
    keep = (np.arange(len(z)) % 5 > 0) | (experiment == "HUVEC-02")
    found = bm.replicate_consistency(z[keep], labels[keep], experiment[keep], draws=200)
    assert found.similarity.min() > 0.3
    assert stats.kstest(found.p_value, "uniform").pvalue > 0.01
    assert found.p_value.min() >= 1 / 201


@pytest.mark.parametrize(
    ("experiments", "sirnas", "least"), [(2, 10, 0.1), (2, 30, 1 / 30), (3, 4, 1 / 16)]
)
def test_perfect_replicates_have_the_least_p_value_of_the_design(experiments, sirnas, least):
    """Among S siRNAs a permutation gives one of them in both of two experiments once in S."""
    z, labels, experiment = profiles(
        sirnas=sirnas, experiments=experiments, batch=0.0, noise=0.0, effect=1.0
    )
    found = bm.replicate_consistency(z, labels, experiment, draws=4000)
    np.testing.assert_allclose(found.least, least)
    np.testing.assert_allclose(found.p_value, least, rtol=0.25)


def test_labels_of_fewer_experiments_reach_less():
    z, labels, experiment = profiles(sirnas=10, experiments=3)
    keep = (labels > 1) | (experiment != "HUVEC-03")
    found = bm.replicate_consistency(z[keep], labels[keep], experiment[keep], draws=50)
    np.testing.assert_allclose(found.least, [0.1] * 2 + [1 / 51] * 8)


def test_planted_effects_are_consistent_and_order_and_seed_do_not_matter():
    z, labels, experiment = profiles(sirnas=20, batch=1.0, effect=3.0)
    found = bm.replicate_consistency(z, labels, experiment, seed=1, draws=200)
    assert (found.p_value < 0.05).mean() > 0.9 and (found.similarity > found.null).all()
    assert found.p_value.min() == 1 / 201  # a label that no permutation comes near
    order = np.random.default_rng(1).permutation(len(z))
    mixed = bm.replicate_consistency(z[order], labels[order], experiment[order], 1, 200)
    for a, b in zip(found, mixed, strict=True):
        np.testing.assert_array_equal(a, b)
    other = bm.replicate_consistency(z, labels, experiment, seed=2, draws=200)
    assert (other.null != found.null).any()


def test_consistency_refuses_several_profiles_in_an_experiment_and_no_replicates():
    z, sirna, experiment = screen()
    apart = np.array([1, 0, 0, 0]), np.array(["b", "a", "b", "a"])  # not one after the other
    for given, named in (
        ((z, sirna, experiment), "HUVEC-"), ((z[:4], *apart), "label 0 .*experiment a"),
        ((z, np.arange(len(z)), experiment), "replicates"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=named):
            bm.replicate_consistency(*given)


def test_recovery_is_the_correlation_of_distances():
    rng = np.random.default_rng(0)
    planted, measured = rng.normal(size=(9, 4)), rng.normal(size=(9, 7))
    measured[:, :4] += planted
    ranks = [
        np.argsort(np.argsort([np.linalg.norm(x[i] - x[j]) for i in range(9) for j in range(i)]))
        for x in (measured, planted)
    ]
    found = bm.planted_recovery(measured, planted)
    assert found == pytest.approx(np.corrcoef(ranks)[0, 1])
    assert 0.05 < found < 0.95
    # Distances do not change by turning, shifting and scaling.
    turned = 3 * planted @ np.linalg.qr(rng.normal(size=(4, 4)))[0] + 5
    assert bm.planted_recovery(turned, planted) == pytest.approx(1)
    order = rng.permutation(9)
    assert bm.planted_recovery(measured[order], planted[order]) == pytest.approx(found)
    unrelated = bm.planted_recovery(rng.normal(size=(200, 20)), rng.normal(size=(200, 20)))
    assert abs(unrelated) < 0.1


def test_planted_effects_are_those_of_the_screen():
    synthetic = pytest.importorskip("tfds_builder.rxrx1.synthetic")
    from tfds_builder.rxrx1.synthetic import planted

    screen = synthetic.Screen(seed=5, huvec=1, rpe=1, hepg2=0, u2os=0, plates=1, effect=0.5)
    truth = json.loads(json.dumps(synthetic.screen_truth(screen, synthetic.screen_sites(screen))))
    found = bm.planted_effects(truth["sirnas"], np.array([3, 0, 7]), "RPE")
    expected = [planted.sirna_effects(5, s, 0.5)["RPE"] for s in (3, 0, 7)]
    np.testing.assert_allclose(found, expected, atol=6e-6)
    for sirna_ids, cell_type, named in (([3, 999], "RPE", "RPE.*999"), ([3], "HeLa", "HeLa")):
        with pytest.raises(ValueError, match=named):
            bm.planted_effects(truth["sirnas"], sirna_ids, cell_type)


def test_recovery_refuses_what_has_no_correlation():
    z = np.random.default_rng(0).normal(size=(5, 3))
    for planted, named in ((np.zeros((5, 24)), "planted"), (z[:4], "5 measured.*4")):
        with pytest.raises(ValueError, match=named):
            bm.planted_recovery(z, planted)
