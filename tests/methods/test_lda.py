"""Linear discriminant analysis against scikit-learn and SciPy."""

import numpy as np
import pandas as pd
import pytest
from arrays import make_sites, small_evidence
from scipy import stats

from rxrx1_jax.methods.classifiers import UNKNOWN
from rxrx1_jax.methods.evidence import Evidence, Method, scores
from rxrx1_jax.methods.lda import lda


class Given:
    """A covariance estimator of scikit-learn that has estimated already."""

    def __init__(self, covariance):
        self.covariance_ = covariance

    def fit(self, _):
        return self

    def get_params(self, deep=True):
        return {"covariance": self.covariance_}


@pytest.mark.parametrize("flat", [False, True])
def test_lda_is_scikit_learn_s_within_each_cell_type(flat):
    """And the densities are SciPy's. Classes of unequal size; with `flat` a feature that is
    constant."""
    discriminant = pytest.importorskip("sklearn.discriminant_analysis")
    ledoit_wolf = pytest.importorskip("sklearn.covariance").ledoit_wolf
    rng = np.random.default_rng(0)
    wells = [(name, 1, f"B{k:02}", "treatment", int(rng.integers(3 if name < "I" else 4)))
             for name in ("HUVEC-01", "RPE-01") for k in range(40)]  # fmt: skip
    sites = make_sites(wells)
    role = np.where(rng.random(len(sites)) < 0.7, "train", "test")
    x = rng.normal(size=(4, 5))[sites["sirna_id"]] + rng.normal(size=(len(sites), 5))
    if flat:
        x[:, 2] = 0.5
    evidence = Evidence(sites, role, x.astype(np.float32), None, np.arange(4, dtype=np.int32))
    found = scores(Method(classify=lda), evidence)
    test = evidence.only(role == "test")
    for cell_type, classes in (("HUVEC", 3), ("RPE", 4)):
        train = (role == "train") & (sites["cell_type"] == cell_type)
        here = test.sites["cell_type"] == cell_type
        x, y = evidence.x[train].astype(np.float64), sites["sirna_id"][train]
        within = x - pd.DataFrame(x).groupby(y).transform("mean").to_numpy()
        deviation = np.where(within.std(0) > 1e-12, within.std(0), 1)
        shrunk = ledoit_wolf(within / deviation, assume_centered=True)[0]
        shrunk *= np.outer(deviation, deviation) * len(x) / (len(x) - classes)
        priors = np.full(classes, 1 / classes)
        oracle = discriminant.LinearDiscriminantAnalysis(
            "lsqr", priors=priors, covariance_estimator=Given(shrunk)
        )
        predicted = oracle.fit(x, y).predict(test.x[here].astype(np.float64))
        assert found[here].argmax(1).tolist() == predicted.tolist()
        density = np.array([
            stats.multivariate_normal.logpdf(test.x[here], x[y == k].mean(0), shrunk, True)
            for k in range(classes)
        ]).T  # fmt: skip
        expected = density - np.logaddexp.reduce(density, axis=1, keepdims=True)
        np.testing.assert_allclose(found[here, :classes], expected, rtol=1e-3, atol=1e-4)
        assert (found[here, classes:] == UNKNOWN).all()


def test_a_cell_type_that_was_not_trained_on_takes_the_analysis_of_all():
    evidence = small_evidence()
    train = (evidence.role == "train") & (evidence.sites["cell_type"] == "HUVEC")
    part = evidence.only(train | (evidence.role == "test"))
    predict = lda(part)
    renamed = part.sites.copy()
    renamed["cell_type"] = "HUVEC"
    assert np.array_equal(predict(part), predict(part._replace(sites=renamed)))


def test_classes_of_one_site_are_refused():
    evidence = small_evidence()
    _, first = np.unique(evidence.sites["sirna_id"], return_index=True)
    with pytest.raises(ValueError, match="2 training sites of 2 classes"):
        few = evidence.only(np.isin(np.arange(len(evidence.role)), first[:2]))
        lda(few)(few)
