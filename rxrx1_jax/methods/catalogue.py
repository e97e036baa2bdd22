"""The methods by name: the one table that correct, diagnose and the leaderboard read.

A name means the same everywhere. Transforms called `..._plate` or `..._experiment` are fitted on
the control wells of each; ComBat and Harmony learn from every site that they correct.
"""

import importlib
from collections.abc import Callable, Set

import numpy as np

from rxrx1_jax.config import nearest
from rxrx1_jax.methods import assignment, transforms
from rxrx1_jax.methods.centroids import centroids
from rxrx1_jax.methods.combat_harmony import combat, harmony
from rxrx1_jax.methods.evidence import AdaBN, Evidence, Method, Orientations, Transform

_SURE = -50.0  # log-probability of what an assignment rules out; any large number would do


def find(name: str) -> Method:
    """An entry of METHODS, or the Method of a user's own at module.name; ValueError if neither."""
    if name in METHODS:
        return METHODS[name]
    module, _, attribute = name.rpartition(".")
    found = None
    if module:
        try:
            found = getattr(importlib.import_module(module), attribute, None)
        except (ImportError, SystemExit) as error:
            raise ValueError(f"method {name!r}: {error}") from error
    if not isinstance(found, Method):
        raise ValueError(
            f"method {name!r}: expected {nearest(name, METHODS)}, or an evidence.Method of your own"
            " as module.name"
        )
    return found


def reference(name: str) -> str:
    """The method that one is compared with: its classifier without transforms, or "none"."""
    method = find(name)
    members = method.grid or (method,)
    if all(one.transforms for one in members):
        for other, plain in METHODS.items():
            stages = plain.transforms, plain.adapt, plain.decide
            if not any(stages) and all(one.classify is plain.classify for one in members):
                return other
    return "none"


def assigned(assign: Callable[..., np.ndarray]) -> Callable[[Evidence], np.ndarray]:
    """The stage `decide`: the siRNA that an assignment over the experiment gives to each site."""

    def decide(evidence: Evidence) -> np.ndarray:
        ids = assign(evidence.log_probs, evidence.sites, evidence.classes, evidence.role)
        return np.where(ids[:, None] == evidence.classes, 0.0, _SURE).astype(np.float32)

    return decide


def _read_out(
    function: Callable[..., np.ndarray], by: str, uses: Set[str], about: str, on: str = "control",
    version: int = 1,
) -> Method:  # fmt: skip
    """A transform, read out by centroids."""
    chain = (Transform(function, by, on),)
    return Method(None, chain, centroids, uses=frozenset(uses), version=version, about=about)


_CONTROLS, _IMAGES = frozenset({"test_controls"}), frozenset({"test_images", "test_controls"})
_DESIGN = _IMAGES | {"design"}
METHODS = {
    "none": Method(about="the network as it was trained"),
    "orientations": Method(
        Orientations(), about="mean over the eight orientations of each image"
    ),
    "centroids": Method(
        classify=centroids, about="nearest class mean of the embeddings, in place of the last layer"
    ),
    "sphering_train_controls": _read_out(
        transforms.sphering, "cell_type", set(),
        "embeddings whitened on the controls of the training experiments, per cell type",
        version=2,
    ),
    "adabn_experiment_controls": Method(
        AdaBN("experiment", "control"), uses=_CONTROLS, version=2,
        about="BatchNorm statistics of each experiment's control wells",
    ),
    "adabn_plate_controls": Method(
        AdaBN("plate", "control"), uses=_CONTROLS, version=2,
        about="BatchNorm statistics of each plate's control wells",
    ),
    "centre_scale_plate": _read_out(
        transforms.centre_scale, "plate", _CONTROLS,
        "embeddings centred and scaled on the controls of their plate",
    ),
    "sphering_experiment": _read_out(
        transforms.sphering, "experiment", _CONTROLS,
        "embeddings whitened on the controls of their experiment", version=2,
    ),
    "tvn_plate": _read_out(
        transforms.tvn, "plate", _CONTROLS,
        "typical variation normalisation on the controls of each plate (Ando 2017), as EFAAR's",
        version=2,
    ),
    "coral_align_plate": _read_out(
        transforms.coral_align, "plate", _CONTROLS,
        "the controls of every plate given one mean and one covariance (Sun 2016)",
    ),
    "adabn_experiment": Method(
        AdaBN("experiment"), uses=_IMAGES, version=2,
        about="BatchNorm statistics of each experiment's treatment wells (Li 2016)",
    ),
    "adabn_plate": Method(
        AdaBN("plate", "all"), uses=_IMAGES, version=2,
        about="BatchNorm statistics of all wells of each plate (Lin 2022)",
    ),
    "centre_experiment": _read_out(
        transforms.centre, "experiment", _IMAGES,
        "embeddings minus the mean of their experiment's treatments", "treatment",
    ),
    "combat_experiment": _read_out(
        combat, "experiment", _IMAGES,
        "ComBat over all embeddings of a cell type (Johnson 2007; extra `analysis`)", "all",
    ),
    "harmony_experiment": _read_out(
        harmony, "experiment", _IMAGES,
        "Harmony over all embeddings of a cell type (Korsunsky 2019; extra `harmony`)", "all",
    ),
    "assign_once": Method(
        decide=assigned(assignment.assign_once), uses=_DESIGN,
        about="the best assignment with no siRNA twice in an experiment",
    ),
    "assign_plate_groups": Method(
        decide=assigned(assignment.assign_plate_groups), uses=_DESIGN,
        about="the same, and each plate holds one group of siRNAs",
    ),
    "adabn_experiment_assign": Method(
        AdaBN("experiment"), decide=assigned(assignment.assign_once), uses=_DESIGN, version=2,
        about="adabn_experiment, then assign_once",
    ),
}  # fmt: skip
