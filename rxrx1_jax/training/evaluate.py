"""Exact evaluation: each site once, then accuracy by site and by well from one table.

`predict` runs a step over rows of the table of sites on any number of hosts. `evaluate_sites` turns
the outputs into a table of predictions (one row per site, the columns of predictions.parquet). All
accuracies come from that table, so every figure of a report can be computed again from the file.
`embed` makes `Embeddings`.
"""

import re
from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
from jax.experimental import multihost_utils

from rxrx1_jax.data import splits
from rxrx1_jax.data.embeddings import Embeddings
from rxrx1_jax.training import environment, orientations, predictions, run_dir, steps
from rxrx1_jax.training.parallel import local_rows
from rxrx1_jax.training.processes import Notice
from rxrx1_jax.training.setup import Setup, SpecStep
from rxrx1_jax.training.steps import TrainState

# Steps dispatched before the outputs of the oldest are fetched: the device does not wait for the
# host, and only a few batches of images are alive on it.
STEPS_IN_FLIGHT = 2

Evaluated = dict[str, tuple[pa.Table, dict[str, Any]]]  # set of the split -> predictions, scores


def predict(
    setup: Setup, step: SpecStep, state: TrainState, rows: np.ndarray, notice: Notice | None = None
) -> dict[str, np.ndarray]:
    """The outputs f32 [m, ...] of a step for the sites `rows` [m], in that order.

    step: (spec, state, batch) -> {name: array [N, ...]}, traced; a step of `training.steps`, or a
      function of the same form.
    Every host gets the same arrays. Raises Preempted if `notice` comes meanwhile.
    """
    rows = np.asarray(rows)
    store, draws = setup.evaluation_draws(rows)
    run = setup.evaluator(step)
    if notice is not None:
        draws = notice.until_given(draws, int(state.step))
    return collect((run(state, store, draw) for draw in draws), rows)


