"""The nearest-centroid classifier against a loop."""

import numpy as np
import pytest
from arrays import small_evidence

from rxrx1_jax.methods import transforms
from rxrx1_jax.methods.centroids import TEMPERATURE, centroids
from rxrx1_jax.methods.evidence import Evidence

CLASSES = np.array([3, 0, 2, 1])


@pytest.fixture
def data() -> Evidence:
    """200 training sites of classes 0 to 4; 4 is no class of the network, RPE has no 2."""
    rng = np.random.default_rng(0)
    sites = np.zeros(200, [("cell_type", "U8"), ("sirna_id", "i4")])
    sites["sirna_id"] = rng.integers(0, 5, size=200)
    sites["cell_type"] = np.array(["HUVEC", "RPE"])[rng.integers(0, 2, size=200)]
    sites["sirna_id"][(sites["cell_type"] == "RPE") & (sites["sirna_id"] == 2)] = 3
    return Evidence(sites, np.full(200, "train"), rng.normal(size=(200, 5)), None, CLASSES)


def cosine(a, b):
    return a @ b / np.sqrt(a @ a) / np.sqrt(b @ b)


def test_against_a_loop(data):
    given = data._replace(sites=data.sites[::3].copy(), x=data.x[::3] + 0.1)
    given.sites["cell_type"][::5] = "U2OS"  # not trained on
    out = centroids(data)(given)
    assert out.dtype == np.float32
    np.testing.assert_allclose(np.exp(out).sum(axis=1), 1, rtol=1e-5)
    for row, name, found in zip(given.x, given.sites["cell_type"], out, strict=True):
        cosines = []
        for sirna in CLASSES:
            members = data.sites["sirna_id"] == sirna
            if name == "HUVEC" or (name == "RPE" and sirna != 2):
                members &= data.sites["cell_type"] == name
            cosines.append(cosine(row, sum(v / np.sqrt(v @ v) for v in data.x[members])))
        np.testing.assert_allclose(
            (found - found[0]) * TEMPERATURE, np.array(cosines) - cosines[0], atol=1e-5
        )


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
        ({"role": np.full(200, "test")}, "no training site"),
        ({"x": np.full((200, 5), np.nan)}, "finite"),
        ({"x": np.ones((200, 5), int)}, "int64"),
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


def test_correction_makes_new_experiments_readable():
    evidence = small_evidence()
    rng = np.random.default_rng(4)
    x = 2 * rng.normal(size=(1139, 6))[evidence.sites["sirna_id"]] + 0.3 * rng.normal(
        size=evidence.x.shape
    )
    for name in np.unique(evidence.sites["experiment"]):
        of = evidence.sites["experiment"] == name
        x[of] = x[of] + 6 * rng.normal(size=6)
    sites, test = evidence.sites, evidence.role == "test"

    def accuracy(x):
        given = evidence._replace(x=x)
        return np.mean(centroids(given)(given)[test].argmax(1) == sites["sirna_id"][test])

    fit = evidence.role == "context"
    for transform in (transforms.centre_scale, transforms.sphering, transforms.tvn):
        assert accuracy(transform(x, sites, fit, by="experiment")) > accuracy(x) + 0.15
