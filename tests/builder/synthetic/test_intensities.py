"""What the table says of intensities is what the drawing does, and effects hardly move them."""

import numpy as np
import pytest

from tfds_builder.rxrx1.release.metadata import CELL_TYPES
from tfds_builder.rxrx1.synthetic import cells, intensities, planted


@pytest.mark.parametrize("cell_type", CELL_TYPES)
def test_the_table_predicts_what_is_drawn(cell_type):
    """Of parameters that keep the number of cells, at a step that was not fitted."""
    slope, curvature = intensities.curves(cell_type)
    for name in ("nucleus_intensity", "er_extent", "actin_fibres", "mito_radius", "mito_intensity"):
        column, found = cells.PARAMETER_NAMES.index(name), []
        for value in (5.0, 0.0):
            latent = np.zeros(24)
            latent[column] = value
            draws = [np.random.Generator(np.random.PCG64(1000 + k)) for k in range(6)]
            images = [
                cells.draw_site(cell_type, latent, cells.PLAIN_OPTICS, rng, 64, 256.0)
                for rng in draws
            ]
            log = [[np.log(i.mean((1, 2))), np.log(i.std((1, 2)))] for i in images]
            found.append(np.mean(log, 0).ravel())
        expected = 5 * slope[:, column] + 25 * curvature[:, column]
        np.testing.assert_allclose(found[0] - found[1], expected, atol=0.06, err_msg=name)


@pytest.mark.parametrize("cell_type", CELL_TYPES)
def test_what_is_spared_keeps_its_share(cell_type):
    slope, curvature = intensities.curves(cell_type)
    rng = np.random.default_rng(3)
    for phenotype in rng.normal(0, 3, (5, 24)):
        before, after = (
            np.einsum("ij,j->i", slope, z) + np.einsum("ij,j->i", curvature, z**2)
            for z in (phenotype, intensities.spared(cell_type, phenotype, 0.1))
        )
        assert np.abs(after - 0.1 * before).max() < 0.1 * np.abs(before).max()


def test_effects_hardly_move_the_intensities(monkeypatch):
    """Drawn sites: siRNAs differ as sites of one siRNA do, and by four times more if unspared."""

    def spread():
        means, within = [], []
        for sirna in range(20):
            latent = planted.sirna_effects(0, sirna, 1.0)["HUVEC"]
            draws = [planted.generator("i", sirna, k) for k in range(6)]
            images = [
                cells.draw_site("HUVEC", latent, cells.PLAIN_OPTICS, rng, 64, 256.0)
                for rng in draws
            ]
            log = [np.log([*i.mean((1, 2)), *i.std((1, 2))]) for i in images]
            means.append(np.mean(log, 0))
            within.append(np.std(log, 0, ddof=1))
        return np.median(np.std(means, 0, ddof=1) / np.mean(within, 0))

    spared = spread()
    monkeypatch.setattr(planted, "spared", lambda cell_type, phenotype, kept: phenotype)
    assert spared < 1.1 and spread() > 4 * spared
