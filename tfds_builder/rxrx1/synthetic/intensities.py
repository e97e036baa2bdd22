"""How intensities follow the phenotype, and phenotypes that leave them nearly as they are.

The intensities of a site are twelve numbers: the logarithms of mean and standard deviation of its
six channels. About the untreated phenotype they are slope * z + curvature * z^2, summed over the
parameters z. intensities.tsv holds both, and is measured again after a change of the drawing:

    python -c "from tfds_builder.rxrx1.synthetic import intensities; intensities.write_table()"
"""

from __future__ import annotations

import csv
import functools
import io
from pathlib import Path

import numpy as np

from ..machine import map_in_order, write_whole
from ..release.metadata import CELL_TYPES, CHANNELS
from .cells import PARAMETER_NAMES, PLAIN_OPTICS, draw_site

TABLE = Path(__file__).with_name("intensities.tsv")
PIXELS, FIELD = 64, 256.0  # of the sites that are measured
STEPS, REPEATS = (-8.0, -4.0, 4.0, 8.0), 24  # latent units; sites per step
ROUNDS = 5  # of Newton's method
WEAKEST = 0.05  # directions that move the intensities by less, relative to the strongest, are free


def spared(cell_type: str, phenotype: np.ndarray, kept: float) -> np.ndarray:
    """The phenotype [24] nearby, whose intensities differ by `kept` of what the given one's do.

    Nearby: Newton's method takes the smallest step each time. Rounded, so that a last bit of the
    linear algebra of another machine changes no image.
    """
    slope, curvature = curves(cell_type)
    z = phenotype
    wanted = kept * (slope @ z + curvature @ z**2)
    for _ in range(ROUNDS):
        excess = slope @ z + curvature @ z**2 - wanted
        z = z - np.linalg.pinv(slope + 2 * curvature * z, rcond=WEAKEST) @ excess
    return np.round(z, 4)


@functools.cache
def curves(cell_type: str) -> tuple[np.ndarray, np.ndarray]:
    """(slope, curvature), f64 [12, 24] each, of the table."""
    with TABLE.open(newline="") as file:
        rows = [row for row in csv.reader(file, delimiter="\t") if row[0] == cell_type]
    assert [row[1] for row in rows] == list(PARAMETER_NAMES)
    found = np.array([row[2:] for row in rows], float)
    return found[:, :12].T, found[:, 12:].T


def intensities(image: np.ndarray) -> np.ndarray:
    """f64 [12]: log mean, then log standard deviation, of the channels of a site [6, H, W]."""
    return np.log(np.concatenate([image.mean((1, 2)), image.std((1, 2))]))


def measured(cell_type: str, repeats: int = REPEATS) -> tuple[np.ndarray, np.ndarray]:
    """What `curves` holds, drawn: least squares over STEPS of one parameter at a time."""

    def change(parameter: int) -> np.ndarray:
        out = []
        for step in STEPS:
            latent = np.zeros(len(PARAMETER_NAMES))
            latent[parameter] = step
            out.append(_mean_intensities(cell_type, latent, repeats) - plain)
        powers = np.array([[step, step**2] for step in STEPS])
        return np.linalg.lstsq(powers, np.array(out), rcond=None)[0]

    plain = _mean_intensities(cell_type, np.zeros(len(PARAMETER_NAMES)), repeats)
    found = np.array(list(map_in_order(change, range(len(PARAMETER_NAMES)))))
    return found[:, 0].T, found[:, 1].T


def _mean_intensities(cell_type: str, latent: np.ndarray, repeats: int) -> np.ndarray:
    draws = (np.random.Generator(np.random.PCG64(seed)) for seed in range(repeats))
    images = (draw_site(cell_type, latent, PLAIN_OPTICS, rng, PIXELS, FIELD) for rng in draws)
    return np.mean([intensities(image) for image in images], 0)


def write_table() -> None:
    """Minutes: TABLE, measured."""
    names = [f"{kind} {channel}" for kind in ("mean", "sd") for channel in CHANNELS]
    head = [f"{part} of {name}" for part in ("slope", "curvature") for name in names]
    rows = [["cell type", "parameter", *head]]
    for cell_type in CELL_TYPES:
        parts = np.concatenate(measured(cell_type)).T
        for parameter, values in zip(PARAMETER_NAMES, parts, strict=True):
            rows.append([cell_type, parameter, *(f"{value:.5f}" for value in values)])
    table = io.StringIO(newline="")
    csv.writer(table, delimiter="\t", lineterminator="\n").writerows(rows)
    write_whole(TABLE, table.getvalue().encode())
