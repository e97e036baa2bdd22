"""What a method may see, and what a method is: a chain from evidence to scores of the test sites.

    adapt -> transforms -> classify -> decide

Each stage is given `Evidence` that the stages before it have changed. What a method may see beyond
the image is declared in `uses`, and `evidence_for` withholds the rest: labels of test and
validation sites always (`choose` alone reads those of validation), controls of experiments without
training sites unless "test_controls" is declared. A method that does not declare "test_images" is
fitted without test sites, and is refused if half of them change what another site gets. Results are
compared within a budget of information, one of BUDGETS.

`catalogue.METHODS` has ours. A method of your own is a `Method` in any module that Python can
import, named as module.name; docs/methods.md adds one.
"""

import dataclasses
from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np

from rxrx1_jax.data.embeddings import Embeddings

EXTERNAL = "external data"
SEEN = {  # budget -> what predictions may depend on beside the training sites
    "inductive": "the image, and the control statistics of its plate that normalise it",
    "test controls": "also images of the control wells of the test experiments",
    "unlabelled test images": "also all images of the test experiments, without labels",
    "design": "also that a siRNA occurs once in an experiment, plate by plate",
    EXTERNAL: "also weights or embeddings that were trained on other data",
}
BUDGETS = tuple(SEEN)
USES = ("test_controls", "test_images", "design", "external")  # each has the budget one further
ROLES = ("train", "val", "test", "context")
HELD_OUT = ("val", "test")
PARTS = ("treatment", "control", "all")
CLOSE = 1e-3  # what rounding may change: share of a value, and of a feature's spread


def budget_of(uses: Collection[str]) -> str:
    """The one of BUDGETS that covers these of USES."""
    return BUDGETS[max((USES.index(use) + 1 for use in uses), default=0)]


class Evidence(NamedTuple):
    """Sites with what a network says of them."""

    sites: np.ndarray  # structured [n], columns of `images.METADATA`; sirna_id -1: hidden
    role: np.ndarray  # str [n]: train, val, test, or context (control wells of their experiments)
    x: np.ndarray  # f32 [n, d] embeddings
    log_probs: np.ndarray | None  # f32 [n, K] of the network; None where there is none
    classes: np.ndarray  # i32 [K] sirna_ids

    def only(self, keep: np.ndarray) -> "Evidence":
        """The sites where keep, bool [n], is true."""
        sites, role, x, log_probs, classes = self
        kept = None if log_probs is None else log_probs[keep]
        return Evidence(sites[keep], role[keep], x[keep], kept, classes)

    def part(self, on: str) -> np.ndarray:
        """bool [n]: the sites of "treatment" wells, of "control" wells, or of "all"."""
        control = self.role == "context"
        return {"treatment": ~control, "control": control, "all": np.full(len(control), True)}[on]


@dataclasses.dataclass(frozen=True)
class AdaBN:
    """BatchNorm statistics of the network estimated again, per experiment or plate (`adabn`)."""

    by: str = "experiment"
    on: str = "treatment"  # one of PARTS: the images that they are estimated from

    def __post_init__(self) -> None:
        if self.by not in ("experiment", "plate") or self.on not in PARTS:
            raise ValueError(
                f"AdaBN({self.by!r}, {self.on!r}): expected experiment or plate, and one of"
                f" {', '.join(PARTS)}"
            )


@dataclasses.dataclass(frozen=True)
class Orientations:
    """The mean of the network's log-probabilities over the eight orientations of an image."""


@dataclasses.dataclass(frozen=True)
class Transform:
    """A transform of embeddings as a stage: function(x, sites, fit, by) -> f32 [n, d'].

    Attributes:
      function: `transforms.tvn`, `combat_harmony.combat`, or one like them.
      by: the batch that is corrected: "plate", "experiment" or "cell_type".
      on: one of PARTS, the wells that it is fitted on.
    """

    function: Callable[..., np.ndarray]
    by: str = "experiment"
    on: str = "control"

    def __call__(self, evidence: Evidence) -> np.ndarray:
        return self.function(evidence.x, evidence.sites, evidence.part(self.on), self.by)


@dataclasses.dataclass(frozen=True)
class Method:
    """A chain of stages. What a stage of None stands for is said below.

    Attributes:
      adapt: how the network is run at test time; None: as it was trained.
      transforms: `Transform`s, or other functions Evidence -> f32 [n, d'].
      classify: fits on the evidence it is given (without test sites, unless "test_images" is
        declared), and returns a function Evidence -> f32 [n, K], log-probabilities or the like;
        None: the network's own.
      decide: Evidence -> f32 [n, K], from log-probabilities to better ones; None: those.
      grid: methods of which the validation sites choose one (`choose`), in place of the stages.
      uses: what it may see, of USES.
      version: of its results; raise it when they change, and stored ones are computed again.
      about: one line that says what it does.
    """

    adapt: AdaBN | Orientations | None = None
    transforms: tuple[Callable[[Evidence], np.ndarray], ...] = ()
    classify: Callable[[Evidence], Callable[[Evidence], np.ndarray]] | None = None
    decide: Callable[[Evidence], np.ndarray] | None = None
    grid: "tuple[Method, ...]" = ()
    uses: frozenset[str] = frozenset()
    version: int = 1
    about: str = ""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.uses) - set(USES))
        if unknown:
            raise ValueError(f"uses has {unknown[0]!r}; expected some of {', '.join(USES)}")
        if self.transforms and self.classify is None:
            raise ValueError("transforms without classify change nothing; expected a classifier")
        if isinstance(self.adapt, AdaBN):
            needed = "test_controls" if self.adapt.on == "control" else "test_images"
            if not self.uses & {needed, "test_images"}:
                raise ValueError(f"{self.adapt} sees test images: declare {needed!r} in uses")
        if self.grid and (self.adapt or self.transforms or self.classify or self.decide):
            raise ValueError("a grid stands in place of the stages; expected them in its methods")
        for number, one in enumerate(self.grid, 1):
            more = sorted(one.uses - self.uses)
            if one.grid or more:
                found = f"uses {more[0]!r}; declare it for the whole" if more else "has a grid"
                raise ValueError(f"method {number} of the grid {found}")

    @property
    def budget(self) -> str:
        """The one of BUDGETS that covers `uses`."""
        return budget_of(self.uses)


