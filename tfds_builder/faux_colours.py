"""Faux colours: six fluorescence channels as one picture, in the manner of the paper's figures.

Contrast is set by percentiles of pooled pixels, so that images drawn with the same limits can be
compared. Images hold the first C of the six channels.
"""

from collections.abc import Sequence

import numpy as np

# The paper's faux colours, in the order of the channels. Its blue is lightened here: pure blue is
# too dark on a screen to show the texture of a nucleus.
CHANNELS = ("nuclei", "ER", "actin", "nucleoli, RNA", "mitochondria", "Golgi")
CHANNEL_COLOURS = np.array(
    [(0.2, 0.35, 1), (0, 1, 0), (1, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0)], np.float32
)
COLOUR_NAMES = ("blue", "green", "red", "cyan", "magenta", "yellow")
# Percentiles of the pixels drawn black and in full colour. In a composite six channels lie on each
# other, and their dim parts together would wash it out to white, hence its higher black.
CHANNEL_PERCENTILES = (1.0, 99.5)
COMPOSITE_PERCENTILES = (30.0, 99.5)


def contrast_limits(
    images: Sequence[np.ndarray], percentiles: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Black and full-colour levels [C] f32 of uint8 images [C, H, W], pooled."""
    pixels = np.concatenate([image.reshape(len(image), -1) for image in images], axis=1)
    low, high = np.percentile(pixels, percentiles, axis=1).astype(np.float32)
    return low, np.maximum(high, low + 1)  # a flat channel stays black


def stretch(image: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """uint8 [C, H, W] -> f32 [C, H, W] in 0..1."""
    scaled = (image.astype(np.float32) - low[:, None, None]) / (high - low)[:, None, None]
    return scaled.clip(0, 1)


def composite(planes: np.ndarray) -> np.ndarray:
    """f32 [C, H, W] in 0..1 -> RGB [H, W, 3] in 0..1. Screening keeps bright overlaps unclipped."""
    colours = CHANNEL_COLOURS[: len(planes), None, None, :]
    return 1 - np.prod(1 - planes[..., None] * colours, axis=0)
