"""The methods by name: the one table that correct, diagnose and the leaderboard read.

A name means the same everywhere. Transforms called `..._plate` or `..._experiment` are fitted on
the control wells of each; ComBat and Harmony learn from every site that they correct.
"""

import functools
import importlib
from collections.abc import Callable, Set
from itertools import chain, pairwise

import numpy as np

from rxrx1_jax.config import nearest
from rxrx1_jax.methods import assignment, transforms
from rxrx1_jax.methods.centroids import centroids
from rxrx1_jax.methods.classifiers import joint
from rxrx1_jax.methods.combat_harmony import combat, harmony
from rxrx1_jax.methods.evidence import AdaBN, Evidence, Method, Orientations, Transform
from rxrx1_jax.methods.lda import lda
from rxrx1_jax.methods.softmax import softmax

STAGES = ("adapt", "transforms", "classify", "decide")
TRANSFORM, CLASSIFY, DECIDE = 1, 2, 3  # positions among them
_SURE = -50.0  # log-probability of what an assignment rules out; any large number would do


def find(name: str) -> Method:
    """An entry of METHODS, the Method of a user's own at module.name, or a chain of such.

    A chain is names with +: "tvn_plate+lda+assign_once". Stages run in the order of `Method`, so
    the parts stand in it, too. A classifier takes the place of the one that reads out a transform.

    Raises ValueError: a name that is neither, parts in another order or two of one stage.
    """
    parts = [(part, _found(part)) for part in name.split("+")]
    for (first, done), (second, following) in pairwise(parts):
        before, after = _stages(done)[-1:], _stages(following)[:1]
        if not (before and after and (before < after or before == after == [TRANSFORM])):
            raise ValueError(
                f"method {name!r}: {second} cannot follow {first}; expected"
                f" {' -> '.join(STAGES)}, with any number of transforms"
            )
    return functools.reduce(_then, (method for _, method in parts))


def _found(name: str) -> Method:
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
            f"method {name!r}: expected {nearest(name, METHODS)}, an evidence.Method of your own"
            " as module.name, or such names with + between them"
        )
    return found


def _stages(method: Method) -> list[int]:
    """Numbers of the stages that a part of a chain stands for, of STAGES; [] for "none"."""
    reads_out = method.classify is not None and not method.transforms
    given = (method.adapt, method.transforms, reads_out, method.decide)
    return [number for number, stage in enumerate(given) if stage]


def _then(first: Method, second: Method) -> Method:
    """The chain of two methods."""
    return Method(
        first.adapt, first.transforms + second.transforms, second.classify or first.classify,
        second.decide, uses=first.uses | second.uses,
        version=first.version + second.version,  # each only rises, so the sum tells every change
        about=f"{first.about}; then {second.about}",
    )  # fmt: skip


def reference(name: str) -> str:
    """The method that one is compared with: its classifier (and decision) without transforms.

    "none", the network, where it transforms nothing or its classifier is not of METHODS.
    """
    method = find(name)
    members = method.grid or (method,)
    if all(one.transforms for one in members):
        for other, plain in METHODS.items():
            same = all(one.classify is plain.classify for one in members)
            if same and _stages(plain) == [CLASSIFY]:
                decided = [part for part in name.split("+") if _stages(find(part)) == [DECIDE]]
                return "+".join([other, *decided])
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
    transform = (Transform(function, by, on),)
    return Method(None, transform, centroids, uses=frozenset(uses), version=version, about=about)


# How embeddings are read out: parts of a chain that stand for the stage `classify`.
_READ_OUTS = {
    "centroids": (centroids, "nearest class mean of the embeddings, in place of the last layer"),
    "lda": (lda, "linear discriminant analysis of the embeddings, Ledoit and Wolf's shrinkage"),
    "softmax": (softmax, "softmax regression on the embeddings, its penalty chosen in training"),
}
CLASSIFIERS = tuple(chain.from_iterable((name, f"{name}_joint") for name in _READ_OUTS))
_CONTROLS, _IMAGES = frozenset({"test_controls"}), frozenset({"test_images", "test_controls"})
_DESIGN = _IMAGES | {"design"}
METHODS = {
    "none": Method(about="the network as it was trained"),
    "orientations": Method(
        Orientations(), about="mean over the eight orientations of each image"
    ),
    **{
        name: Method(classify=classify, about=f"{about}, {whose}")
        for stem, (one, about) in _READ_OUTS.items()
        for name, classify, whose in (
            (stem, one, "per cell type"), (f"{stem}_joint", joint(one), "of all cell types"),
        )
    },
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
    "robust_mad_plate": _read_out(
        transforms.robust_mad, "plate", _CONTROLS,
        "embeddings minus the median, over the MAD, of the controls of their plate (pycytominer)",
    ),
    "robust_mad_sphering": _then(
        _read_out(transforms.robust_mad, "plate", _CONTROLS, "robust_mad_plate"),
        _read_out(
            transforms.sphering, "cell_type", _CONTROLS,
            "whitened on all controls of the cell type (Arevalo 2024)",
        ),
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
    "regress_out_experiment": _read_out(
        transforms.centre, "experiment", _IMAGES,
        "embeddings minus the mean of all wells of their experiment: what a regression takes out",
        "all",
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
