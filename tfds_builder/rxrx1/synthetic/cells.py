"""Drawing of one synthetic site: a latent phenotype becomes a six-channel fluorescence image.

The whole field is computed per pixel, not cell by cell: every pixel is given to one cell (a
Voronoi diagram whose metric is stretched per cell, so that territories fill space), and every
channel is a function of the position inside that cell. That costs about nine milliseconds of a core
at 64 px and grows with the number of pixels only. Lengths are in pixels of the real 512 x 512
images ("native pixels"), whatever the size of the output.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from ..release.metadata import CELL_TYPES
from .territories import noise, place_cells, ridges, territories

# name -> (natural logarithm per latent unit, base value for HUVEC, RPE, HEPG2, U2OS).
# Densities and diameters follow the real fields (nuclei per 512 x 512 field: 160, 146, 300+, 197;
# nuclear diameter 22-25 px, HepG2 13-20 px); the other values were set by eye beside real sites.
PARAMETERS: dict[str, tuple[float, tuple[float, float, float, float]]] = {
    "cell_density": (0.05, (165.0, 150.0, 330.0, 200.0)),  # per 512 x 512 native field
    "nucleus_radius": (0.035, (11.5, 11.5, 8.8, 12.3)),  # native pixels
    "nucleus_elongation": (0.15, (1.55, 1.5, 1.2, 1.25)),  # long axis / short axis
    "nucleus_intensity": (0.08, (1.0, 1.0, 1.0, 1.0)),
    "chromatin_texture": (0.20, (0.18, 0.15, 0.30, 0.15)),  # relative sd inside a nucleus
    "cell_reach": (0.05, (27.0, 38.0, 17.0, 34.0)),  # native pixels, where space is left
    "cell_elongation": (0.18, (1.9, 1.6, 1.1, 1.2)),
    "er_intensity": (0.08, (1.0, 1.0, 1.0, 1.0)),
    "er_grain": (0.15, (12.0, 12.0, 12.0, 12.0)),  # native pixels
    "er_extent": (0.09, (7.0, 11.0, 5.0, 9.0)),  # native pixels around the nucleus
    "actin_intensity": (0.08, (1.0, 1.0, 1.0, 1.0)),
    "actin_cortex": (0.20, (0.4, 0.6, 1.5, 0.8)),
    "actin_fibres": (0.15, (0.55, 1.1, 0.25, 0.5)),
    "actin_spacing": (0.20, (4.0, 4.0, 4.0, 4.0)),  # native pixels across the fibres
    "rna_intensity": (0.08, (1.0, 1.0, 1.0, 1.0)),
    "nucleoli_number": (0.25, (2.0, 2.5, 1.6, 3.0)),
    "mito_intensity": (0.08, (1.0, 1.0, 1.0, 1.0)),
    "mito_radius": (0.10, (5.5, 14.0, 6.0, 9.0)),  # native pixels around the nucleus
    "mito_granularity": (0.15, (2.5, 0.5, 1.0, 1.2)),
    "mito_spacing": (0.20, (5.0, 5.0, 5.0, 5.0)),  # native pixels
    "golgi_intensity": (0.08, (1.0, 1.0, 1.0, 1.0)),
    "golgi_dispersion": (0.12, (4.0, 5.0, 3.0, 4.5)),  # native pixels
    "apoptotic_fraction": (0.30, (0.03, 0.02, 0.04, 0.03)),
    "cell_variation": (0.14, (0.25, 0.25, 0.25, 0.25)),  # log-sd of intensities between cells
}
PARAMETER_NAMES = tuple(PARAMETERS)
ROUGHNESS = np.float32(2.5)  # of the borders of cells, native pixels
NUCLEUS_OFFSET = 1.8  # sd from the middle of the cell, native pixels
NUCLEOLI_RADIUS = np.float32(2.3)  # native pixels
CLUMPING = {"HUVEC": 0.06, "RPE": 0.06, "HEPG2": 0.30, "U2OS": 0.10}  # share of cells left out

# Mean counts of the real images (mean over experiments), by cell type and channel.
REAL_MEANS = np.array(
    [
        [4.3, 15.8, 7.2, 8.4, 2.8, 6.6],
        [2.7, 12.7, 12.6, 7.1, 4.3, 8.9],
        [11.0, 15.8, 12.9, 15.1, 11.5, 11.8],
        [8.6, 20.3, 12.7, 12.4, 8.4, 15.2],
    ]
)
BACKGROUND = 1.0  # counts, camera floor (real empty pixels hold 0-3)

# Mean of each drawn channel before bleed-through and optics, to be measured again after a change of
# the drawing: `draw_stains` at latent 0, PCG64 of seeds 0 to 39, 128 px of a field of 384.
DRAWN_MEANS = np.array(
    [
        [0.241, 0.566, 1.057, 0.561, 0.183, 0.157],
        [0.226, 0.711, 1.460, 0.647, 0.396, 0.167],
        [0.205, 0.395, 0.916, 0.409, 0.192, 0.139],
        [0.314, 0.672, 1.287, 0.646, 0.302, 0.169],
    ]
)

# Share of the channel in the row that comes from the stain in the column. Spectral overlap makes
# the real correlations: ER-RNA .95, nuclei-Golgi .7, actin-Golgi .65, ER-mitochondria .6.
BLEED = np.array(
    [
        [  # HUVEC
            [0.78, 0.22, 0.00, 0.00, 0.00, 0.00],
            [0.00, 1.00, 0.00, 0.00, 0.00, 0.00],
            [0.00, 0.00, 1.00, 0.00, 0.00, 0.00],
            [0.09, 0.91, 0.00, 0.00, 0.00, 0.00],
            [0.00, 0.09, 0.00, 0.00, 0.68, 0.23],
            [0.23, 0.00, 0.44, 0.13, 0.00, 0.20],
        ],
        [  # RPE
            [0.70, 0.01, 0.04, 0.03, 0.16, 0.06],
            [0.00, 0.36, 0.00, 0.52, 0.12, 0.00],
            [0.00, 0.00, 0.89, 0.00, 0.11, 0.00],
            [0.04, 0.18, 0.03, 0.60, 0.12, 0.03],
            [0.08, 0.12, 0.00, 0.00, 0.80, 0.00],
            [0.10, 0.00, 0.57, 0.12, 0.09, 0.12],
        ],
        [  # HEPG2
            [0.76, 0.08, 0.01, 0.01, 0.06, 0.07],
            [0.00, 0.58, 0.02, 0.31, 0.08, 0.00],
            [0.01, 0.01, 0.92, 0.00, 0.06, 0.00],
            [0.08, 0.49, 0.06, 0.27, 0.07, 0.02],
            [0.06, 0.09, 0.00, 0.02, 0.76, 0.08],
            [0.16, 0.00, 0.49, 0.14, 0.03, 0.17],
        ],
        [  # U2OS
            [0.81, 0.01, 0.00, 0.01, 0.01, 0.16],
            [0.01, 0.38, 0.06, 0.41, 0.13, 0.01],
            [0.03, 0.02, 0.86, 0.00, 0.08, 0.01],
            [0.12, 0.38, 0.16, 0.20, 0.10, 0.04],
            [0.09, 0.06, 0.00, 0.05, 0.79, 0.01],
            [0.14, 0.00, 0.46, 0.18, 0.01, 0.20],
        ],
    ]
)


class Optics(NamedTuple):
    """How one well is imaged; everything here is nuisance and knows nothing of the siRNA."""

    gain: np.ndarray  # [6] multiplies the signal of each channel
    offset: np.ndarray  # [6] counts added to the camera floor
    bleed: float  # multiplies the off-diagonal part of BLEED
    blur: float  # sd of the point spread, native pixels
    illumination: np.ndarray  # [3] x slope, y slope, curvature over the field (relative)
    noise: float  # multiplies the camera noise


PLAIN_OPTICS = Optics(np.ones(6), np.zeros(6), 1.0, 0.9, np.zeros(3), 1.0)


def phenotype_values(cell_type: str, latent: np.ndarray) -> dict[str, float]:
    """Latent [24] (units: one step of every parameter) -> physical values by name."""
    column = CELL_TYPES.index(cell_type)
    return {
        name: base[column] * float(np.exp(step * z))
        for (name, (step, base)), z in zip(PARAMETERS.items(), latent, strict=True)
    }


def draw_stains(
    cell_type: str, latent: np.ndarray, rng: np.random.Generator, pixels: int, field: float
) -> np.ndarray:
    """Concentration of the six stains, float32 [6, pixels, pixels], before optics and camera.

    latent: [24] float; rng: the site's own generator; field: side of the field in native pixels.
    """
    p = phenotype_values(cell_type, latent)
    pixel = field / pixels
    cells = place_cells(p["cell_density"], p["apoptotic_fraction"], CLUMPING[cell_type], rng, field)
    grid = (np.arange(pixels, dtype=np.float32) + 0.5) * np.float32(pixel)
    x0, y0 = np.meshgrid(grid, grid)
    ox, oy = rng.uniform(0, 500, 2).astype(np.float32)
    x = x0 + ROUGHNESS * noise(x0 + ox, y0 + oy, 14.0, 14.0)
    y = y0 + ROUGHNESS * noise(x0 + oy, y0 + ox + 77, 14.0, 14.0)
    tile = max(16, int(round(64 / pixel)))
    owner, r, r2 = territories(cells, x, y, p["cell_elongation"], tile, pixel)
    edge = (r2 - r) * 0.5  # about the distance to the border, native pixels

    n, dying = cells.normal, cells.dying
    variation = np.float32(p["cell_variation"])

    def per_cell(values: np.ndarray) -> np.ndarray:
        return np.asarray(values, np.float32)[owner]

    def level(column: int, extra: float) -> np.ndarray:
        """Log-normal brightness of each cell; dying cells are `extra` times brighter."""
        shared = 0.7 * n[:, 0] + 0.7 * n[:, column]
        return per_cell(np.exp(variation * shared - variation**2 / 2) * (1 + dying * (extra - 1)))

    # Nucleus: an ellipse near the centre of the territory, in a frame of its own.
    radius = p["nucleus_radius"] * np.exp(0.10 * n[:, 1]) * (1 - 0.4 * dying)
    ratio = np.sqrt(np.maximum(p["nucleus_elongation"] * np.exp(0.10 * n[:, 2]), 1.0))
    turn = cells.angle + 0.15 * n[:, 3]
    offset = NUCLEUS_OFFSET * n[:, 4:6]
    nucleus = cells.centre + offset
    nx, ny = x0 - per_cell(nucleus[:, 0]), y0 - per_cell(nucleus[:, 1])
    cosine, sine = per_cell(np.cos(turn)), per_cell(np.sin(turn))
    u, v = nx * cosine + ny * sine, ny * cosine - nx * sine
    size = per_cell(radius)
    rn = np.sqrt((u / per_cell(ratio)) ** 2 + (v * per_cell(ratio)) ** 2)
    outside = rn - size  # native pixels beyond the nuclear envelope
    soft = np.float32(max(1.6, pixel))
    inner = np.clip(0.5 - outside / soft, 0, 1)
    halo = np.maximum(outside, 0)

    limit = p["cell_reach"] * cells.size * (1 - 0.5 * dying)
    cover = np.clip((per_cell(limit) - r) / 4 + 0.5, 0, 1)
    body = cover * np.clip(0.25 + edge / 5, 0, 1)
    fine = noise(x0 + ox, y0 + oy, 2.3, 2.3)
    patch = noise(x0 - oy, y0 + ox, 12.0, 12.0)
    cytoplasm = 1 - 0.65 * inner

    dna = inner * level(6, 2.2) * np.float32(p["nucleus_intensity"])
    dna *= np.maximum(1 + np.float32(p["chromatin_texture"]) * fine, 0.2)
    dna *= per_cell(np.exp(0.25 * n[:, 7]))

    # ER, mitochondria and Golgi gather on one side of the nucleus.
    side = n[:, 21] * 2.0
    toward = u * per_cell(np.cos(side)) + v * per_cell(np.sin(side))
    polarity = np.maximum(1 + 0.5 * toward / (rn + 1), 0.3)

    rim = np.exp(-halo / np.float32(p["er_extent"])) * polarity
    folds = noise(x0 - ox, y0 - oy, p["er_grain"], p["er_grain"])
    sheet = (0.25 + 1.5 * rim) * body * np.maximum(1 + 0.40 * folds + 0.30 * fine, 0.1)
    brightness = level(8, 1.8)
    er = sheet * cytoplasm * brightness * np.float32(p["er_intensity"])

    # Fibres run along the cell (and its neighbours, whose axes vary slowly over the field); a
    # second, sparser set crosses the whole field.
    lane = per_cell(40.0 * n[:, 9])
    fibres = ridges(noise(u + lane, v + lane * 3, 70.0, p["actin_spacing"]), 0.35)
    course = ox / 80  # any angle
    across, down = x * np.cos(course) + y * np.sin(course), y * np.cos(course) - x * np.sin(course)
    crossing = ridges(noise(across + oy, down + ox, 150.0, 8.0), 0.22)
    density = np.maximum(1 + 0.7 * noise(x0 + 200, y0 + ox, 40.0, 40.0), 0)
    fibres = (fibres + 0.8 * crossing * (density > 1)) * density
    cortex = np.exp(-edge / 2.5) + 0.4 * np.exp(-np.abs(edge - 4) / 3) * ridges(fine, 0.6)
    actin = cover * (
        0.75
        + 0.25 * fine
        + np.float32(p["actin_cortex"]) * cortex
        + np.float32(p["actin_fibres"]) * fibres * (1 - 0.4 * inner)
        + 0.3 * rim
    )
    actin *= per_cell(np.exp(variation * (0.3 * n[:, 0] + 0.4 * n[:, 10]))) * np.float32(
        p["actin_intensity"]
    )

    nucleoli = np.zeros_like(rn)
    for k in range(4):
        share = np.clip(p["nucleoli_number"] + 0.4 * n[:, 11] - k, 0, 1)
        qu, qv = 0.42 * radius * n[:, 12 + 2 * k : 14 + 2 * k].clip(-1.4, 1.4).T
        distance = (u - per_cell(qu)) ** 2 + (v - per_cell(qv)) ** 2
        nucleoli += per_cell(share) * np.exp(-distance / NUCLEOLI_RADIUS**2)
    rna = (0.5 * body * cytoplasm * (1 + rim) + inner * (0.35 + 1.6 * nucleoli)) * brightness
    rna *= np.float32(p["rna_intensity"])

    strings = ridges(noise(x0 + oy, y0 - ox, p["mito_spacing"], p["mito_spacing"]), 0.35)
    grain = np.float32(p["mito_granularity"])
    mito = cover * np.exp(-halo / np.float32(p["mito_radius"])) * (1 - 0.7 * inner) * polarity
    mito *= (1 + grain * 2.2 * strings) / (1 + grain) * np.maximum(1 + 0.35 * patch, 0.1)
    mito *= level(20, 2.5) * np.float32(p["mito_intensity"])

    away = radius + 3.0
    gu, gv = away * np.cos(side) * ratio, away * np.sin(side) / ratio
    spread = np.float32(p["golgi_dispersion"])
    spot = np.exp(-((u - per_cell(gu)) ** 2 + (v - per_cell(gv)) ** 2) / (2 * spread * spread))
    golgi = cover * (0.12 + spot * (20.0 / (spread * spread)) * np.maximum(1 + 0.6 * fine, 0))
    golgi *= level(22, 1.5) * np.float32(p["golgi_intensity"])

    return np.stack([dna, er, actin, rna, mito, golgi])


def draw_site(
    cell_type: str,
    latent: np.ndarray,
    optics: Optics,
    rng: np.random.Generator,
    size: int,
    field: float,
) -> np.ndarray:
    """One site, uint8 [6, size, size] in the channel order of the release.

    Small images are drawn twice as fine and averaged: detail below a pixel must blur, not alias.
    """
    fine = 2 if size <= 128 else 1
    pixels = size * fine
    stains = draw_stains(cell_type, latent, rng, pixels, field)
    row = CELL_TYPES.index(cell_type)
    bleed = BLEED[row] * np.where(np.eye(6, dtype=bool), 1.0, optics.bleed)
    signal = REAL_MEANS[row] - BACKGROUND
    weights = (signal * optics.gain)[:, None] * bleed / DRAWN_MEANS[row]
    # Row by row: for the whole BLAS starts threads, which take cores from those of the build.
    image = np.matmul(weights.astype(np.float32), stains.swapaxes(0, 1)).swapaxes(0, 1)

    blur = optics.blur * pixels / field
    if blur > 0.2:
        image = np.stack([cv2.GaussianBlur(plane, (0, 0), blur) for plane in image])
    if fine == 2:
        pairs = image[..., ::2] + image[..., 1::2]
        image = (pairs[:, ::2] + pairs[:, 1::2]) / 4
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    slope_x, slope_y, curve = optics.illumination
    light = 1 + slope_x * ramp + slope_y * ramp[:, None] + curve * (ramp**2 + ramp[:, None] ** 2)
    image *= np.maximum(light, 0.1).astype(np.float32)
    image += (BACKGROUND + optics.offset).astype(np.float32)[:, None, None]
    image = np.maximum(image, 0)
    # Shot noise grows with the square root of the signal; averaging pixels would have shrunk it.
    grain = rng.standard_normal(image.shape, dtype=np.float32)
    image += np.float32(optics.noise) * grain * np.sqrt(0.03 * image + 0.06)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
