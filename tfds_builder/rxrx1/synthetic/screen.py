"""A synthetic screen: an RxRx1 release in the official layout, with planted biology and batches.

The plates are the real ones, thinned out: positive controls at their 30 fixed wells, B02 untreated,
treatments drawn again for every experiment over the other inner wells. Each site is a pure function
of (parameters, experiment, plate, well, site), so sites are drawn in any order, by any number of
threads, and an interrupted run goes on. truth.json, the last file, has every planted effect.
"""

from __future__ import annotations

import functools
import math
from dataclasses import asdict, dataclass, fields

import numpy as np

from ..release.metadata import CELL_TYPES, CHANNELS, UNTREATED, Site
from . import planted
from .cells import PARAMETER_NAMES, draw_site

ROWS = "BCDEFGHIJKLMNO"  # inner rows of the 16 x 24 plate
COLUMNS_USED = range(2, 24)  # inner columns
CONTROL_WELLS = tuple(f"{r}{c:02d}" for r in "CFHJM" for c in (3, 7, 11, 15, 19, 22))
UNTREATED_WELL = "B02"
TREATMENT_WELLS = tuple(
    well
    for well in (f"{r}{c:02d}" for r in ROWS for c in COLUMNS_USED)
    if well not in CONTROL_WELLS and well != UNTREATED_WELL
)  # 277, as in the real plates
FIRST_CONTROL_ID, UNTREATED_ID = 1108, 1138
LIMITS = {
    "size": (16, 2048), "field": (0, 1024), "plates": (1, 4), "treatments": (1, 277),
    "replicates": (1, 277), "positive_controls": (0, 30), "sites": (1, 2), "batch_effect": (0, 3),
    "effect": (0, 3), **{cell_type.lower(): (0, 99) for cell_type in CELL_TYPES},
}  # fmt: skip
DRAWING = 3  # raise it whenever the same parameters give other images


