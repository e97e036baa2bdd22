"""Where the cells of a synthetic site lie, and the smooth noise that they are drawn with.

Lengths are native pixels, as in `cells`.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import cv2
import numpy as np


@functools.lru_cache(maxsize=1)
def _texture() -> np.ndarray:
    """Periodic smooth noise [512, 512] float32, unit variance, correlation length 4 texels.

    One texture serves all sites (each samples it at random places): far cheaper than new noise.
    """
    white = np.random.Generator(np.random.PCG64(20200817)).standard_normal((512, 512))
    frequency = np.fft.fftfreq(512)
    envelope = np.exp(-2 * (np.pi * 4 / 2) ** 2 * (frequency[:, None] ** 2 + frequency**2))
    smooth = np.fft.ifft2(np.fft.fft2(white) * envelope).real
    return (smooth / smooth.std()).astype(np.float32)


def noise(u: np.ndarray, v: np.ndarray, along: float, across: float) -> np.ndarray:
    """Unit-variance noise at coordinates u, v (native pixels) and correlation lengths."""
    x = np.mod(u * np.float32(4 / along), 512).astype(np.float32)
    y = np.mod(v * np.float32(4 / across), 512).astype(np.float32)
    return cv2.remap(_texture(), x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


def ridges(field: np.ndarray, width: float) -> np.ndarray:
    """Thin bright lines along the zero crossings of a noise field, 0..1."""
    return np.exp(-((field / np.float32(width)) ** 2))


class Cells(NamedTuple):
    """All cells of one field, one entry a cell."""

    centre: np.ndarray  # [n, 2] native pixels
    angle: np.ndarray  # [n] radians, long axis
    size: np.ndarray  # [n] relative weight of the territory
    dying: np.ndarray  # [n] 0 or 1
    normal: np.ndarray  # [n, 24] standard normals for everything else


def place_cells(
    density: float, dying: float, clumping: float, rng: np.random.Generator, field: float
) -> Cells:
    """Cells on a jittered, rotated hexagonal grid with holes; cells beyond the border included."""
    # Clumped cells keep their distance: what is left out makes holes, not a wider grid.
    spacing = 512.0 / np.sqrt(np.clip(density, 10.0, 1200.0))
    reach = int(np.ceil((field * 0.75 + 60) / (spacing * 0.93)))
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1)
    turn, *shift = rng.uniform(0, 1, 3) * (2 * np.pi, spacing, spacing)
    grid = np.stack([columns + 0.5 * (rows % 2), rows * 0.866], 1) * spacing * 1.075
    waves = rng.normal(0, 1, (3, 6, 4))
    centre = grid @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    centre += field / 2 + np.array(shift)
    inside = np.all((centre > -40) & (centre < field + 40), axis=1)
    centre = centre[inside]
    normal = rng.standard_normal((len(centre), 28)).astype(np.float32)
    uniform = rng.uniform(0, 1, (len(centre), 2))
    centre = centre + normal[:, 24:26] * spacing * 0.2

    def smooth(kind: int, length: float) -> np.ndarray:
        phase = centre @ (waves[kind, :, :2].T / length) + waves[kind, :, 2] * 6
        return np.sin(phase).sum(1) / np.sqrt(3)

    keep = smooth(0, 70.0) + 0.35 * normal[:, 26] < _normal_quantile(1 - clumping)
    normal[:, 0] = 0.7 * normal[:, 0] + 0.7 * smooth(2, 60.0)  # neighbours are of like brightness
    angle = smooth(1, 160.0) * 1.2 + normal[:, 27] * 0.3
    size = np.exp(0.16 * normal[:, 23])
    dies = uniform[:, 0] < min(dying, 0.6)
    if not keep.any():
        keep[0] = True
    return Cells(*(np.asarray(a, np.float32)[keep] for a in (centre, angle, size, dies, normal)))


def _normal_quantile(share: float) -> float:
    """Crude quantile of the standard normal distribution (Tukey lambda), enough to set holes."""
    return 4.91 * (share**0.14 - (1 - share) ** 0.14)


def territories(
    cells: Cells, x: np.ndarray, y: np.ndarray, elongation: float, tile: int, pixel: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Owner of each pixel and the distances to it and to the runner-up (native pixels).

    The squared distance under a cell's own metric is a quadratic form of (x, y). Pixels are
    compared tile by tile with the cells nearby only, which keeps large images affordable.
    x, y: [h, w] float32 (already warped). Returns owner int [h, w], nearest and second float32.
    """
    c, s = np.cos(cells.angle), np.sin(cells.angle)
    stretch = np.float32(elongation) / cells.size**2
    squeeze = 1 / np.float32(elongation) / cells.size**2
    a = squeeze * c * c + stretch * s * s
    b = 2 * (squeeze - stretch) * c * s
    d = squeeze * s * s + stretch * c * c
    h, w = x.shape
    owner = np.empty((h, w), np.int32)
    nearest, second = np.empty((2, h, w), np.float32)
    for top in range(0, h, tile):
        for left in range(0, w, tile):
            part = np.s_[top : top + tile, left : left + tile]
            px, py = x[part].ravel(), y[part].ravel()
            mid = np.array([px.mean(), py.mean()])
            far = np.abs(cells.centre - mid).max(1)
            near = np.flatnonzero(far < max(tile * pixel / 2 + 45, np.sort(far)[:8][-1] + 1))
            dx = px[:, None] - cells.centre[near, 0]
            dy = py[:, None] - cells.centre[near, 1]
            q = a[near] * dx
            q += b[near] * dy
            q *= dx
            dy *= dy
            dy *= d[near]
            q += dy
            first = q.argmin(1)
            rows = np.arange(len(q))
            shape = x[part].shape
            owner[part] = near[first].reshape(shape)
            nearest[part] = q[rows, first].reshape(shape)
            q[rows, first] = np.inf
            second[part] = q.min(1).reshape(shape)
    return owner, np.sqrt(np.maximum(nearest, 0)), np.sqrt(np.minimum(np.maximum(second, 0), 1e6))
