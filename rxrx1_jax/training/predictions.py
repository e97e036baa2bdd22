"""Predictions as a table, one row per site: the columns of predictions.parquet and their scores.

Needs no JAX: reports start without it.
"""

import os
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rxrx1_jax.data.files import replacing

TOP = 5  # classes kept for each site
WELLS_AT_ONCE = 512  # their float64 sums stay in the cache

TEXT_COLUMNS = ("site_id", "well_id", "cell_type", "dataset", "experiment", "well", "sirna")
SITE_COLUMNS = (
    *("site_id", "well_id", "cell_type", "dataset", "experiment"),
    *("plate", "well", "site", "sirna", "sirna_id"),
)


def predictions_table(
    sites: np.ndarray, classes: np.ndarray, log_probs: np.ndarray,
    loss: np.ndarray | None = None, role: np.ndarray | None = None,
) -> pa.Table:  # fmt: skip
    """One row a site: what it is, its label, its prediction, the top five, its well's prediction.

    Args:
      sites: structured array [m] with SITE_COLUMNS (`Records.sites[rows]`).
      classes: [K] sirna_id of each class.
      log_probs: f32 [m, K].
      loss: f32 [m]; None: of classes that are sorted, minus the label's log-probability.
      role: str [m], of each site in the split; None: "test".

    Returns:
      SITE_COLUMNS, role, label (= sirna_id), prediction, probability (of the prediction), loss,
      top5 and top5_probability (lists of min(5, K), best first) and well_prediction: the class of
      the highest mean log-probability over the sites of the well that are in the table. Classes
      are given as sirna_ids; among equals the first of `classes` wins.
    """
    m, k = log_probs.shape
    if loss is None:
        loss = -log_probs[np.arange(m), np.searchsorted(classes, sites["sirna_id"])]
    if len(sites) != m or len(loss) != m or len(classes) != k:
        raise ValueError(
            f"sizes disagree: {len(sites)} sites, {len(classes)} classes, {len(loss)} losses, "
            f"log_probs {log_probs.shape}"
        )
    finite = np.isfinite(log_probs).all(axis=1)
    if not finite.all():
        # argmax would take the first NaN for the prediction.
        raise ValueError(
            f"site {sites['site_id'][finite.argmin()]}: log-probabilities are not finite "
            f"({(~finite).sum()} of {m} sites); expected finite numbers: has training diverged?"
        )
    classes = np.asarray(classes, np.int32)
    top = _top(log_probs, min(TOP, k))  # [m, t] positions in `classes`
    top_probability = np.exp(np.take_along_axis(log_probs, top, axis=1)).astype(np.float32)
    columns: dict[str, pa.Array] = {
        name: pa.array(
            sites[name].tolist() if name in TEXT_COLUMNS else sites[name].astype(np.int32)
        )
        for name in SITE_COLUMNS
    }
    columns["role"] = pa.array(["test"] * m if role is None else role.tolist())
    columns["label"] = columns["sirna_id"]
    columns["prediction"] = pa.array(classes[top[:, 0]])
    columns["probability"] = pa.array(top_probability[:, 0])
    columns["loss"] = pa.array(np.asarray(loss, np.float32))
    columns["top5"] = _list_array(classes[top])
    columns["top5_probability"] = _list_array(top_probability)
    columns["well_prediction"] = pa.array(classes[well_argmax(sites["well_id"], log_probs)])
    return pa.table(columns)


def accuracies(table: pa.Table) -> dict[str, Any]:
    """Fractions right: {"site": {"all", "cell_type": {…}, "experiment": {…}}, "well": …, "top5"}.

    Counts are integers, divided once. "well" is like "site", and a well counts once however many
    of its sites are in the table; "top5" is by site.
    """
    label = table["label"].to_numpy()
    top5 = pc.list_flatten(table["top5"]).to_numpy().reshape(len(label), -1)
    groups = {name: _codes(table, name) for name in ("cell_type", "experiment")}
    first_of_well = firsts_of_wells(table)

    def by(column: str, keep: np.ndarray | slice) -> dict[str, Any]:
        right = (table[column].to_numpy() == label)[keep]
        result: dict[str, Any] = {"all": int(right.sum()) / len(right)}
        for name, (names, codes) in groups.items():
            n = np.bincount(codes[keep], minlength=len(names))
            hits = np.bincount(codes[keep][right], minlength=len(names))
            counted = sorted(zip(names, hits.tolist(), n.tolist(), strict=True))
            result[name] = {group: right_n / all_n for group, right_n, all_n in counted}
        return result

    return {
        "site": by("prediction", slice(None)),
        "well": by("well_prediction", first_of_well),
        "top5": int((top5 == label[:, None]).any(axis=1).sum()) / len(label),
    }


def firsts_of_wells(table: pa.Table) -> np.ndarray:
    """The first row of each well."""
    return np.unique(_codes(table, "well_id")[1], return_index=True)[1]


def write_predictions(path: str | os.PathLike[str], table: pa.Table) -> None:
    """Writes the table as Parquet; a reader sees the whole file or none. For one host only."""
    with replacing(path) as partial:
        pq.write_table(table, partial, compression="zstd")


def _top(log_probs: np.ndarray, count: int) -> np.ndarray:
    """Positions [m, count] of the largest values, best first, the lowest position among equals."""
    rest = log_probs.copy()
    every = np.arange(len(rest))
    top = np.empty((len(rest), count), np.intp)
    for rank in range(count):
        top[:, rank] = rest.argmax(axis=1)
        rest[every, top[:, rank]] = -np.inf
    return top


def well_argmax(well_id: np.ndarray, log_probs: np.ndarray) -> np.ndarray:
    """[m] best class of the well of each site. The sum has the argmax of the mean."""
    _, well = np.unique(well_id, return_inverse=True)
    order = np.argsort(well, kind="stable")
    starts = np.flatnonzero(np.diff(well[order], prepend=-1))
    ends = np.append(starts[1:], len(order))
    best = np.empty(len(starts), np.intp)  # of each well
    for first in range(0, len(starts), WELLS_AT_ONCE):
        some = slice(first, first + WELLS_AT_ONCE)
        begin, end = starts[some][0], ends[some][-1]
        sums = np.add.reduceat(
            log_probs[order[begin:end]], starts[some] - begin, axis=0, dtype=np.float64
        )
        best[some] = sums.argmax(axis=1)
    return best[well]


def _codes(table: pa.Table, column: str) -> tuple[list[str], np.ndarray]:
    """The distinct values of a text column and the code [m] of each row."""
    encoded = table[column].combine_chunks().dictionary_encode()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy()


def _list_array(values: np.ndarray) -> pa.ListArray:
    rows, width = values.shape
    offsets = np.arange(0, rows * width + 1, width, dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, values.reshape(-1))
