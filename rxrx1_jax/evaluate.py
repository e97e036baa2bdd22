"""Exact evaluation: each test site once, then accuracy by site and by well from one table.

`evaluate` runs the evaluation step over a pass of the test sites on any number of hosts and gives
the predictions as a table (one row a site, the columns of predictions.parquet) with the accuracies
computed from that table, so that every figure of a report can be recomputed from the file alone.
"""

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jax.experimental import multihost_utils

from rxrx1_jax.steps import local_rows

TOP = 5  # classes kept for each site
# Steps dispatched before the outputs of the oldest are fetched: the device does not wait for the
# host, and only a few batches of images are alive on it.
STEPS_IN_FLIGHT = 2

TEXT_COLUMNS = ("site_id", "well_id", "cell_type", "dataset", "experiment", "well", "sirna")
SITE_COLUMNS = (
    *("site_id", "well_id", "cell_type", "dataset", "experiment"),
    *("plate", "well", "site", "sirna", "sirna_id"),
)


def evaluate(
    eval_step: Callable[[Any, Mapping[str, Any]], Mapping[str, Any]],
    state: Any,
    batches: Iterable[Mapping[str, Any]],
    sites: np.ndarray,
    rows: np.ndarray,
    split: Any,
) -> tuple[pa.Table, dict[str, Any]]:
    """Predictions of `rows` and what they score.

    Args:
      eval_step: (state, batch) -> {"log_probs": f32 [N, K], "loss": f32 [N]}.
      batches: one pass over `rows`, this host's share; "site_index" and "mask" are read here.
      sites: structured array of all records (`Records.sites`).
      rows: [m] record indices to predict, each once (`split.test`).
      split: has `classes` [K], the sirna_id of each output of the network.

    Returns:
      The table of `predictions_table`, its rows in the order of `rows`, and
      {"accuracy": `accuracies`, "loss": mean}. On several hosts every host gets the same.
    """
    log_probs, loss = predict(eval_step, state, batches, rows)
    table = predictions_table(sites[rows], split.classes, log_probs, loss)
    return table, {"accuracy": accuracies(table), "loss": float(loss.mean(dtype=np.float64))}


