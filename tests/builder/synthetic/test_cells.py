"""How drawn sites look: counts, nuclei and correlations of real cells; what a parameter changes."""

import cv2
import numpy as np
import pytest

from tfds_builder.rxrx1.synthetic import cells, planted


def _undisturbed(cell_type, key, size=64):
    rng = planted.generator(*key)
    return cells.draw_site(cell_type, np.zeros(24), cells.PLAIN_OPTICS, rng, size, 384.0)


# Mean counts per cell type and channel in the real images (mean over the 51 experiments).
REAL = {
    "HUVEC": (4.3, 15.8, 7.2, 8.4, 2.8, 6.6), "RPE": (2.7, 12.7, 12.6, 7.1, 4.3, 8.9),
    "HEPG2": (11.0, 15.8, 12.9, 15.1, 11.5, 11.8), "U2OS": (8.6, 20.3, 12.7, 12.4, 8.4, 15.2),
}  # fmt: skip


@pytest.mark.parametrize("cell_type", REAL)
def test_channel_means_are_those_of_the_real_cells(cell_type):
    """Within 12 %: eight sites scatter by about 5 %, real experiments by 20-90 %."""
    means = np.mean([_undisturbed(cell_type, ("t", k)) for k in range(8)], (0, 2, 3))
    np.testing.assert_allclose(means, REAL[cell_type], rtol=0.12)


@pytest.mark.parametrize(("cell_type", "low", "high"), [("HUVEC", 60, 130), ("HEPG2", 110, 260)])
def test_nuclei_can_be_counted(cell_type, low, high):
    """Real fields hold 85-160 nuclei per 512 px field (HepG2 300+); here the field is 384 px."""
    smooth = cv2.GaussianBlur(_undisturbed(cell_type, ["count"], 384)[0], (0, 0), 1.5)
    mask = cv2.threshold(smooth, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[1]
    mask = cv2.erode(mask, np.ones((3, 3), np.uint8), iterations=2)
    assert low < cv2.connectedComponents(mask)[0] - 1 < high


def test_channels_correlate_as_in_real_sites():
    """Real sites: ER-RNA .94-.98, nuclei-Golgi .56-.82, actin-Golgi .55-.80, actin-ER below .5."""
    images = [_undisturbed("U2OS", ("t", k)).reshape(6, -1) for k in range(4)]
    matrix = np.mean([np.corrcoef(image) for image in images], 0)
    assert matrix[1, 3] > 0.85
    assert 0.45 < matrix[0, 5] < 0.9 and 0.35 < matrix[2, 5] < 0.85 and matrix[1, 2] < 0.7
    assert matrix[0, 1] < 0.5


def test_parameters_show_in_the_image():
    """More cells, more nuclear stain; brighter mitochondria leave the nuclei alone."""

    def means(name, value):
        latent = np.zeros(24)
        latent[cells.PARAMETER_NAMES.index(name)] = value
        generators = [planted.generator("p", k) for k in range(3)]
        stains = [cells.draw_stains("RPE", latent, rng, 96, 384.0) for rng in generators]
        return np.mean(stains, (0, 2, 3))

    assert means("cell_density", 6)[0] > 1.15 * means("cell_density", -6)[0]
    dim, bright = means("mito_intensity", -3), means("mito_intensity", 3)
    assert bright[4] / dim[4] == pytest.approx(np.exp(6 * 0.08), rel=1e-4)
    np.testing.assert_array_equal(np.delete(dim, 4), np.delete(bright, 4))
