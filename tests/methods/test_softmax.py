"""Softmax regression against scikit-learn, a loop and finite differences."""

import numpy as np
import pytest
from arrays import make_sites, small_evidence

from rxrx1_jax.methods import softmax as lib
from rxrx1_jax.methods.classifiers import UNKNOWN, joint
from rxrx1_jax.methods.evidence import Evidence
from rxrx1_jax.methods.softmax import PENALTIES, Regression, chosen_penalty, inner_split, softmax

K, D = 5, 6


def screen(experiments, noise=1.0, seed=0, shift=0.0):
    """One well of each of K siRNAs, twice per plate, in `experiments`; x is biology and noise."""
    rng = np.random.default_rng(seed)
    wells = [(name, plate, f"B{k:02}", "treatment", k % K)
             for name in experiments for plate in (1, 2) for k in range(2 * K)]  # fmt: skip
    sites = make_sites(wells)
    x = 2 * rng.normal(size=(K, D))[sites["sirna_id"]] + noise * rng.normal(size=(len(sites), D))
    x += shift * rng.normal(size=(len(experiments), D))[
        np.searchsorted(sorted(experiments), sites["experiment"])
    ]
    role = np.full(len(sites), "train")
    return Evidence(sites, role, x.astype(np.float32), None, np.arange(K, dtype=np.int32))


def white(x, of):
    """x on the principal axes of `of`, each of variance 1, of Ledoit and Wolf's covariance."""
    covariance = pytest.importorskip("sklearn.covariance").LedoitWolf().fit(of).covariance_
    variance, axes = np.linalg.eigh(covariance)
    return (x - of.mean(0)) @ (axes / np.sqrt(variance)) @ axes.T


@pytest.mark.parametrize("penalty", [0.1, 0.01])
@pytest.mark.parametrize("chunk", [lib.CHUNK, 17])
def test_objective_and_predictions_are_scikit_learn_s(monkeypatch, penalty, chunk):
    """With rows in one chunk, and in chunks that need padding."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    monkeypatch.setattr(lib, "CHUNK", chunk)
    monkeypatch.setattr(lib, "CLOSE", 1e-9)
    train, other = screen(["RPE-01", "RPE-02"]), screen(["RPE-03"], seed=1)
    x, y = train.x.astype(np.float64), train.sites["sirna_id"]
    oracle = linear_model.LogisticRegression(C=1 / (penalty * len(x)), tol=1e-8, max_iter=1000)
    oracle.fit(white(x, x), y)
    expected = oracle.predict_log_proba(white(other.x, x))
    found = Regression(train.x, y).descend(penalty)
    np.testing.assert_allclose(found.log_probs(other.x), expected, atol=5e-3)
    given = np.vstack([oracle.coef_.T, oracle.intercept_])
    value, _ = found.objective(given.ravel(), penalty)
    loss = -oracle.predict_log_proba(white(x, x))[np.arange(len(x)), y].mean()
    assert value == pytest.approx(loss + penalty / 2 * (oracle.coef_**2).sum(), rel=1e-5)
    assert found.objective(found.weights.ravel(), penalty)[0] == pytest.approx(value, rel=1e-5)


def test_the_gradient_is_that_of_differences():
    train = screen(["RPE-01"])
    regression = Regression(train.x, train.sites["sirna_id"])
    rng = np.random.default_rng(2)
    weights, step = rng.normal(size=(D + 1) * K), rng.normal(size=(D + 1) * K)
    near = [regression.objective(weights + sign * 1e-2 * step, 0.3)[0] for sign in (1, -1)]
    slope = regression.objective(weights, 0.3)[1] @ step
    assert slope == pytest.approx((near[0] - near[1]) / 2e-2, rel=1e-3)


def test_the_penalty_is_the_best_on_the_last_experiment():
    """Against a loop over all of them with scikit-learn, which starts each from nothing."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    train = screen(["RPE-01", "RPE-02", "RPE-03"], noise=3.0, shift=2.0)
    label, last = train.sites["sirna_id"], train.sites["experiment"] == "RPE-03"
    assert inner_split(train, label).tolist() == last.tolist()
    x, held_out = white(train.x[~last], train.x[~last]), white(train.x[last], train.x[~last])
    accuracy = {}
    for penalty in PENALTIES:
        oracle = linear_model.LogisticRegression(C=1 / (penalty * len(x)), max_iter=1000)
        accuracy[penalty] = oracle.fit(x, label[~last]).score(held_out, label[last])
    chosen = chosen_penalty(train, label)
    assert accuracy[chosen] >= max(accuracy.values()) - 1 / last.sum()
    assert min(accuracy.values()) < max(accuracy.values())


def test_the_inner_split_has_an_experiment_per_cell_type_and_no_class_of_its_own():
    train = screen(["HUVEC-01", "HUVEC-02", "RPE-01", "RPE-02", "U2OS-01"])
    label = train.sites["sirna_id"].copy()
    name = train.sites["experiment"]
    label[np.flatnonzero(name == "RPE-02")[0]] = K  # nowhere else
    expected = np.isin(name, ["HUVEC-02", "RPE-02"]) & (label < K)
    assert inner_split(train, label).tolist() == expected.tolist()
    alone = train.only(name == "U2OS-01")
    assert not inner_split(alone, alone.sites["sirna_id"]).any()
    assert chosen_penalty(alone, alone.sites["sirna_id"]) == lib.UNCHOSEN


def test_a_model_per_cell_type_or_one_of_all():
    """Classes that a cell type was not trained on; a cell type that was not trained on."""
    whole = screen(["HUVEC-01", "HUVEC-02", "RPE-01", "RPE-02", "U2OS-01"])
    cell_type, label = whole.sites["cell_type"], whole.sites["sirna_id"]
    known = (cell_type == "RPE") <= (label > 0)
    given = whole._replace(role=np.where((cell_type == "U2OS") | ~known, "test", "train"))
    own, both = softmax(given)(given), joint(softmax)(given)(given)
    assert (own[cell_type == "RPE", 0] == UNKNOWN).all()
    assert (own[cell_type == "RPE", 1:] > UNKNOWN).all() and (both > UNKNOWN).all()
    np.testing.assert_allclose(np.exp(own).sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(own[cell_type == "U2OS"], both[cell_type == "U2OS"])
    read = (cell_type == "RPE") & (label > 0)
    assert (own[read].argmax(1) == label[read]).mean() > 0.8
    assert not np.allclose(own[cell_type == "HUVEC"], both[cell_type == "HUVEC"], atol=0.01)


def test_classes_in_any_order():
    evidence = small_evidence()
    turned = evidence._replace(classes=evidence.classes[::-1].copy())
    np.testing.assert_array_equal(softmax(turned)(turned)[:, ::-1], softmax(evidence)(evidence))