@dataclass(frozen=True)
class Screen:
    """Parameters of a synthetic screen; the defaults are the demo (3,760 sites, 64 classes)."""

    seed: int = 0
    size: int = 64  # side of the images, pixels
    field: float = 0.0  # side of the imaged field, pixels of the real 512 x 512 images; 0: `side`
    huvec: int = 10  # experiments per cell type
    rpe: int = 0
    hepg2: int = 0
    u2os: int = 0
    plates: int = 4  # per experiment, 1..4; each holds one group of treatments
    treatments: int = 16  # siRNAs per plate, at most 277
    replicates: int = 1  # wells per treatment on its plate
    positive_controls: int = 30  # per plate, at most 30
    sites: int = 2  # per well, 1 or 2
    batch_effect: float = 1.0  # scales experiment and plate effects; 0: none, a control
    effect: float = 1.0  # scales siRNA effects; 0: none, a control
    effects: str = "all"  # of experiments and plates: all | gain (of the channels alone, a control)

    def __post_init__(self) -> None:
        for f in fields(self):
            value, kind = getattr(self, f.name), int | float if f.type == "float" else int
            low, high = LIMITS.get(f.name, (-math.inf, math.inf))
            if f.name == "effects":
                valid, expected = value in planted.EFFECTS, f"one of {', '.join(planted.EFFECTS)}"
            else:
                valid = isinstance(value, kind) and not isinstance(value, bool)
                valid, expected = valid and low <= value <= high, f"{f.type}, {low} to {high}"
            if not valid:
                raise ValueError(f"Screen.{f.name} is {value!r}; expected {expected}")
        if self.treatments * self.replicates > len(TREATMENT_WELLS):
            raise ValueError(
                f"Screen: {self.treatments} treatments x {self.replicates} replicates need "
                f"{self.treatments * self.replicates} wells; a plate has {len(TREATMENT_WELLS)}"
            )
        if not self.experiments():
            raise ValueError("Screen: no experiments; set huvec, rpe, hepg2 or u2os above 0")

    @property
    def side(self) -> float:
        """`field`; by default four real pixels per pixel, in which textures can be seen, or all."""
        return self.field or min(4.0 * self.size, 512.0)

    def experiments(self) -> list[tuple[str, str, str]]:
        """(experiment, cell type, dataset) of all experiments.

        The last fifth of each cell type, rounded up, is "test", the others "train".
        """
        out = []
        for cell_type in CELL_TYPES:
            count = getattr(self, cell_type.lower())
            train = count - -(-count // 5)
            out += [
                (f"{cell_type}-{k + 1:02d}", cell_type, "train" if k < train else "test")
                for k in range(count)
            ]
        return out


def screen_sites(screen: Screen) -> list[Site]:
    """All sites in the official order: test first, then experiment, plate, well, site."""
    out = []
    for number, (experiment, cell_type, dataset) in enumerate(screen.experiments()):
        for plate in range(1, screen.plates + 1):
            # The official screens rotate the treatment groups over the plates.
            group = (plate - 1 + number) % screen.plates
            for well, (well_type, sirna_id) in _plate_layout(screen, experiment, plate, group):
                well_id = f"{experiment}_{plate}_{well}"
                # A name that cannot be taken for a real product id.
                sirna = UNTREATED if sirna_id == UNTREATED_ID else f"synthetic{sirna_id:04d}"
                out += [
                    Site(
                        f"{well_id}_{site}", well_id, cell_type, dataset, experiment, plate, well,
                        site, well_type, sirna, sirna_id,
                    )
                    for site in range(1, screen.sites + 1)
                ]  # fmt: skip
    return sorted(out, key=lambda s: (s.dataset != "test", s.experiment, s.plate, s.well, s.site))


def _plate_layout(screen: Screen, experiment: str, plate: int, group: int):
    """Sorted (well, (well_type, sirna_id)) of one plate."""
    rng = planted.generator(screen.seed, "layout", experiment, plate)
    layout = {UNTREATED_WELL: ("negative_control", UNTREATED_ID)}
    for k, position in enumerate(rng.permutation(len(CONTROL_WELLS))):
        if k < screen.positive_controls:
            layout[CONTROL_WELLS[position]] = ("positive_control", FIRST_CONTROL_ID + k)
    free = rng.permutation(len(TREATMENT_WELLS))[: screen.treatments * screen.replicates]
    for k, position in enumerate(free):
        sirna_id = group * screen.treatments + k % screen.treatments
        layout[TREATMENT_WELLS[position]] = ("treatment", sirna_id)
    return sorted(layout.items())


def site_phenotype(screen: Screen, site: Site) -> tuple[np.ndarray, planted.Optics]:
    """Latent phenotype [24] and optics of a site's well."""
    experiment = _experiment_effect(screen, site.experiment)
    plate = _plate_effect(screen, site.experiment, site.plate)
    well = _well_effect(screen, site)
    effect = _sirna_effects(screen, site.sirna_id)[site.cell_type]
    phenotype = planted.well_phenotype(effect, experiment, plate, well)
    return phenotype, planted.well_optics(experiment, plate, well)


@functools.lru_cache(maxsize=256)
def _experiment_effect(screen: Screen, experiment: str) -> planted.ExperimentEffect:
    effect = planted.experiment_effect(screen.seed, experiment, screen.batch_effect)
    if screen.effects == "gain":
        none = planted.experiment_effect(screen.seed, experiment, 0.0)
        return none._replace(log_gain=effect.log_gain)
    return effect


def _plate_effect(screen: Screen, experiment: str, plate: int) -> planted.LocalEffect:
    effect = planted.plate_effect(screen.seed, experiment, plate, screen.batch_effect)
    if screen.effects == "gain":
        return effect._replace(shift=np.zeros_like(effect.shift))
    return effect


def _well_effect(screen: Screen, site: Site) -> planted.LocalEffect:
    scale = 0.0 if screen.effects == "gain" else screen.batch_effect
    return planted.well_effect(
        screen.seed, site.experiment, site.plate, site.row, site.column, scale
    )


@functools.lru_cache(maxsize=2048)
def _sirna_effects(screen: Screen, sirna_id: int) -> dict[str, np.ndarray]:
    strength = 0.0 if sirna_id == UNTREATED_ID else screen.effect
    return planted.sirna_effects(screen.seed, sirna_id, strength)


def render_site(screen: Screen, site: Site) -> np.ndarray:
    """The image of one site, uint8 [6, size, size]."""
    phenotype, optics = site_phenotype(screen, site)
    rng = planted.generator(screen.seed, "site", site.site_id)
    return draw_site(site.cell_type, phenotype, optics, rng, screen.size, screen.side)


def screen_truth(screen: Screen, sites: list[Site]) -> dict:
    """Everything planted, ready for JSON: siRNA effects, nuisance of experiments, plates, wells.

    Vectors [24] follow "parameters", vectors [6] follow "channels".
    """

    def plain(effect) -> dict:
        return {k: np.round(v, 5).tolist() for k, v in effect._asdict().items()}

    plates = sorted({(site.experiment, site.plate) for site in sites})
    return {
        "screen": {"drawing": DRAWING, **asdict(screen)},
        "parameters": PARAMETER_NAMES,
        "channels": CHANNELS,
        "sirnas": {
            sirna_id: {
                cell_type: np.round(effect, 5).tolist()
                for cell_type, effect in _sirna_effects(screen, sirna_id).items()
            }
            for sirna_id in sorted({site.sirna_id for site in sites})
        },
        "experiments": {
            name: plain(_experiment_effect(screen, name)) for name, _, _ in screen.experiments()
        },
        "plates": {
            f"{experiment}_{plate}": plain(_plate_effect(screen, experiment, plate))
            for experiment, plate in plates
        },
        "wells": {s.well_id: plain(_well_effect(screen, s)) for s in sites if s.site == 1},
    }
