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

from rxrx1_jax.training.parallel import local_rows
from rxrx1_jax.training.predictions import accuracies, predictions_table

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
    outputs = predict(eval_step, state, batches, rows)
    log_probs, loss = outputs["log_probs"], outputs["loss"]
    table = predictions_table(sites[rows], split.classes, log_probs, loss)
    return table, {"accuracy": accuracies(table), "loss": float(loss.mean(dtype=np.float64))}


def predict(
    step: Callable[[Any, Mapping[str, Any]], Mapping[str, Any]],
    state: Any,
    batches: Iterable[Mapping[str, Any]],
    rows: np.ndarray,
) -> dict[str, np.ndarray]:
    """The outputs f32 [m, ...] of a step for the records `rows` [m], in that order.

    Padding (mask 0) is dropped and rows are recognised by "site_index", so neither the order of
    the batches nor the number of hosts matters; every host gets the same arrays. Raises ValueError
    unless each of `rows` was predicted exactly once and nothing else was.
    """
    rows = np.asarray(rows)
    if not len(rows):
        raise ValueError("no sites to evaluate: expected at least one row")
    waiting: deque[tuple[Any, Any, Mapping[str, Any]]] = deque()
    fetched: list[dict[str, np.ndarray]] = []
    for batch in batches:
        waiting.append((batch["site_index"], batch["mask"], step(state, batch)))
        if len(waiting) > STEPS_IN_FLIGHT:
            fetched.append(_fetch(*waiting.popleft()))
    fetched += [_fetch(*outputs) for outputs in waiting]
    if not fetched:
        raise ValueError(f"no batch to evaluate: expected batches of {len(rows)} sites")
    outputs = _gather({name: np.concatenate([f[name] for f in fetched]) for name in fetched[0]})
    index = outputs.pop("site_index")
    order, target = np.argsort(index, kind="stable"), np.argsort(rows, kind="stable")
    if not np.array_equal(index[order], rows[target]):
        raise ValueError(_mismatch(index, rows))
    source = np.empty_like(order)
    source[target] = order
    return {name: array[source] for name, array in outputs.items()}


def _fetch(
    site_index: jax.Array, mask: jax.Array, outputs: Mapping[str, jax.Array]
) -> dict[str, np.ndarray]:
    """This host's unpadded rows of one step, with their "site_index"."""
    keep, index = local_rows(mask) > 0, local_rows(site_index)
    arrays = {name: local_rows(array) for name, array in outputs.items()}
    for name, array in arrays.items():
        if len(array) != len(index):
            raise ValueError(
                f"this host holds {len(index)} rows of the batch, but {len(array)} of {name}:"
                " the step must lay out its outputs over the devices like its batch"
            )
    kept = {name: array[keep].astype(np.float32) for name, array in arrays.items()}
    return {"site_index": index[keep].astype(np.int32), **kept}


def _gather(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The rows of all hosts. Hosts may hold different numbers of rows, so they travel padded."""
    if jax.process_count() == 1:
        return arrays
    count = len(arrays["site_index"])
    counts = multihost_utils.process_allgather(np.int32(count))  # [hosts]
    most = int(counts.max())
    valid = np.arange(most) < counts[:, None]  # [hosts, most]
    padded = {
        name: np.pad(x, [(0, most - count)] + [(0, 0)] * (x.ndim - 1)) for name, x in arrays.items()
    }
    gathered = multihost_utils.process_allgather(padded)
    return {name: np.asarray(x)[valid] for name, x in gathered.items()}


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
