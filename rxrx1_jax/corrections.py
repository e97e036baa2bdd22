"""Corrections of batch effects after training: each takes what it may see and gives predictions.

A correction is a function of `Evidence`; what it may see beyond the image is declared in `uses`,
and `evidence_for` withholds the rest: labels of test sites always, controls of unseen experiments
unless "test_controls" is declared. Results are compared within a budget of information:

    inductive               the image, and its plate's control statistics (the normalisation)
    test controls           images of the control wells of test experiments
    unlabelled test images  all images of the test experiments
    design                  also that a siRNA occurs once in an experiment, plate by plate

To add one, write the function and an entry of `METHODS`; `python -m rxrx1_jax.correct` does the
rest.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from rxrx1_jax import decisions
from rxrx1_jax import embedding_transforms as transforms

BUDGETS = ("inductive", "test controls", "unlabelled test images", "design")
_SURE = -50.0  # log-probability of what an assignment rules out; any large number would do


class Evidence(NamedTuple):
    """What a correction sees: training sites, test sites and control wells, without test labels."""

    sites: np.ndarray  # [n] rows of Records.sites; sirna_id -1 where the role is not train
    role: np.ndarray  # [n] str: train, test, or control
    embeddings: np.ndarray  # [n, d] float32, of the network's last layer but one
    log_probs: np.ndarray  # [n, K] float32, of the network
    classes: np.ndarray  # [K] int32 sirna_ids


@dataclasses.dataclass(frozen=True)
class Method:
    """A correction, and what it uses: "test_controls", "test_images", "design".

    Attributes:
      function: Evidence [n] -> scores [n, K], log-probabilities or alike; read at the test sites.
      adapt_by: re-estimates BatchNorm statistics before, per "experiment" or "plate" (AdaBN, Li et
        al. 2016, arXiv:1603.04779); None: the network's own.
      adapt_on: the images that they are estimated from: "treatment" or "control" wells.
    """

    function: Callable[[Evidence], np.ndarray]
    uses: frozenset[str] = frozenset()
    adapt_by: str | None = None
    adapt_on: str = "treatment"

    @property
    def budget(self) -> str:
        """The one of BUDGETS that covers `uses`."""
        kinds = ("test_controls", "test_images", "design")
        return BUDGETS[max((kinds.index(use) + 1 for use in self.uses), default=0)]


def evidence_for(method: Method, evidence: Evidence) -> Evidence:
    """The part of the evidence that the method declared."""
    sites = evidence.sites.copy()
    hidden = evidence.role == "test"
    sites["sirna_id"][hidden], sites["sirna"][hidden] = -1, ""
    keep = np.ones(len(sites), bool)
    if not method.uses & {"test_controls", "test_images"}:
        seen = np.unique(sites["experiment"][evidence.role == "train"])
        keep = (evidence.role != "control") | np.isin(sites["experiment"], seen)
    return evidence._replace(
        sites=sites[keep],
        role=evidence.role[keep],
        embeddings=evidence.embeddings[keep],
        log_probs=evidence.log_probs[keep],
    )


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
    "centroids": Method(centroids),
    "sphering_train_controls": Method(transformed(transforms.sphering, "cell_type")),
    "adabn_experiment_controls": Method(network, _CONTROLS, "experiment", "control"),
    "adabn_plate_controls": Method(network, _CONTROLS, "plate", "control"),
    "centre_scale_plate": Method(transformed(transforms.centre_scale, "plate"), _CONTROLS),
    "sphering_experiment": Method(transformed(transforms.sphering, "experiment"), _CONTROLS),
    "tvn_plate": Method(transformed(transforms.tvn, "plate"), _CONTROLS),
    "adabn_experiment": Method(network, _IMAGES, "experiment"),
    "adabn_plate": Method(network, _IMAGES, "plate"),
    "combat_experiment": Method(transformed(transforms.combat, "experiment", "all"), _IMAGES),
    "harmony_experiment": Method(transformed(transforms.harmony, "experiment", "all"), _IMAGES),
    "assign_once": Method(assigned(decisions.assign_once), _DESIGN),
    "assign_plate_groups": Method(assigned(decisions.assign_plate_groups), _DESIGN),
    "adabn_experiment_assign": Method(assigned(decisions.assign_once), _DESIGN, "experiment"),
}
