"""Embedding transforms against loops, closed forms, SciPy and the libraries themselves."""

import numpy as np
import pandas as pd
import pytest
import scipy.linalg
import scipy.stats
from arrays import LAYOUT
from plate_effects import EXPERIMENTS, ON_ALL_ROWS, D, apply, of_experiment, plates_of
from plate_effects import controls as controls
from plate_effects import embeddings as embeddings
from plate_effects import sites as sites

from rxrx1_jax.methods import transforms

ON_AXES = (transforms.tvn, transforms.coral_align)
ON_CONTROLS = (transforms.centre_scale, transforms.centre, transforms.robust_mad,
               transforms.sphering, *ON_AXES)  # fmt: skip


def test_centre_scale_against_a_loop(embeddings, sites, controls):
    out = transforms.centre_scale(embeddings, sites, controls)
    for plate in plates_of(sites):
        for feature in range(D):
            known = [embeddings[i, feature] for i in plate if controls[i]]
            mean = sum(known) / len(known)
            deviation = (sum((v - mean) ** 2 for v in known) / len(known)) ** 0.5
            np.testing.assert_allclose(
                out[plate, feature], (embeddings[plate, feature] - mean) / deviation, rtol=1e-9
            )


def test_centre_against_pandas(embeddings, sites, controls):
    frame = pd.DataFrame(np.where(controls[:, None], np.nan, embeddings))
    expected = embeddings - frame.groupby(sites["experiment"]).transform("mean")
    found = transforms.centre(embeddings, sites, ~controls)
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize(
    ("by", "groups", "share"),
    [
        ("plate", plates_of, None),
        ("experiment", lambda sites: [of_experiment(sites, name) for name in EXPERIMENTS], 0.3),
        ("cell_type", lambda sites: [sites["cell_type"] == name for name in ("RPE", "U2OS")], None),
    ],
)
def test_sphering_against_scikit_learn_and_scipy(embeddings, sites, controls, by, groups, share):
    sklearn = pytest.importorskip("sklearn.covariance")
    oracle = sklearn.ShrunkCovariance(shrinkage=share) if share else sklearn.LedoitWolf()
    out = transforms.sphering(embeddings, sites, controls, by, share)
    for group in groups(sites):
        group = np.arange(len(sites))[group]
        known = embeddings[group[controls[group]]]
        shrunk = oracle.fit(known).covariance_
        whitening = scipy.linalg.fractional_matrix_power(shrunk, -0.5)
        np.testing.assert_allclose(
            out[group], (embeddings[group] - known.mean(0)) @ whitening, rtol=1e-8, atol=1e-8
        )


@pytest.mark.parametrize(("rows", "features"), [(2, 3), (6, 40), (300, 4)])
def test_the_shrinkage_is_scikit_learn_s(rows, features):
    covariance = pytest.importorskip("sklearn.covariance")
    x = np.random.default_rng(0).normal(size=(rows, features)) * np.arange(1, features + 1)
    x -= x.mean(0)
    expected = covariance.ledoit_wolf_shrinkage(x, assume_centered=True)
    assert transforms.shrinkage(x) == pytest.approx(expected)
    assert transforms.shrinkage(np.zeros((3, 2))) == 0


def on_axes(embeddings, controls):
    """Centred and scaled on all controls, on their principal axes."""
    x = (embeddings - embeddings[controls].mean(0)) / embeddings[controls].std(0)
    _, _, axes = np.linalg.svd(x[controls] - x[controls].mean(0), full_matrices=False)
    return x @ axes.T


