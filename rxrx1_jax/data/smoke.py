"""A tiny screen in memory, drawn in a second, for `--config=smoke`: does everything run here?

Blurred spots whose size and colour the siRNA sets, and channel gains that the experiment sets. It
has no biology: for that there is the synthetic screen of `tfds build`.
"""

import itertools

import numpy as np

from rxrx1_jax.data.images import InMemory

CELL_TYPES, EXPERIMENTS, SIRNAS, WELLS, CONTROLS = ("HUVEC", "RPE"), 3, 8, 2, 5
CHANNELS, SPOTS = 6, 10  # spots of a site


def screen(size: int = 32, seed: int = 0) -> InMemory:
    """252 sites of two cell types: `data.name = "rxrx1_jax.data.smoke.screen()"`.

    Args:
      size: side of the images, pixels.
    """
    rng = np.random.default_rng(seed)
    wells = [("treatment", sirna) for sirna in range(SIRNAS)] * WELLS
    wells += [("positive_control", SIRNAS + i) for i in range(CONTROLS)]
    names = ("site_id", "well_id", "cell_type", "experiment", "dataset", "well", "well_type",
             "site", "sirna_id", "sirna")  # fmt: skip
    rows, planes = [], []
    colours = rng.uniform(0.3, 1.0, (SIRNAS + CONTROLS, CHANNELS))
    widths = np.geomspace(size / 24, size / 10, SIRNAS + CONTROLS)
    for cell_type, number in itertools.product(CELL_TYPES, range(1, EXPERIMENTS + 1)):
        experiment, gain = f"{cell_type}-{number:02}", rng.uniform(0.6, 1.6, CHANNELS)
        for (well, (kind, sirna)), site in itertools.product(enumerate(wells), (1, 2)):
            name = f"{chr(ord('B') + well // 10)}{well % 10 + 2:02}"
            well_id = f"{experiment}_1_{name}"
            part = "test" if number == EXPERIMENTS else "train"
            rows.append((f"{well_id}_{site}", well_id, cell_type, experiment, part, name, kind,
                         site, sirna, f"smoke{sirna}"))  # fmt: skip
            light = _spots(rng, size, widths[sirna]) * (120 * colours[sirna] * gain)[:, None, None]
            planes.append(np.minimum(rng.poisson(light + 5), 255).astype(np.uint8))
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    about = {"name": "smoke", "version": "1.0.0", "source": "drawn in memory"}
    return InMemory(np.stack(planes), columns, about=about)


def _spots(rng: np.random.Generator, size: int, width: float) -> np.ndarray:
    """Bells of a width at random places, 0 to 1: [size, size]."""
    places = rng.uniform(0, size, (2, SPOTS, 1))
    rows, columns = np.exp(-((np.arange(size) - places) ** 2) / (2 * width**2))
    return np.minimum(rows.T @ columns, 1)
