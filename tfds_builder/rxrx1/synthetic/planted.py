"""Planted effects of a synthetic screen: what each siRNA does, and what each batch does to it.

A well's latent phenotype [24] (see cells.PARAMETERS) is

    mixing_experiment @ (efficacy_experiment * effect(siRNA, cell type))
        + shift_experiment + shift_plate + shift_well.

An effect changes the shapes and textures of cells and leaves the intensities of a site almost as
they are, as far as `intensities` can tell: else a few means would name the siRNA.

The mixing acts on the effect itself, so that no normalisation on controls can remove it. Effects
of experiments, plates and wells depend on (seed, experiment, plate, well) alone, never on the
siRNA: each draw has a random generator keyed by those names.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np

from ..release.metadata import CELL_TYPES
from .cells import PARAMETERS, PLAIN_OPTICS, Optics
from .intensities import spared

DIMENSIONS = len(PARAMETERS)

# Sizes are in latent units (steps of cells.PARAMETERS) unless they say otherwise.
EFFECT_STRENGTH = 32.0  # median length of a siRNA's effect in HUVEC, before the next two
EFFECT_SPREAD = 0.35  # log-sd of that length between siRNAs
EFFECT_LIMIT = 11.0  # saturation: limit * tanh(z / limit)
EFFECT_SHARE = 0.4  # of the parameters that a siRNA touches
INTENSITY_SHARE = 0.1  # of what an effect does to the twelve intensities (`intensities`)
DENSITY_LOSS = 2.0  # latent units of cell density that any siRNA costs
COMMON_SHARE = 0.75  # of an effect's variance that all cell types share
RESPONSE = {"HUVEC": 1.0, "RPE": 0.8, "HEPG2": 0.75, "U2OS": 0.65}
EXPERIMENT_SHIFT, PLATE_SHIFT, WELL_SHIFT = 2.0, 0.2, 0.2  # sd
PLATE_SLOPE = 0.2  # sd, from the middle of a plate to its edge
EXPERIMENT_MIXING, MIXING_RANK = 0.2, 3  # mixing = I + .2 U V' / sqrt(24 * 3), U, V normal
EXPERIMENT_EFFICACY = 0.2  # log-sd
EXPERIMENT_GAIN = np.array([0.24, 0.25, 0.17, 0.22, 0.28, 0.32])  # log-sd of each channel
PLATE_GAIN, WELL_GAIN = 0.08, 0.07  # log-sd of each channel
OUTLIERS = 0.08  # share of experiments: 4 of the 51 real ones
OUTLIER_GAIN, OUTLIER_SHIFT = (1.0, 2.0), 2.0  # log gain of all channels; factor of the shift
EXPERIMENT_OFFSET = 0.3  # sd, counts
EXPERIMENT_BLEED = 0.4  # log-sd
EXPERIMENT_BLUR = 0.5  # log-sd
EXPERIMENT_ILLUMINATION = 0.12  # sd of slope and curvature, relative to the field's half-width
EXPERIMENT_NOISE = 0.2  # log-sd
EDGE_DENSITY = 0.25  # latent units of cell density lost in the outermost used rows and columns
TYPICAL_BLUR = PLAIN_OPTICS.blur
EFFECTS = ("all", "gain")  # which effects of experiments and plates a screen may have

# Correlation of the log means of the 24 real HUVEC experiments.
_GAIN_CORRELATION = np.array(
    [
        [1.00, 0.23, -0.22, 0.01, 0.58, -0.29],
        [0.23, 1.00, 0.27, 0.91, -0.04, 0.05],
        [-0.22, 0.27, 1.00, 0.44, -0.36, 0.85],
        [0.01, 0.91, 0.44, 1.00, -0.39, 0.24],
        [0.58, -0.04, -0.36, -0.39, 1.00, -0.44],
        [-0.29, 0.05, 0.85, 0.24, -0.44, 1.00],
    ]
)
_GAIN_FACTOR = np.linalg.cholesky(_GAIN_CORRELATION)


class ExperimentEffect(NamedTuple):
    """What one experiment does to all its wells."""

    shift: np.ndarray  # [24] latent units
    mixing: np.ndarray  # [24, 24] acts on the siRNA effect
    efficacy: float  # multiplies the siRNA effect
    log_gain: np.ndarray  # [6]
    offset: np.ndarray  # [6] counts
    bleed: float  # factor
    blur: float  # native pixels
    illumination: np.ndarray  # [3] x slope, y slope, curvature
    noise: float  # factor


class LocalEffect(NamedTuple):
    """What one plate, or one well, adds."""

    shift: np.ndarray  # [24] latent units
    log_gain: np.ndarray  # [6]


def generator(*key: object) -> np.random.Generator:
    """A random generator that depends on the words of `key` alone."""
    digest = hashlib.blake2b(":".join(map(str, key)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def sirna_effects(seed: int, sirna_id: int, strength: float) -> dict[str, np.ndarray]:
    """Effect [24] of one siRNA in each cell type; `strength` scales EFFECT_STRENGTH."""
    rng = generator(seed, "sirna", sirna_id)
    length = strength * EFFECT_STRENGTH * np.exp(EFFECT_SPREAD * rng.standard_normal())

    def direction() -> np.ndarray:
        sparse = rng.standard_normal(DIMENSIONS)
        touched = rng.permutation(DIMENSIONS)[: round(EFFECT_SHARE * DIMENSIONS)]
        out = np.zeros(DIMENSIONS)
        out[touched] = sparse[touched]
        return out / np.linalg.norm(out)

    common = direction()
    effects = {}
    for cell_type in CELL_TYPES:
        mixed = np.sqrt(COMMON_SHARE) * common + np.sqrt(1 - COMMON_SHARE) * direction()
        z = length * RESPONSE[cell_type] * mixed
        z = EFFECT_LIMIT * np.tanh(z / EFFECT_LIMIT)
        z = spared(cell_type, z, INTENSITY_SHARE)
        z[0] -= strength * DENSITY_LOSS
        effects[cell_type] = z
    return effects


def experiment_effect(seed: int, experiment: str, scale: float) -> ExperimentEffect:
    """The nuisance of one experiment; `scale` 1 as calibrated, 0 none."""
    rng = generator(seed, "experiment", experiment)
    odd = generator(seed, "outlier", experiment)
    outlying = odd.uniform() < OUTLIERS
    extreme = scale * odd.uniform(*OUTLIER_GAIN)
    far = EXPERIMENT_SHIFT * (OUTLIER_SHIFT if outlying else 1)
    left, right = rng.standard_normal((2, DIMENSIONS, MIXING_RANK))
    scatter = left @ right.T / np.sqrt(DIMENSIONS * MIXING_RANK)
    return ExperimentEffect(
        shift=scale * far * rng.standard_normal(DIMENSIONS),
        mixing=np.eye(DIMENSIONS) + scale * EXPERIMENT_MIXING * scatter,
        efficacy=float(np.exp(scale * EXPERIMENT_EFFICACY * rng.standard_normal())),
        log_gain=scale * EXPERIMENT_GAIN * (_GAIN_FACTOR @ rng.standard_normal(6))
        + extreme * outlying,
        offset=scale * EXPERIMENT_OFFSET * rng.standard_normal(6),
        bleed=float(np.exp(scale * EXPERIMENT_BLEED * rng.standard_normal())),
        blur=TYPICAL_BLUR * float(np.exp(scale * EXPERIMENT_BLUR * rng.standard_normal())),
        illumination=scale * EXPERIMENT_ILLUMINATION * rng.standard_normal(3),
        noise=float(np.exp(scale * EXPERIMENT_NOISE * rng.standard_normal())),
    )


def plate_effect(seed: int, experiment: str, plate: int, scale: float) -> LocalEffect:
    """The nuisance of one plate, scaled like its experiment's."""
    rng = generator(seed, "plate", experiment, plate)
    return LocalEffect(
        scale * PLATE_SHIFT * rng.standard_normal(DIMENSIONS),
        scale * PLATE_GAIN * rng.standard_normal(6),
    )


