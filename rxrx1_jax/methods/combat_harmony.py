"""Corrections of embeddings by libraries: ComBat (extra `analysis`), Harmony (extra `harmony`).

Transforms as in `transforms`, by plate or experiment. They learn from every row that they correct:
`fit` is all true, else ValueError. ModuleNotFoundError names the extra of a missing library.
"""

import contextlib
import importlib
import io
from collections.abc import Iterator
from types import ModuleType

import numpy as np

from rxrx1_jax.methods.transforms import LEAST, checked, codes_of, mean_and_scale


def combat(
    embeddings: np.ndarray, sites: np.ndarray, fit: np.ndarray, by: str = "experiment"
) -> np.ndarray:
    """ComBat, parametric empirical Bayes: Johnson, Li and Rabinovic 2007 (Biostatistics 8, 118).

    Computed by neuroCombat, without covariates, within each cell type: an experiment has one, so
    across cell types batch and biology could not be told apart. A cell type with a single batch is
    returned as it is, and so is a feature that is constant within a batch (as in sva's ComBat). The
    batch means are those of all rows: batches that hold different siRNAs (the plates of an
    experiment do) lose part of that difference, so the default is the experiment. Raises ValueError
    for a batch of one row, and for fewer than two features that vary in each batch.
    """
    library = _library("neuroCombat", "combat", "analysis")
    pandas = _library("pandas", "combat", "analysis")
    x = _checked_whole("combat", embeddings, sites, fit, by)
    out = x.copy()
    for rows, batch in _cell_types(sites, by):
        values, counts = np.unique(batch, return_counts=True)
        if counts.min() < LEAST:
            site = sites["site_id"][rows[batch == values[counts.argmin()]][0]]
            raise ValueError(
                f"combat: the {by} of site {site} has one row, expected at least {LEAST}; leave it"
                ' out or use by="experiment"'
            )
        part = x[rows].astype(np.float64)
        scales = [mean_and_scale(part[batch == value], flat=0.0)[1] for value in values]
        varying = np.all(scales, axis=0)
        if varying.sum() < 2:
            raise ValueError(
                f"combat: {varying.sum()} of {len(varying)} features vary within every {by} of"
                f" {sites['cell_type'][rows[0]]}; expected at least 2"
            )
        with contextlib.redirect_stdout(io.StringIO()):  # it prints every step
            corrected = library.neuroCombat(
                part[:, varying].T, pandas.DataFrame({"batch": batch}), "batch"
            )["data"]
        out[np.ix_(rows, varying)] = corrected.T
    return out


def harmony(
    embeddings: np.ndarray, sites: np.ndarray, fit: np.ndarray, by: str = "experiment"
) -> np.ndarray:
    """Harmony: Korsunsky et al. 2019 (Nature Methods 16, 1289), computed by harmonypy.

    Within each cell type, as `combat` and for its reason, with the library's settings and seed 0;
    rows go in by site id, so their order does not change the result. A cell type with a single
    batch is returned as it is. Harmony matches clusters, so it suits batch effects that are small
    beside the differences between clusters: correct large ones first (`centre_scale`).
    """
    library = _library("harmonypy", "harmony", "harmony")
    x = _checked_whole("harmony", embeddings, sites, fit, by)
    out = x.copy()
    for rows, batch in _cell_types(sites, by):
        order = np.argsort(sites["site_id"][rows], kind="stable")
        # The library's own rule for the number of clusters gives none for a few rows.
        clusters = int(np.clip(round(len(rows) / 30), 2, 100))
        result = library.run_harmony(
            x[rows[order]].astype(np.float64), {"batch": batch[order]}, ["batch"],
            nclust=clusters, random_state=0, verbose=False,
        )  # fmt: skip
        out[rows[order]] = result.Z_corr
    return out


def _cell_types(sites: np.ndarray, by: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(rows of a cell type, batch code of each) for the cell types of more than one batch."""
    codes, batches = codes_of(sites, "cell_type"), codes_of(sites, by)
    for cell_type in range(codes.max() + 1):
        rows = np.flatnonzero(codes == cell_type)
        if len(np.unique(batches[rows])) > 1:
            yield rows, batches[rows]


def _checked_whole(
    name: str, embeddings: np.ndarray, sites: np.ndarray, fit: np.ndarray, by: str
) -> np.ndarray:
    x = checked(embeddings, sites, fit, by)
    if by == "cell_type":
        raise ValueError(f"{name}: by is 'cell_type'; expected 'plate' or 'experiment'")
    if not np.all(fit):
        raise ValueError(
            f"{name} learns from every row that it corrects, but fit leaves out"
            f" {int((~fit).sum())} of {len(fit)}: pass only rows that it may see"
        )
    return x


def _library(name: str, method: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{method} needs {name}: install the extra with `pip install 'rxrx1_jax[{extra}]'`"
        ) from error