def collect(outputs: Iterator[Mapping[str, jax.Array]], rows: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs of a step for `rows` [m], in that order.

    outputs: of batches of this host's share of `rows`; beside their arrays site_index and mask.
    Padding (mask 0) is dropped and rows are recognised by site_index, so neither the order of the
    batches nor the number of hosts matters. Raises ValueError unless each of `rows` was predicted
    exactly once and nothing else was.
    """
    waiting: deque[Mapping[str, jax.Array]] = deque()
    fetched: list[dict[str, np.ndarray]] = []
    for batch in outputs:
        waiting.append(batch)
        if len(waiting) > STEPS_IN_FLIGHT:
            fetched.append(_fetch(waiting.popleft()))
    fetched += [_fetch(batch) for batch in waiting]
    if not fetched:
        raise ValueError(f"no batch to evaluate: expected batches of {len(rows)} sites")
    found = _gather({name: np.concatenate([f[name] for f in fetched]) for name in fetched[0]})
    index = found.pop("site_index")
    order, target = np.argsort(index, kind="stable"), np.argsort(rows, kind="stable")
    if not np.array_equal(index[order], rows[target]):
        raise ValueError(_mismatch(index, rows))
    source = np.empty_like(order)
    source[target] = order
    return {name: array[source] for name, array in found.items()}


def evaluate_sites(
    setup: Setup, state: TrainState, rows: np.ndarray, notice: Notice | None = None
) -> tuple[pa.Table, dict[str, Any]]:
    """Predictions of the sites `rows` (`predictions_table`), and what they score:
    {"accuracy": `accuracies`, "loss": mean}. Raises Preempted if `notice` comes meanwhile."""
    table, found = predict_sites(setup, state, rows, notice)
    accuracy = predictions.accuracies(table)
    return table, {"accuracy": accuracy, "loss": float(found["loss"].mean(dtype=np.float64))}


def predict_sites(
    setup: Setup, state: TrainState, rows: np.ndarray, notice: Notice | None = None
) -> tuple[pa.Table, dict[str, np.ndarray]]:
    """`predictions_table` of the sites `rows` [m], and log_probs f32 [m, K] and loss f32 [m]."""
    step = orientations.eval_step if setup.config.eval.orientations else steps.eval_step
    found = predict(setup, step, state, rows, notice)
    sites, classes = setup.images.sites[rows], setup.vocabulary.classes
    role = splits.site_roles(setup.split, len(setup.images))[rows]
    table = predictions.predictions_table(sites, classes, found["log_probs"], found["loss"], role)
    return table, found


def evaluate_sets(
    setup: Setup, state: TrainState, names: Collection[str] | None = None,
    notice: Notice | None = None,
) -> Evaluated:  # fmt: skip
    """`evaluate_sites` of sets of the split by name, where it has them; None: of all."""
    return {
        name: evaluate_sites(setup, state, rows, notice)
        for name, rows in setup.split.scored.items()
        if names is None or name in names
    }


def embed(
    setup: Setup, state: TrainState, rows: np.ndarray, source: Mapping[str, str]
) -> Embeddings:
    """Features and log-probabilities of the sites `rows`.

    Their roles, where there is a split, are those of `splits.roles_with_context`.
    """
    found = predict(setup, steps.embed_step, state, rows)
    sites, split, role = setup.images.sites, setup.split, None
    if len(split.train):
        role = splits.roles_with_context(sites, split)[rows]
    return Embeddings(
        sites[rows], found["embedding"], found["log_probs"], setup.vocabulary.classes,
        source=dict(source), role=role,
    )  # fmt: skip


def curves(evaluated: Evaluated) -> dict[str, float]:
    """What metrics.jsonl holds of an evaluation: of the test set and, where there is one, `val`."""
    found = {}
    for name in ("test", "val"):
        if name in evaluated:
            result = evaluated[name][1]
            found[f"{name}_loss"] = result["loss"]
            found[f"{name}_accuracy"] = result["accuracy"]["site"]["all"]
            found[f"{name}_accuracy_by_well"] = result["accuracy"]["well"]["all"]
            by_cell_type = result["accuracy"]["site"]["cell_type"]
            for cell_type, accuracy in by_cell_type.items() if len(by_cell_type) > 1 else ():
                found[f"{name}_accuracy_of_" + re.sub(r"[^\w-]", "_", cell_type)] = accuracy
    return found


def write_results(
    setup: Setup, workdir: Path, state: TrainState, total_steps: int, evaluated: Evaluated
) -> dict[str, Any]:
    """Writes the predictions of each set, then results.json, which makes the run complete.

    results.json holds what `test` scores, and below "other_sets" what the others do.
    """
    config, images = setup.config, setup.images
    name, _, _ = config.data.name.partition(":")
    other_sets = {
        other: {"sites": table.num_rows, **result}
        for other, (table, result) in evaluated.items()
        if other != "test"
    }
    results = {
        "data": {
            "name": name,
            "version": images.about["version"],
            "source": images.about["source"],
            "classes": len(setup.vocabulary.classes),
            "image_size": images.image_shape[1],
            "train_sites": len(setup.split.train),
            "test_sites": len(setup.split.test),
        },
        "protocol": config.data.protocol,
        "fold": config.data.fold,
        "cell_type": config.data.cell_type,
        "normalisation": config.data.normalisation,
        "model": config.model.name,
        "epochs": config.optim.epochs,
        "seed": config.train.seed,
        "step": int(state.step),
        "total_steps": total_steps,
        **evaluated["test"][1],
        **({"other_sets": other_sets} if other_sets else {}),
        **({"parent": config.train.parent} if config.train.parent else {}),
        **({"orientations": True} if config.eval.orientations else {}),
        "made_with": environment.made_with(config),
    }
    if jax.process_index() == 0:
        for part, (table, _) in evaluated.items():
            file = "predictions.parquet" if part == "test" else f"predictions_{part}.parquet"
            predictions.write_predictions(workdir / file, table)
        run_dir.write_json(workdir / "results.json", results)
    return results


def _fetch(outputs: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    """This host's unpadded rows of one step, with their "site_index"."""
    arrays = {name: local_rows(array) for name, array in outputs.items()}
    keep, index = arrays.pop("mask") > 0, arrays.pop("site_index")
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