Adapted = Callable[[Method, Evidence], Evidence]  # runs the stage `adapt`: `adabn.adapted`


def from_embeddings(embeddings: Embeddings) -> Evidence:
    """The sites of a known role. Raises ValueError without roles or without training sites."""
    role = embeddings.role
    if role is None or not (role == "train").any():
        raise ValueError("no row has the role train; expected a column role with some of it")
    classes = embeddings.classes
    if classes is None:
        classes = np.unique(embeddings.sites["sirna_id"][role == "train"])
    whole = Evidence(
        embeddings.sites, role, embeddings.x, embeddings.log_probs, classes.astype(np.int32)
    )
    return whole.only(np.isin(role, ROLES))


def evidence_for(method: Method, evidence: Evidence) -> Evidence:
    """The part of the evidence that the method declared."""
    sites = evidence.sites.copy()
    hidden = np.isin(evidence.role, HELD_OUT)
    sites["sirna_id"][hidden], sites["sirna"][hidden] = -1, ""
    keep = np.ones(len(sites), bool)
    if not method.uses & {"test_controls", "test_images"}:
        seen = np.unique(sites["experiment"][evidence.role == "train"])
        keep = (evidence.role != "context") | np.isin(sites["experiment"], seen)
    return evidence._replace(sites=sites).only(keep)


def scores(method: Method, evidence: Evidence, adapted: Adapted | None = None) -> np.ndarray:
    """What the method gives the test sites, from the evidence it declared: f32 [test sites, K].

    Raises ValueError: a method that needs a network without one, or that uses more than it
    declares, or a grid without validation sites; whatever its stages raise.
    """
    method = choose(method, evidence, adapted)
    return read_out(method, transformed(method, evidence, adapted))


def choose(method: Method, evidence: Evidence, adapted: Adapted | None = None) -> Method:
    """The method of the grid with the highest accuracy on the validation sites, the first of
    equals; without a grid the method itself. The labels of the test sites have no say.

    Raises ValueError: no validation site has a label of the classes.
    """
    if not method.grid:
        return method
    val = evidence.sites[evidence.role == "val"]["sirna_id"]
    known = np.isin(val, evidence.classes)
    if not known.any():
        raise ValueError(
            "its grid is chosen from on validation sites, and none has a known label; expected a"
            " run with data.val_experiments=1 or more, or a table with some of role val"
        )
    right = []
    for one in method.grid:
        found = read_out(one, transformed(one, evidence, adapted), "val")
        right.append(np.sum((evidence.classes[found.argmax(1)] == val)[known]))
    return method.grid[int(np.argmax(right))]


def read_out(method: Method, given: Evidence, role: str = "test") -> np.ndarray:
    """The rest of `scores`, of what `transformed` gave, for the sites of a role."""
    if method.classify is not None:
        held_out = np.isin(given.role, HELD_OUT)
        seen = given if "test_images" in method.uses else given.only(~held_out)
        predict = method.classify(seen)
        if method.decide is None:  # no more is needed: training sites are most of a table
            given = given.only(given.role != "train")
        given = given._replace(log_probs=_stage(method, predict, given))
    if given.log_probs is None:
        raise ValueError(
            "there are no log-probabilities of a network; expected embeddings of a run, or a"
            " method with a classifier"
        )
    found = given.log_probs if method.decide is None else _stage(method, method.decide, given)
    return found[given.role == role]


def transformed(method: Method, evidence: Evidence, adapted: Adapted | None = None) -> Evidence:
    """What the method declared, after its stages `adapt` and `transforms`."""
    given = evidence_for(method, evidence)
    if method.adapt is not None:
        if adapted is None:
            raise ValueError(f"{method.adapt} needs the network; expected a run, not a table")
        given = adapted(method, given)
    for transform in method.transforms:
        given = given._replace(x=_stage(method, transform, given, spread=True))
    return given


def _stage(
    method: Method, function: Callable[[Evidence], np.ndarray], evidence: Evidence,
    spread: bool = False,
) -> np.ndarray:  # fmt: skip
    """function(evidence), which must not depend on other test sites unless that is declared.

    spread: what may differ is a share of each column's deviation, not of 1.
    """
    found = function(evidence)
    if "test_images" in method.uses:
        return found
    held_out = np.flatnonzero(np.isin(evidence.role, HELD_OUT))
    keep = np.full(len(evidence.role), True)
    keep[held_out[1::2]] = False
    expected, again = found[keep], function(evidence.only(keep))
    near = CLOSE * (found.std(axis=0) if spread else 1.0)
    if again.shape != expected.shape or not np.allclose(again, expected, rtol=CLOSE, atol=near):
        raise ValueError(
            "what it gives a site changes when half of the test sites are left out; declare"
            ' "test_images" in uses, or let each site\'s result depend on that site alone'
        )
    return found