def predict(
    eval_step: Callable[[Any, Mapping[str, Any]], Mapping[str, Any]],
    state: Any,
    batches: Iterable[Mapping[str, Any]],
    rows: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities [m, K] f32 and losses [m] f32 of the records `rows` [m], in that order.

    Padding (mask 0) is dropped and rows are recognised by "site_index", so neither the order of
    the batches nor the number of hosts matters; every host gets the same arrays. Raises ValueError
    unless each of `rows` was predicted exactly once and nothing else was.
    """
    rows = np.asarray(rows)
    if not len(rows):
        raise ValueError("no test sites to evaluate: expected at least one row")
    waiting: deque[tuple[Any, Any, Mapping[str, Any]]] = deque()
    fetched: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for batch in batches:
        waiting.append((batch["site_index"], batch["mask"], eval_step(state, batch)))
        if len(waiting) > STEPS_IN_FLIGHT:
            fetched.append(_fetch(*waiting.popleft()))
    fetched += [_fetch(*step) for step in waiting]
    if not fetched:
        raise ValueError(f"no batch to evaluate: expected batches of {len(rows)} test sites")
    index, log_probs, loss = _gather(
        *(np.concatenate(parts) for parts in zip(*fetched, strict=True))
    )
    order, target = np.argsort(index, kind="stable"), np.argsort(rows, kind="stable")
    if not np.array_equal(index[order], rows[target]):
        raise ValueError(_mismatch(index, rows))
    ordered_log_probs, ordered_loss = np.empty_like(log_probs), np.empty_like(loss)
    ordered_log_probs[target], ordered_loss[target] = log_probs[order], loss[order]
    return ordered_log_probs, ordered_loss


def predictions_table(
    sites: np.ndarray, classes: np.ndarray, log_probs: np.ndarray, loss: np.ndarray
) -> pa.Table:
    """One row a site: what it is, its label, its prediction, the top five, its well's prediction.

    Args:
      sites: structured array [m] with SITE_COLUMNS (`Records.sites[rows]`).
      classes: [K] sirna_id of each class.
      log_probs: f32 [m, K]. loss: f32 [m].

    Returns:
      SITE_COLUMNS, then label (= sirna_id), prediction, probability (of the prediction), loss,
      top5 and top5_probability (lists of min(5, K), best first) and well_prediction: the class of
      the highest mean log-probability over the sites of the well that are in the table. Classes
      are given as sirna_ids; among equals the first of `classes` wins.
    """
    m, k = log_probs.shape
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
    columns["label"] = columns["sirna_id"]
    columns["prediction"] = pa.array(classes[top[:, 0]])
    columns["probability"] = pa.array(top_probability[:, 0])
    columns["loss"] = pa.array(np.asarray(loss, np.float32))
    columns["top5"] = _list_array(classes[top])
    columns["top5_probability"] = _list_array(top_probability)
    columns["well_prediction"] = pa.array(classes[_well_argmax(sites["well_id"], log_probs)])
    return pa.table(columns)


def accuracies(table: pa.Table) -> dict[str, Any]:
    """Fractions right: {"site": {"all", "cell_type": {…}, "experiment": {…}}, "well": …, "top5"}.

    Counts are integers, divided once. "well" is like "site", and a well counts once however many
    of its sites are in the table; "top5" is by site.
    """
    label = table["label"].to_numpy()
    top5 = pc.list_flatten(table["top5"]).to_numpy().reshape(len(label), -1)
    groups = {name: _codes(table, name) for name in ("cell_type", "experiment")}
    first_of_well = np.unique(_codes(table, "well_id")[1], return_index=True)[1]

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


def write_predictions(path: str | os.PathLike[str], table: pa.Table) -> None:
    """Writes the table as Parquet; a reader sees the whole file or none. For one host only."""
    path = Path(path)
    partial = path.with_name(path.name + ".tmp")
    pq.write_table(table, partial, compression="zstd")
    os.replace(partial, path)


def _fetch(
    site_index: jax.Array, mask: jax.Array, outputs: Mapping[str, jax.Array]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """This host's unpadded rows of one step."""
    arrays = (mask, site_index, outputs["log_probs"], outputs["loss"])
    keep, index, log_probs, loss = (local_rows(array) for array in arrays)
    if not len(keep) == len(index) == len(log_probs) == len(loss):
        raise ValueError(
            f"this host holds {len(index)} rows of the batch, but {len(log_probs)} of log_probs "
            f"and {len(loss)} of loss: eval_step must lay out its outputs over the devices like "
            "its batch"
        )
    keep = keep > 0
    return index[keep], log_probs[keep].astype(np.float32), loss[keep].astype(np.float32)


def _gather(index: np.ndarray, log_probs: np.ndarray, loss: np.ndarray) -> list[np.ndarray]:
    """The rows of all hosts. Hosts may hold different numbers of rows, so they travel padded."""
    if jax.process_count() == 1:
        return [index, log_probs, loss]
    counts = multihost_utils.process_allgather(np.int32(len(index)))  # [hosts]
    most = int(counts.max())
    valid = np.arange(most) < counts[:, None]  # [hosts, most]
    pad = most - len(index)
    padded = [
        np.pad(x, [(0, pad)] + [(0, 0)] * (x.ndim - 1))
        for x in (index.astype(np.int32), log_probs, loss)
    ]
    return [np.asarray(x)[valid] for x in multihost_utils.process_allgather(padded)]


def _mismatch(index: np.ndarray, rows: np.ndarray) -> str:
    seen = Counter(index.tolist())
    expected = set(rows.tolist())
    found = {
        "missing": sorted(expected - seen.keys()),
        "predicted more than once": sorted(row for row, n in seen.items() if n > 1),
        "not asked for": sorted(seen.keys() - expected),
    }
    said = "; ".join(f"{len(x)} {what} (first: record {x[0]})" for what, x in found.items() if x)
    said = said or "a row is asked for twice"
    return f"each of the {len(rows)} test sites must be predicted exactly once: {said}"


def _top(log_probs: np.ndarray, count: int) -> np.ndarray:
    """Positions [m, count] of the largest values, best first, the lowest position among equals."""
    rest = log_probs.copy()
    every = np.arange(len(rest))
    top = np.empty((len(rest), count), np.intp)
    for rank in range(count):
        top[:, rank] = rest.argmax(axis=1)
        rest[every, top[:, rank]] = -np.inf
    return top


def _well_argmax(well_id: np.ndarray, log_probs: np.ndarray) -> np.ndarray:
    """[m] best class of the well of each site. The sum has the argmax of the mean."""
    _, well = np.unique(well_id, return_inverse=True)
    order = np.argsort(well, kind="stable")
    starts = np.flatnonzero(np.diff(well[order], prepend=-1))
    sums = np.add.reduceat(log_probs[order], starts, axis=0, dtype=np.float64)
    return sums.argmax(axis=1)[well]


def _codes(table: pa.Table, column: str) -> tuple[list[str], np.ndarray]:
    """The distinct values of a text column and the code [m] of each row."""
    encoded = table[column].combine_chunks().dictionary_encode()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy()


def _list_array(values: np.ndarray) -> pa.ListArray:
    rows, width = values.shape
    offsets = np.arange(0, rows * width + 1, width, dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, values.reshape(-1))