def well_effect(
    seed: int, experiment: str, plate: int, row: int, column: int, scale: float
) -> LocalEffect:
    """The nuisance of one well (row B = 2, column from 1); fewer cells at the plate's edge.

    A smooth gradient over the plate is scaled like its experiment's effects.
    """
    slope = generator(seed, "slope", experiment, plate).standard_normal((2, DIMENSIONS))
    place = np.array([row - 8.5, column - 12.5]) / (6.5, 10.5)  # -1 to 1
    rng = generator(seed, "well", experiment, plate, row, column)
    shift = WELL_SHIFT * rng.standard_normal(DIMENSIONS)
    shift += scale * PLATE_SLOPE * (place @ slope)
    if row in (2, 15) or column in (2, 23):
        shift[0] -= EDGE_DENSITY
    return LocalEffect(shift, WELL_GAIN * rng.standard_normal(6))


def well_phenotype(
    effect: np.ndarray, experiment: ExperimentEffect, plate: LocalEffect, well: LocalEffect
) -> np.ndarray:
    """Latent phenotype [24] of a well with siRNA effect [24]; the formula of the module's head."""
    biology = experiment.mixing @ (experiment.efficacy * effect)
    return biology + experiment.shift + plate.shift + well.shift


def well_optics(experiment: ExperimentEffect, plate: LocalEffect, well: LocalEffect) -> Optics:
    """How a well is imaged."""
    return Optics(
        gain=np.exp(experiment.log_gain + plate.log_gain + well.log_gain),
        offset=experiment.offset,
        bleed=experiment.bleed,
        blur=experiment.blur,
        illumination=experiment.illumination,
        noise=experiment.noise,
    )
