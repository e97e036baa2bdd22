"""How much batch and how much biology the embeddings of positive controls hold.

The positive controls are the same siRNAs on every plate, and no classes of the network.
"""

import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rxrx1_jax.data.embeddings import Embeddings
from rxrx1_jax.methods.catalogue import METHODS
from rxrx1_jax.methods.evidence import ROLES, Evidence, transformed

VERSION = 3  # of the figures; raise it when they change, and stored ones are computed again
COLUMNS = {
    "experiment found, %": "a linear probe names the experiment of a site (less is better, down to"
    " chance). It is below chance where each experiment is centred, so it cannot rank such methods",
    "purity, %": "share of a well's 15 nearest wells that are of its experiment (less is better,"
    " down to chance)",
    "iLISI": "number of experiments among a well's neighbours (more is better, up to chance)",
    "siRNA found again, mAP": "mean average precision of finding a well's siRNA in other"
    " experiments",
    "found, %": "share of siRNAs found again beyond chance, false discovery rate 5 %",
    "consistent, %": "share of siRNAs whose replicates agree beyond chance, false discovery rate"
    " 5 %; none where the design cannot show it",
    "planted": "rank correlation of measured with planted distances between siRNAs (synthetic"
    " screens)",
}
EXPERIMENT, PURITY, ILISI, AGAIN, FOUND, CONSISTENT, PLANTED = COLUMNS
CAUTION = (
    "A method that mixes experiments must be read with the columns of siRNAs: mixing is easy if"
    " biology may go."
)
SIGNIFICANT = 0.05
# Methods that change embeddings and see all controls; each means what it does in corrections.
TRANSFORMS = tuple(name for name, method in METHODS.items() if method.transforms and method.uses)

Figures = dict[str, tuple[float, float]]  # column -> (figure, chance)


def diagnose(
    embeddings: Embeddings, sirnas: dict[str, Any] | None
) -> Iterator[tuple[str, Figures]]:
    """(method, figures) of the embeddings as they are ("none") and after each of TRANSFORMS.

    A transform that lacks its library, or refuses these data, is left out with a line on stderr.
    """
    evidence = all_controls(embeddings)
    yield "none", measure(evidence.x, evidence.sites, sirnas)
    for name in TRANSFORMS:
        try:
            after = transformed(METHODS[name], evidence)
        except (ImportError, ValueError) as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        yield name, measure(after.x, after.sites, sirnas)


def all_controls(embeddings: Embeddings) -> Evidence:
    """Evidence of the split's sites, and of the control wells of every experiment as context."""
    sites, role = embeddings.sites, embeddings.role
    control = sites["well_type"] != "treatment"
    role = np.where(control, "context", "other" if role is None else role)
    whole = Evidence(sites, role, embeddings.x, None, np.unique(sites["sirna_id"]))
    return whole.only(np.isin(role, ROLES))


def measure(x: np.ndarray, sites: np.ndarray, sirnas: dict[str, Any] | None) -> Figures:
    """{column: (figure, chance)} of the positive controls among embeddings [n, d] of sites [n].

    Means over the cell types with two experiments. A column is left out where nothing can be
    computed: without such a cell type, "planted" without `sirnas` (metadata.json's planted effects,
    of synthetic screens only), the probe without scikit-learn (one line on stderr).
    """
    from rxrx1_jax.methods import embedding_metrics as metrics  # here: --help needs no SciPy
    from rxrx1_jax.methods import mixing, retrieval

    found: dict[str, list[tuple[float, float]]] = {name: [] for name in COLUMNS}
    treated = sites["well_type"] == "positive_control"
    for cell_type in np.unique(sites["cell_type"]):
        rows = treated & (sites["cell_type"] == cell_type)
        mine, values = sites[rows], x[rows]
        if len(np.unique(mine["experiment"])) < 2:
            continue
        try:
            probe = metrics.experiment_predictability(values, mine["experiment"], mine["sirna_id"])
            found[EXPERIMENT].append((100 * probe.accuracy, 100 * probe.chance))
        except ImportError as error:
            _say_once(f"{EXPERIMENT.partition(',')[0]}: {error}")
        wells, _, label, experiment = metrics.mean_profiles(
            values, mine["well_id"], mine["sirna_id"], mine["experiment"]
        )
        mixed = mixing.experiment_mixing(wells, experiment)
        found[PURITY].append((100 * mixed.purity, 100 * mixed.purity_chance))
        found[ILISI].append((mixed.ilisi, mixed.ilisi_chance))
        again = retrieval.retrieval_map(wells, label, experiment)
        found[AGAIN].append((again.mean, again.chance))
        found[FOUND].append((100 * discovered(again.p_value), 0.0))
        profiles, label, experiment = metrics.mean_profiles(
            values, mine["sirna_id"], mine["experiment"]
        )
        consistency = metrics.replicate_consistency(profiles, label, experiment)
        able = consistency.least < SIGNIFICANT
        if able.any():
            found[CONSISTENT].append((100 * discovered(consistency.p_value[able]), 0.0))
        if sirnas:
            means, label = metrics.mean_profiles(values, mine["sirna_id"])
            planted = metrics.planted_effects(sirnas, label, str(cell_type))
            found[PLANTED].append((metrics.planted_recovery(means, planted), 0.0))
    return averages(found)


def discovered(p_value: np.ndarray) -> float:
    """Share of p-values below SIGNIFICANT after Benjamini and Hochberg's adjustment."""
    from scipy.stats import false_discovery_control

    return float((false_discovery_control(p_value) < SIGNIFICANT).mean())


def averages(found: Mapping[str, Sequence[tuple[float, float]]]) -> Figures:
    """The mean (figure, chance) of each column that has some."""
    figures = {name: np.mean(pairs, axis=0).tolist() for name, pairs in found.items() if pairs}
    return {name: (figure, chance) for name, (figure, chance) in figures.items()}


def digits(column: str) -> int:
    """Decimals to print: one of a percentage, two of a number, three of a figure up to 1."""
    return 1 if "%" in column else 2 if column == ILISI else 3


@functools.cache
def _say_once(line: str) -> None:
    print(line, file=sys.stderr)
