"""What validation sites choose from a grid, against scikit-learn; who may choose, and what not."""

import dataclasses
from functools import partial

import numpy as np
import pytest
from arrays import read_out_by_hand, small_evidence

from rxrx1_jax.methods import transforms
from rxrx1_jax.methods.catalogue import METHODS, reference
from rxrx1_jax.methods.centroids import centroids
from rxrx1_jax.methods.evidence import Evidence, Method, Transform, choose, scores

CONTROLS = frozenset({"test_controls"})
NEIGHBOURS = (12, 5, 3, 2, 1)


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    """RPE-01 validates, HUVEC-03 tests; noise enough that settings differ."""
    small = small_evidence()
    val = (small.role == "test") & (small.sites["experiment"] == "RPE-01")
    noise = np.random.default_rng(1).normal(scale=0.7, size=small.x.shape).astype(np.float32)
    return small._replace(role=np.where(val, "val", small.role), x=small.x + noise)


def nearest(neighbours, seen):
    """A classifier of scikit-learn, fitted on the training sites."""
    sklearn = pytest.importorskip("sklearn.neighbors")
    train = seen.only(seen.role == "train")
    model = sklearn.KNeighborsClassifier(neighbours).fit(train.x, train.sites["sirna_id"])
    return lambda given: model.predict_proba(given.x)


GRID = Method(grid=tuple(Method(classify=partial(nearest, k)) for k in NEIGHBOURS))


def relabelled(evidence, role, seed):
    """The same with the labels of a role shuffled."""
    sites, part = evidence.sites.copy(), evidence.role == role
    rng = np.random.default_rng(seed)
    sites["sirna_id"][part] = rng.permutation(sites["sirna_id"][part])
    return evidence._replace(sites=sites)


def test_the_choice_is_that_of_a_grid_search_on_the_validation_sites(evidence):
    selection = pytest.importorskip("sklearn.model_selection")
    neighbors = pytest.importorskip("sklearn.neighbors")
    chosen = set()
    for seed in range(6):
        one = relabelled(evidence, "val", seed) if seed else evidence
        used = one.only(np.isin(one.role, ("train", "val")))
        search = selection.GridSearchCV(
            neighbors.KNeighborsClassifier(), {"n_neighbors": list(NEIGHBOURS)},
            cv=selection.PredefinedSplit(np.where(used.role == "val", 0, -1)), refit=False,
        ).fit(used.x, used.sites["sirna_id"])  # fmt: skip
        k = search.best_params_["n_neighbors"]
        chosen.add(k)
        assert choose(GRID, one).classify.args == (k,)
        np.testing.assert_array_equal(
            scores(GRID, one), scores(Method(classify=partial(nearest, k)), one)
        )
        # The test set has no say.
        assert choose(GRID, relabelled(one, "test", seed)).classify.args == (k,)
    assert len(chosen) > 2


def spherings(*shares):
    return tuple(
        Method(
            transforms=(Transform(partial(transforms.sphering, share=share)),),
            classify=centroids, uses=CONTROLS, about=f"share {share}",
        )
        for share in shares
    )  # fmt: skip


def test_a_shrinkage_that_validation_chose(evidence):
    shares = (0.001, 0.1, 0.5, 0.95)
    controls = evidence.role == "context"
    tried = [transforms.sphering(evidence.x, evidence.sites, controls, "experiment", share)
             for share in shares]  # fmt: skip
    val = evidence.role == "val"
    as_test = evidence._replace(role=np.where(val, "test", np.where(
        evidence.role == "test", "other", evidence.role)))  # fmt: skip
    right = [np.mean(read_out_by_hand(x, as_test).argmax(1) == evidence.sites["sirna_id"][val])
             for x in tried]  # fmt: skip
    best = int(np.argmax(right))
    assert 0 < best and right[best] > right[0]
    found = scores(Method(grid=spherings(*shares), uses=CONTROLS), evidence)
    np.testing.assert_allclose(found, read_out_by_hand(tried[best], evidence), rtol=1e-4, atol=1e-4)


def test_its_gain_is_over_the_same_read_out(monkeypatch):
    monkeypatch.setitem(METHODS, "tuned", Method(grid=spherings(0.1, 0.5), uses=CONTROLS))
    monkeypatch.setitem(METHODS, "mixed", Method(grid=(*spherings(0.1), Method()), uses=CONTROLS))
    assert [reference(name) for name in ("tuned", "mixed")] == ["centroids", "none"]


def test_without_validation_sites_nothing_is_chosen(evidence):
    test_alone = np.where(evidence.role == "val", "test", evidence.role)
    unknown = evidence.sites.copy()
    unknown["sirna_id"][evidence.role == "val"] = -1
    for one in (evidence._replace(role=test_alone), evidence._replace(sites=unknown)):
        with pytest.raises(ValueError, match="val_experiments"):
            scores(GRID, one)
    assert choose(METHODS["none"], evidence) is METHODS["none"]


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Method(classify=centroids, grid=(Method(),)), "in place"),
        (lambda: Method(grid=(Method(), *spherings(0.1))), "2 .*test_controls"),
        (lambda: Method(grid=(dataclasses.replace(GRID), Method())), "1 .*has a grid"),
    ],
)
def test_grids_that_cannot_be(make, named):
    with pytest.raises(ValueError, match=named):
        make()
