"""ComBat against the equations of its paper, Harmony against the library."""

import sys

import numpy as np
import pytest
from plate_effects import EXTRAS, LIBRARIES, ON_ALL_ROWS, D, apply, of_experiment, plates_of
from plate_effects import controls as controls
from plate_effects import embeddings as embeddings
from plate_effects import sites as sites

from rxrx1_jax.methods.combat_harmony import combat, harmony


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