def assert_equal_but_for_signs(found, expected):
    """The sign of a principal axis is free."""
    assert found.shape == expected.shape
    signs = np.sign((found * expected).sum(0))
    np.testing.assert_allclose(found, expected * signs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("by", ["plate", "experiment"])
def test_tvn_against_the_steps_of_efaar(embeddings, sites, controls, by):
    x = on_axes(embeddings, controls)
    x = (x - x[controls].mean(0)) / x[controls].std(0)
    groups = plates_of(sites)
    if by == "experiment":
        groups = [np.flatnonzero(of_experiment(sites, name)) for name in EXPERIMENTS]
    for group in groups:
        covariance = np.cov(x[group][controls[group]].T) + 0.5 * np.eye(D)
        x[group] = x[group] @ scipy.linalg.fractional_matrix_power(covariance, -0.5)
    assert_equal_but_for_signs(transforms.tvn(embeddings, sites, controls, by), x)


def test_coral_align_gives_each_plate_the_covariance_of_all(embeddings, sites, controls):
    x = on_axes(embeddings, controls)
    for plate in plates_of(sites):
        known = x[plate][controls[plate]]
        x[plate] = (x[plate] - known.mean(0)) / known.std(0)
    reference = scipy.linalg.sqrtm(np.cov(x[controls].T) + np.eye(D))
    for plate in plates_of(sites):
        own = np.cov(x[plate][controls[plate]].T) + np.eye(D)
        x[plate] = x[plate] @ scipy.linalg.inv(scipy.linalg.sqrtm(own)) @ reference
    assert_equal_but_for_signs(transforms.coral_align(embeddings, sites, controls), x)


@pytest.mark.parametrize("transform", ON_AXES)
def test_the_rank_of_the_fit_rows_is_kept(embeddings, sites, controls, transform):
    wide = np.hstack([embeddings, embeddings[:, :2], np.full((len(sites), 1), 7.0)])
    assert transform(wide, sites, controls).shape == (len(sites), D)
    with pytest.raises(ValueError, match="equal"):
        transform(np.ones((len(sites), D)), sites, controls)


@pytest.mark.parametrize("transform", ON_CONTROLS)
class TestOnControls:
    @pytest.mark.parametrize("by", ["plate", "experiment"])
    def test_other_rows_have_no_influence(self, transform, by, embeddings, sites, controls):
        before = transform(embeddings, sites, controls, by=by)
        changed = embeddings.copy()
        treated = np.flatnonzero(~controls)
        changed[treated[::2]] *= 100
        after = transform(changed, sites, controls, by=by)
        kept = np.ones(len(sites), bool)
        kept[treated[::2]] = False
        np.testing.assert_array_equal(after[kept], before[kept])
        assert not np.allclose(after[~kept], before[~kept])

    def test_batches_without_fit_rows_fall_back(self, transform, embeddings, sites, controls):
        # Plate 1 of RPE-01 learns from its experiment, all of RPE-02 from the cell type.
        few = controls.copy()
        plate = plates_of(sites)[0]
        few[plate[1:]] = False  # one control is left
        few[of_experiment(sites, "RPE-02")] = False
        out = transform(embeddings, sites, few, by="plate")
        rpe2 = of_experiment(sites, "RPE-02")
        if transform not in ON_AXES:
            by_experiment = transform(embeddings, sites, few, by="experiment")
            by_cell_type = transform(embeddings, sites, few, by="cell_type")
            np.testing.assert_array_equal(out[plate], by_experiment[plate])
            np.testing.assert_array_equal(out[rpe2], by_cell_type[rpe2])
            np.testing.assert_array_equal(by_experiment[rpe2], by_cell_type[rpe2])
        assert np.isfinite(out).all()
        none = controls & (sites["cell_type"] != "U2OS")
        with pytest.raises(ValueError, match="U2OS .*U2OS-01_1_00"):
            transform(embeddings, sites, none)

    def test_features_that_do_not_vary(self, transform, embeddings, sites, controls):
        x = embeddings.astype(np.float32)
        x[controls, 1] = 0.1
        x[np.flatnonzero(controls)[::2], 1] = np.nextafter(np.float32(0.1), np.float32(1))
        x[controls, 3] = 0.0
        x[:, 4] = 7.0
        out = transform(x, sites, controls, by="plate")
        assert out.dtype == np.float32
        assert np.isfinite(out).all() and np.abs(out).max() < 1e3


@pytest.mark.parametrize("transform", ON_CONTROLS + ON_ALL_ROWS)
def test_rows_in_any_order_whatever_their_labels(transform, embeddings, sites, controls):
    fit = controls | (transform in ON_ALL_ROWS)
    order = np.random.default_rng(1).permutation(len(sites))
    given = embeddings.copy()
    expected = apply(transform, embeddings, sites, fit)[order]
    relabelled = sites[order]
    relabelled["sirna_id"], relabelled["well_type"] = -1, "treatment"
    out = apply(transform, embeddings[order], relabelled, fit[order])
    np.testing.assert_allclose(out, expected, rtol=1e-8, atol=1e-8)
    np.testing.assert_array_equal(embeddings, given)  # the input is not written to


NAN = np.where(np.arange(240) == 7, np.nan, np.ones((D, 240))).T


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"embeddings": np.ones((240, D), np.int64)}, "int64"),
        ({"embeddings": NAN}, "row 7 .*finite"),
        ({"embeddings": np.ones((239, D))}, "fit .*240"),
        ({"fit": np.ones(240, int)}, "fit .*int64"),
        ({"sites": np.zeros(239, LAYOUT)}, "239 sites"),
        ({"by": "batch"}, "batch"),
    ],
)
@pytest.mark.parametrize("transform", ON_CONTROLS + ON_ALL_ROWS)
def test_bad_input(transform, embeddings, sites, controls, change, named):
    given = {"embeddings": embeddings, "sites": sites, "fit": controls} | change
    with pytest.raises(ValueError, match=named):
        apply(transform, **given)
