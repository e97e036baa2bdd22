"""Embedding transforms against loops, closed forms, SciPy and the libraries themselves."""

import sys

import numpy as np
import pandas as pd
import pytest
import scipy.linalg
from arrays import LAYOUT, make_sites

from rxrx1_jax.methods import transforms
from rxrx1_jax.methods.combat_harmony import combat, harmony

EXPERIMENTS = ("RPE-01", "RPE-02", "RPE-03", "U2OS-01", "U2OS-02")
PLATES, WELLS, D = 2, 24, 5  # the first 12 wells of a plate are controls
ON_AXES = (transforms.tvn, transforms.coral_align)
ON_CONTROLS = (transforms.centre_scale, transforms.centre, transforms.sphering, *ON_AXES)
ON_ALL_ROWS = (combat, harmony)
LIBRARIES = {combat: "neuroCombat", harmony: "harmonypy"}
EXTRAS = {combat: "analysis", harmony: "harmony"}


@pytest.fixture
def sites():
    kinds = [("positive_control", 1108 + well) for well in range(WELLS // 2)]
    kinds += [("treatment", well % 4) for well in range(WELLS // 2)]
    return make_sites(
        ((experiment, plate, f"{well:02}", *kind)
         for experiment in EXPERIMENTS
         for plate in range(1, PLATES + 1)
         for well, kind in enumerate(kinds)),
        sites=(1,),
    )  # fmt: skip


@pytest.fixture
def controls(sites):
    return sites["well_type"] != "treatment"


@pytest.fixture
def embeddings(sites):
    """Biology by siRNA; offset, gain and mixing by plate."""
    rng = np.random.default_rng(0)
    biology = rng.normal(size=(1200, D))[sites["sirna_id"]]
    x = biology + 0.3 * rng.normal(size=(len(sites), D))
    for batch in plates_of(sites):
        mixing = np.eye(D) + 0.3 * rng.normal(size=(D, D))
        x[batch] = x[batch] @ mixing * rng.uniform(0.5, 2, D) + 2 * rng.normal(size=D)
    return x


def plates_of(sites):
    return [
        np.flatnonzero((sites["experiment"] == experiment) & (sites["plate"] == plate))
        for experiment in EXPERIMENTS
        for plate in range(1, PLATES + 1)
    ]


def of_experiment(sites, name):
    return sites["experiment"] == name


def apply(transform, embeddings, sites, fit, **arguments):
    """Skips where the library of an optional extra is missing."""
    if transform in LIBRARIES:
        pytest.importorskip(LIBRARIES[transform])
    return transform(embeddings, sites, fit, **arguments)


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


@pytest.mark.parametrize("transform", ON_ALL_ROWS)
class TestLibraries:
    def test_a_single_batch_is_left_as_it_is(self, transform, embeddings, sites):
        one = of_experiment(sites, "RPE-01") | (sites["cell_type"] == "U2OS")
        fit = np.ones(one.sum(), bool)
        out = apply(transform, embeddings[one], sites[one], fit)
        alone = of_experiment(sites[one], "RPE-01")
        np.testing.assert_array_equal(out[alone], embeddings[one][alone])
        assert not np.allclose(out[~alone], embeddings[one][~alone])

    def test_rows_outside_fit_are_refused(self, transform, embeddings, sites, controls):
        with pytest.raises(ValueError, match="fit .*120 of 240"):
            apply(transform, embeddings, sites, controls)
        with pytest.raises(ValueError, match="cell_type"):
            apply(transform, embeddings, sites, np.ones(len(sites), bool), by="cell_type")

    def test_a_missing_library_names_the_extra(self, transform, embeddings, sites, monkeypatch):
        monkeypatch.setitem(sys.modules, LIBRARIES[transform], None)
        with pytest.raises(ModuleNotFoundError, match=rf"rxrx1_jax\[{EXTRAS[transform]}\]"):
            transform(embeddings, sites, np.ones(len(sites), bool))


@pytest.mark.parametrize("by", ["experiment", "plate"])
def test_combat_solves_the_equations_of_the_paper_within_a_cell_type(by, embeddings, sites):
    """A feature that is constant stays."""
    wide = np.hstack([embeddings, np.full((len(sites), 1), 3.0)])
    out = apply(combat, wide, sites, np.ones(len(sites), bool), by=by)
    np.testing.assert_array_equal(out[:, D], 3.0)
    rpe = sites["cell_type"] == "RPE"
    out, x, batch = out[rpe, :D], embeddings[rpe], sites["experiment"][rpe]
    if by == "plate":
        batch = np.char.add(batch, sites["plate"][rpe].astype(str))
    names, n = np.unique(batch, return_counts=True)
    means = np.array([x[batch == name].mean(0) for name in names])
    grand = (n[:, None] * means).sum(0) / n.sum()
    residual = x - means[np.searchsorted(names, batch)]
    sigma = np.sqrt((residual**2).mean(0))
    z = (x - grand) / sigma
    for name in names:
        here = z[batch == name]
        size, gamma_hat, delta_hat = len(here), here.mean(0), here.var(0, ddof=1)
        tau, m, v = gamma_hat.var(ddof=1), delta_hat.mean(), delta_hat.var(ddof=1)
        shape, rate = m**2 / v + 2, m**3 / v + m  # inverse gamma prior, by moments
        gamma, delta = gamma_hat, delta_hat
        for _ in range(100):  # conditional posterior means, Johnson et al. 2007, section 3.2
            gamma = (size * tau * gamma_hat + delta * gamma_hat.mean()) / (size * tau + delta)
            delta = (rate + ((here - gamma) ** 2).sum(0) / 2) / (size / 2 + shape - 1)
        expected = sigma * (here - gamma) / np.sqrt(delta) + grand
        np.testing.assert_allclose(out[batch == name], expected, rtol=1e-3, atol=1e-3)


def test_combat_refuses_what_it_cannot_estimate(embeddings, sites):
    one_row = np.delete(np.arange(len(sites)), plates_of(sites)[0][1:])
    everything = np.ones(len(one_row), bool)
    with pytest.raises(ValueError, match="RPE-01_1_00_1"):
        apply(combat, embeddings[one_row], sites[one_row], everything, by="plate")
    flat = np.where(np.arange(D) == 2, embeddings, 1.0)
    with pytest.raises(ValueError, match="1 of 5 .*RPE"):
        apply(combat, flat, sites, np.ones(len(sites), bool))


def test_harmony_is_the_library_within_a_cell_type(embeddings, sites):
    library = pytest.importorskip("harmonypy")
    out = harmony(embeddings, sites, np.ones(len(sites), bool))
    rpe = sites["cell_type"] == "RPE"
    batch = {"experiment": sites["experiment"][rpe]}
    direct = library.run_harmony(embeddings[rpe], batch, "experiment", verbose=False)
    np.testing.assert_array_equal(out[rpe], direct.Z_corr)
    assert not np.allclose(out[rpe], embeddings[rpe])


def test_harmony_on_a_few_rows(embeddings, sites):
    few = np.flatnonzero(sites["cell_type"] == "U2OS")[::16]
    out = apply(harmony, embeddings[few], sites[few], np.ones(len(few), bool))
    assert len(few) < 15 and np.isfinite(out).all()
