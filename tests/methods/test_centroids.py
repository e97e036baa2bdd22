"""The nearest-centroid classifier against a loop."""

import numpy as np
import pytest
from arrays import read_out_by_hand, small_evidence

from rxrx1_jax.methods.centroids import centroids
from rxrx1_jax.methods.evidence import Evidence

CLASSES = np.array([3, 0, 2, 1])


@pytest.fixture
def data() -> Evidence:
    """200 training and 60 test sites; siRNA 4 is no class of the network, RPE has no 2 to train."""
    rng = np.random.default_rng(0)
    sites = np.zeros(260, [("cell_type", "U8"), ("sirna_id", "i4")])
    sites["sirna_id"] = rng.integers(0, 5, size=260)
    sites["cell_type"] = np.array(["HUVEC", "RPE"])[rng.integers(0, 2, size=260)]
    sites["sirna_id"][(sites["cell_type"] == "RPE") & (sites["sirna_id"] == 2)] = 3
    sites["cell_type"][200::5] = "U2OS"  # not trained on
    role = np.where(np.arange(260) < 200, "train", "test")
    return Evidence(sites, role, rng.normal(size=(260, 5)), None, CLASSES)


def test_against_a_loop(data):
    out = centroids(data)(data)
    assert out.dtype == np.float32
    np.testing.assert_allclose(np.exp(out).sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(out[data.role == "test"], read_out_by_hand(data.x, data), atol=1e-4)


def test_rows_in_any_order(data):
    order = np.random.default_rng(1).permutation(len(data.x))
    np.testing.assert_allclose(
        centroids(data.only(order))(data), centroids(data)(data), atol=1e-5
    )


def test_classes_without_training_rows(data):
    out = centroids(data._replace(classes=np.append(CLASSES, 900)))(data)
    assert np.isfinite(out).all() and (out.argmin(axis=1) == 4).all()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"classes": np.array([900])}, "1 classes"),
        ({"role": np.full(260, "test")}, "no training site"),
        ({"x": np.full((260, 5), np.nan)}, "finite"),
        ({"x": np.ones((260, 5), int)}, "int64"),
    ],
)
def test_bad_input(data, change, named):
    with pytest.raises(ValueError, match=named):
        centroids(data._replace(**change))


def test_only_training_sites_are_read():
    evidence = small_evidence()
    other = evidence.role != "train"
    sites, x = evidence.sites.copy(), evidence.x.copy()
    sites["sirna_id"][other], x[other] = 3, 5.0
    found = centroids(evidence._replace(sites=sites, x=x))(evidence)
    np.testing.assert_array_equal(found, centroids(evidence)(evidence))
