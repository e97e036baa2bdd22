"""Embeddings with effects of plates, for tests of transforms."""

import numpy as np
import pytest
from arrays import make_sites

from rxrx1_jax.methods.combat_harmony import combat, harmony

EXPERIMENTS = ("RPE-01", "RPE-02", "RPE-03", "U2OS-01", "U2OS-02")
PLATES, WELLS, D = 2, 24, 5  # the first 12 wells of a plate are controls
ON_ALL_ROWS = (combat, harmony)
LIBRARIES = {combat: "neuroCombat", harmony: "harmonypy"}
EXTRAS = {combat: "analysis", harmony: "harmony"}


@pytest.fixture
def sites():
    kinds = [("positive_control", 1108 + well) for well in range(WELLS // 2)]
    kinds += [("treatment", well % 4) for well in range(WELLS // 2)]
    return make_sites(
        ((experiment, plate, f"{well:02}", *kind)
         for experiment in EXPERIMENTS
         for plate in range(1, PLATES + 1)
         for well, kind in enumerate(kinds)),
        sites=(1,),
    )  # fmt: skip


@pytest.fixture
def controls(sites):
    return sites["well_type"] != "treatment"


@pytest.fixture
def embeddings(sites):
    """Biology by siRNA; offset, gain and mixing by plate."""
    rng = np.random.default_rng(0)
    biology = rng.normal(size=(1200, D))[sites["sirna_id"]]
    x = biology + 0.3 * rng.normal(size=(len(sites), D))
    for batch in plates_of(sites):
        mixing = np.eye(D) + 0.3 * rng.normal(size=(D, D))
        x[batch] = x[batch] @ mixing * rng.uniform(0.5, 2, D) + 2 * rng.normal(size=D)
    return x


def plates_of(sites):
    return [
        np.flatnonzero((sites["experiment"] == experiment) & (sites["plate"] == plate))
        for experiment in EXPERIMENTS
        for plate in range(1, PLATES + 1)
    ]


def of_experiment(sites, name):
    return sites["experiment"] == name


def apply(transform, embeddings, sites, fit, **arguments):
    """Skips where the library of an optional extra is missing."""
    if transform in LIBRARIES:
        pytest.importorskip(LIBRARIES[transform])
    return transform(embeddings, sites, fit, **arguments)
