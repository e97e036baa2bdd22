"""How much of the variance of embeddings is of siRNAs, experiments, plates and wells.

Half the squared distance of two sites is, on average, the sum of the variances of all in which
they differ. Pairs that differ in different things thus give each variance by a difference. This
uses squared differences as Koch 1968 does (Technometrics 10, 551). No estimate is biased, whether
wells are missing or not. Where none is, they are those of the analysis of variance.
"""

import math
from typing import NamedTuple

import numpy as np

from rxrx1_jax.data.images import Sites
from rxrx1_jax.methods.embedding_metrics import check_rows


class Components(NamedTuple):
    """Variances, summed over the features; NaN where the design cannot tell.

    An estimate of nothing is negative as often as positive.
    """

    sirna: float
    experiment: float
    plate: float  # of an experiment; NaN, and in `experiment`: one plate per experiment
    sirna_by_experiment: float  # NaN, and in `well`: a siRNA has one well in an experiment
    well: float
    site: float  # NaN, and in `well`: a well has one row


def components(x: np.ndarray, sites: Sites) -> Components:
    """Of embeddings [n, d] of sites or wells, of one cell type.

    Raises ValueError where there are fewer than two experiments or two siRNAs.
    """
    check_rows(x, sites["well_id"])
    x = np.asarray(x, np.float64) - x.mean(0, dtype=np.float64)
    squares = np.square(x).sum(1)

    def pairs(*columns: str) -> np.ndarray:
        """[number, sum of half the squared distances] of all pairs that agree in the columns."""
        found = np.unique(sites[list(columns)], return_inverse=True)[1]
        group = found if columns else np.zeros(len(x), np.int64)
        n, order = np.bincount(group), np.argsort(group, kind="stable")
        sums = np.add.reduceat(x[order], np.cumsum(n) - n)
        total = n @ np.bincount(group, squares) - np.square(sums).sum()
        return np.array([(n * (n - 1)).sum(), total]) / 2

    def mean(chosen: np.ndarray) -> float:
        return float(chosen[1] / chosen[0]) if chosen[0] else math.nan

    every, well, sirna, experiment, plate, plate_sirna, experiment_sirna = (
        pairs(), pairs("well_id"), pairs("sirna_id"), pairs("experiment"),
        pairs("experiment", "plate"), pairs("experiment", "plate", "sirna_id"),
        pairs("experiment", "sirna_id"),
    )  # fmt: skip
    # By what a pair differs in, beside wells and sites.
    of_sirna = mean(plate - plate_sirna)
    of_plate = mean(experiment_sirna - plate_sirna)
    of_sirna_and_plate = mean(experiment - plate - experiment_sirna + plate_sirna)
    of_experiment = mean(sirna - experiment_sirna)
    of_all = mean(every - experiment - sirna + experiment_sirna)
    if math.isnan(of_all) or math.isnan(of_experiment):
        raise ValueError("expected siRNAs, two or more, in two experiments or more")

    site = mean(well)
    by_plate = of_sirna_and_plate - of_sirna
    within = of_sirna if math.isnan(of_sirna_and_plate) else of_sirna_and_plate
    by_sirna = of_all - of_experiment
    # What a siRNA has of its own in a well: the well, and siRNA x experiment.
    own = of_sirna - by_sirna - np.nan_to_num(site)
    by_well = of_plate - by_plate - np.nan_to_num(site)
    interaction = own - by_well
    if math.isnan(by_well):
        by_well = own
    return Components(by_sirna, of_all - within, by_plate, interaction, by_well, site)
