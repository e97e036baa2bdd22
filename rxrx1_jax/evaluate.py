"""Exact evaluation: each test site once, then accuracy by site and by well from one table.

`evaluate` runs the evaluation step over a pass of the test sites on any number of hosts and gives
the predictions as a table (one row a site, the columns of predictions.parquet) with the accuracies
computed from that table, so that every figure of a report can be recomputed from the file alone.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
import pyarrow as pa
from jax.experimental import multihost_utils

from rxrx1_jax.predictions import accuracies, predictions_table
from rxrx1_jax.steps import local_rows

# Steps dispatched before the outputs of the oldest are fetched: the device does not wait for the
# host, and only a few batches of images are alive on it.
STEPS_IN_FLIGHT = 2


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
