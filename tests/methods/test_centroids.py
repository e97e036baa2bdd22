"""The nearest-centroid classifier against a loop."""

import numpy as np
import pytest
from arrays import small_evidence

from rxrx1_jax.methods import transforms
from rxrx1_jax.methods.centroids import TEMPERATURE, centroids, nearest_centroid

CLASSES = np.array([0, 1, 2, 3])


@pytest.fixture
def data():
    """x [200, 5], labels, cell types; RPE has no row of class 2."""
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(200, 5)), rng.integers(0, 5, size=200)  # 4 is no class
    cell_types = np.array(["HUVEC", "RPE"])[rng.integers(0, 2, size=200)]
    labels[(cell_types == "RPE") & (labels == 2)] = 3
    return x, labels, cell_types


def cosine(a, b):
    return a @ b / np.sqrt(a @ a) / np.sqrt(b @ b)


def test_against_a_loop(data):
    x, labels, cell_types = data
    given = x[::3] + 0.1
    of = np.where(np.arange(len(given)) % 5, cell_types[::3], "U2OS")  # one not trained on
    out = nearest_centroid(x, labels, CLASSES, cell_types)(given, of)
    assert out.dtype == np.float32
    np.testing.assert_allclose(np.exp(out).sum(axis=1), 1, rtol=1e-5)
    for row, name, found in zip(given, of, out, strict=True):
        cosines = []
        for sirna in CLASSES:
            members = labels == sirna
            if name == "HUVEC" or (name == "RPE" and sirna != 2):
                members &= cell_types == name
            cosines.append(cosine(row, sum(v / np.sqrt(v @ v) for v in x[members])))
        np.testing.assert_allclose(
            (found - found[0]) * TEMPERATURE, np.array(cosines) - cosines[0], atol=1e-5
        )


def test_rows_in_any_order(data):
    x, labels, cell_types = data
    order = np.random.default_rng(1).permutation(len(x))
    expected = nearest_centroid(x, labels, CLASSES, cell_types)(x, cell_types)
    fit = nearest_centroid(x[order], labels[order], CLASSES, cell_types[order])
    np.testing.assert_allclose(fit(x[order], cell_types[order]), expected[order], atol=1e-5)


def test_classes_without_training_rows(data):
    x, labels, cell_types = data
    out = nearest_centroid(x, labels, np.array([0, 1, 2, 3, 900]), cell_types)(x, cell_types)
    assert np.isfinite(out).all() and (out.argmin(axis=1) == 4).all()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"classes": np.array([900])}, "classes"),
        ({"labels": np.zeros(3, int)}, "labels"),
        ({"x": np.full((200, 5), np.nan)}, "finite"),
        ({"x": np.ones((200, 5), int)}, "int64"),
    ],
)
def test_bad_input(data, change, named):
    x, labels, cell_types = data
    given = {"x": x, "labels": labels, "classes": CLASSES, "cell_types": cell_types} | change
    with pytest.raises(ValueError, match=named):
        nearest_centroid(**given)


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
