"""Corrections of batch effects after training: each takes what it may see and gives predictions.

A correction is a function of `Evidence`; what it may see beyond the image is declared in `uses`,
and `evidence_for` withholds the rest: labels of test sites always, controls of unseen experiments
unless "test_controls" is declared. Results are compared within a budget of information:

    inductive               the image, and its plate's control statistics (the normalisation)
    test controls           images of the control wells of test experiments
    unlabelled test images  all images of the test experiments
    design                  also that a siRNA occurs once in an experiment, plate by plate

To add one, write the function and an entry of `METHODS`, or make a `Method` in a module of your own
and name it as module.name: `python -m rxrx1_jax.correct` does the rest.
"""

import dataclasses
import importlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from rxrx1_jax.methods import assignment, transforms
from rxrx1_jax.methods.combat_harmony import combat, harmony

BUDGETS = ("inductive", "test controls", "unlabelled test images", "design")
_SURE = -50.0  # log-probability of what an assignment rules out; any large number would do


class Evidence(NamedTuple):
    """What a correction sees: training sites, test sites and control wells, without test labels."""

    sites: np.ndarray  # [n] rows of Records.sites; sirna_id -1 where the role is not train
    role: np.ndarray  # [n] str: train, test, or control
    embeddings: np.ndarray  # [n, d] float32, of the network's last layer but one
    log_probs: np.ndarray  # [n, K] float32, of the network
    classes: np.ndarray  # [K] int32 sirna_ids

    def only(self, keep: np.ndarray) -> "Evidence":
        """The sites where keep, bool [n], is true."""
        sites, role, embeddings, log_probs, classes = self
        return Evidence(sites[keep], role[keep], embeddings[keep], log_probs[keep], classes)


@dataclasses.dataclass(frozen=True)
class Method:
    """A correction, and what it uses: "test_controls", "test_images", "design".

    Attributes:
      function: Evidence [n] -> scores [n, K], log-probabilities or alike; read at the test sites.
      adapt_by: re-estimates BatchNorm statistics before, per "experiment" or "plate" (AdaBN, Li et
        al. 2016, arXiv:1603.04779); None: the network's own.
      adapt_on: the images that they are estimated from: "treatment" or "control" wells.
      orientations: the network's log-probabilities are the mean over the eight orientations of each
        image.
    """

    function: Callable[[Evidence], np.ndarray]
    uses: frozenset[str] = frozenset()
    adapt_by: str | None = None
    adapt_on: str = "treatment"
    orientations: bool = False

    @property
    def budget(self) -> str:
        """The one of BUDGETS that covers `uses`."""
        kinds = ("test_controls", "test_images", "design")
        return BUDGETS[max((kinds.index(use) + 1 for use in self.uses), default=0)]


def find(name: str) -> Method:
    """An entry of METHODS, or the Method of a user's own at module.name; ValueError if neither."""
    if name in METHODS:
        return METHODS[name]
    module, _, attribute = name.rpartition(".")
    found = None
    if module:
        try:
            found = getattr(importlib.import_module(module), attribute, None)
        except ImportError as error:
            raise ValueError(f"method {name!r}: {error}") from error
    if not isinstance(found, Method):
        raise ValueError(
            f"method {name!r}: expected one of {', '.join(METHODS)}, or a corrections.Method of"
            " your own as module.name"
        )
    return found


def evidence_for(method: Method, evidence: Evidence) -> Evidence:
    """The part of the evidence that the method declared."""
    sites = evidence.sites.copy()
    hidden = evidence.role == "test"
    sites["sirna_id"][hidden], sites["sirna"][hidden] = -1, ""
    keep = np.ones(len(sites), bool)
    if not method.uses & {"test_controls", "test_images"}:
        seen = np.unique(sites["experiment"][evidence.role == "train"])
        keep = (evidence.role != "control") | np.isin(sites["experiment"], seen)
    return evidence._replace(sites=sites).only(keep)


def scores(method: Method, evidence: Evidence) -> np.ndarray:
    """What the method gives the test sites, from the evidence it declared: float [test sites, K].

    Raises ValueError if the scores of a site depend on which other test sites there are, and the
    method does not declare "test_images".
    """
    given = evidence_for(method, evidence)
    found = method.function(given)[given.role == "test"]
    if "test_images" not in method.uses:
        keep = np.full(len(given.role), True)
        keep[np.flatnonzero(given.role == "test")[1::2]] = False
        fewer = given.only(keep)
        again = method.function(fewer)[fewer.role == "test"]
        if not np.allclose(found[::2], again, rtol=1e-3, atol=1e-3):
            raise ValueError(
                'its scores change when half of the test sites are left out; declare "test_images"'
                " in uses, or let each site's scores depend on that site alone"
            )
    return found


def network(evidence: Evidence) -> np.ndarray:
    """The network's own log-probabilities."""
    return evidence.log_probs


def centroids(evidence: Evidence) -> np.ndarray:
    """Cosine to the mean training embedding of each siRNA, within the cell type."""
    return transforms.nearest_centroid(
        evidence.embeddings,
        evidence.sites["sirna_id"],
        evidence.role == "train",
        evidence.classes,
        evidence.sites["cell_type"],
    )


def transformed(
    transform: Callable[..., np.ndarray], by: str, on: str = "control"
) -> Callable[[Evidence], np.ndarray]:
    """`centroids` after a transform of the embeddings, fitted on control wells or ("all") all."""

    def scores(evidence: Evidence) -> np.ndarray:
        fit = np.full(len(evidence.role), True) if on == "all" else evidence.role == "control"
        embeddings = transform(evidence.embeddings, evidence.sites, fit, by)
        return centroids(evidence._replace(embeddings=embeddings))

    return scores


def assigned(assign: Callable[..., np.ndarray]) -> Callable[[Evidence], np.ndarray]:
    """The siRNA that an assignment over the experiment gives to each site."""

    def scores(evidence: Evidence) -> np.ndarray:
        role = np.where(evidence.role == "control", "other", evidence.role)
        ids = assign(evidence.log_probs, evidence.sites, evidence.classes, role)
        return np.where(ids[:, None] == evidence.classes, 0.0, _SURE).astype(np.float32)

    return scores


_CONTROLS, _IMAGES = frozenset({"test_controls"}), frozenset({"test_images", "test_controls"})
_DESIGN = _IMAGES | {"design"}
METHODS = {
    "none": Method(network),
    "orientations": Method(network, orientations=True),
    "centroids": Method(centroids),
    "sphering_train_controls": Method(transformed(transforms.sphering, "cell_type")),
    "adabn_experiment_controls": Method(network, _CONTROLS, "experiment", "control"),
    "adabn_plate_controls": Method(network, _CONTROLS, "plate", "control"),
    "centre_scale_plate": Method(transformed(transforms.centre_scale, "plate"), _CONTROLS),
    "sphering_experiment": Method(transformed(transforms.sphering, "experiment"), _CONTROLS),
    "tvn_plate": Method(transformed(transforms.tvn, "plate"), _CONTROLS),
    "adabn_experiment": Method(network, _IMAGES, "experiment"),
    "adabn_plate": Method(network, _IMAGES, "plate"),
    "combat_experiment": Method(transformed(combat, "experiment", "all"), _IMAGES),
    "harmony_experiment": Method(transformed(harmony, "experiment", "all"), _IMAGES),
    "assign_once": Method(assigned(assignment.assign_once), _DESIGN),
    "assign_plate_groups": Method(assigned(assignment.assign_plate_groups), _DESIGN),
    "adabn_experiment_assign": Method(assigned(assignment.assign_once), _DESIGN, "experiment"),
}
