"""Tries corrections on trained runs: `python -m rxrx1_jax.correct RUN...` says whether they help.

Each run is a directory of `rxrx1_jax.main`. Its network embeds the sites once; every method of
`corrections.METHODS` then predicts the test sites, and RUN/corrections/METHOD.parquet keeps what it
predicted (the columns of predictions.parquet). What is there is not computed again, unless the
method's code has changed. The table
compares methods within the same budget of information, paired with the uncorrected network.
"""

import argparse
import hashlib
import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ml_collections import ConfigDict

from rxrx1_jax.config import FREE, flat
from rxrx1_jax.data import input_pipeline, splits
from rxrx1_jax.data.files import write_text
from rxrx1_jax.data.records import DatasetError
from rxrx1_jax.methods import adabn, assignment, combat_harmony, statistics, transforms
from rxrx1_jax.methods import evidence as corrections
from rxrx1_jax.methods.evidence import BUDGETS, METHODS, Evidence, Method, find
from rxrx1_jax.methods.statistics import Unit
from rxrx1_jax.report.tables import Cell, Table, Value, gain
from rxrx1_jax.training import evaluate, predictions, train
from rxrx1_jax.training.run_dir import RunError, read_settings
from rxrx1_jax.training.setup import Task, create_model, eval_batches

BASE = "none"
DIFFERING = {"data.fold", "data.seed", "train.seed", *FREE}  # what runs of one table may differ in
ADAPT_BATCH = 64  # images a batch when BatchNorm statistics are estimated; a plate has 62 controls


def correct(
    workdir: Path, names: Sequence[str], refused: dict[str, Exception] | None = None
) -> dict[str, pa.Table]:
    """Predictions of the test sites of one run by each method, {name: table}.

    A method that refuses these data, or lacks its library, is left out with a line on stderr, and
    noted in `refused`.
    """
    config = read_settings(workdir)
    if config.data.protocol == "wilds":
        raise RunError(f"{workdir}: under the wilds protocol controls are classes; not corrected")
    task, state = train.restored(config, workdir)
    folder = workdir / "corrections"
    folder.mkdir(exist_ok=True)
    step = str(int(state.step))
    tables: dict[str, pa.Table] = {}
    evidence: Evidence | None = None
    rows = _rows(task)
    for name in names:
        path = folder / f"{name}.parquet"
        method = find(name)
        made_by = {"step": step, "method": stamp(method)}
        if path.exists():
            found = pq.read_schema(path).metadata or {}
            if all(found.get(key.encode()) == value.encode() for key, value in made_by.items()):
                tables[name] = pq.read_table(path)
                continue
        if evidence is None:
            evidence = _evidence(config, task, state, rows)
        given = evidence
        if method.adapt_by:
            given = evidence._replace(
                log_probs=_adapted_log_probs(config, task, state, evidence, rows, method)
            )
        elif method.orientations:
            given = evidence._replace(log_probs=_oriented_log_probs(config, task, state, rows))
        try:
            scores = corrections.scores(method, given)
        # A library of the extra `analysis`; data that a method is not for (no controls, no groups).
        except (ImportError, ValueError) as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            if refused is not None:
                refused[name] = error
            continue
        sites = task.records.sites[rows[evidence.role == "test"]]
        label = np.searchsorted(task.split.classes, sites["sirna_id"])
        loss = -scores[np.arange(len(label)), label]
        table = predictions.predictions_table(sites, task.split.classes, scores, loss)
        table = table.replace_schema_metadata(made_by)
        predictions.write_predictions(path, table)
        tables[name] = table
    return tables


def stamp(method: Method) -> str:
    """What stored predictions by a method are recognised by: changes with the code of methods."""
    own = sys.modules[method.function.__module__]
    sources = adabn, corrections, assignment, transforms, combat_harmony, own
    return source_digest(*sources)


def source_digest(*modules: ModuleType) -> str:
    """16 hexadecimal digits that change with the source of the modules."""
    sources = sorted({inspect.getsource(module) for module in modules})
    return hashlib.blake2b("".join(sources).encode(), digest_size=8).hexdigest()


def summary(runs: Mapping[str, Mapping[str, pa.Table]]) -> Table:
    """The table of {run: {method: predictions}}, grouped by what the methods may see."""
    tried = dict.fromkeys(name for tables in runs.values() for name in tables)
    names = [name for name in tried if all(name in tables for tables in runs.values())]
    rows: list[list[Cell]] = []
    for budget in BUDGETS:
        members = [name for name in names if find(name).budget == budget]
        rows += [[budget]] if members else []
        rows += [_row(name, runs) for name in members]
    head = ["method", "by site", "by well", "worst experiment", "gain by site, points"]
    return Table("Accuracy of the test sites, %", head, rows)


def _row(name: str, runs: Mapping[str, Mapping[str, pa.Table]]) -> list[Cell]:
    scored = [predictions.accuracies(tables[name]) for tables in runs.values()]
    worst = [statistics.worst_experiment(s["site"]["experiment"])[1] for s in scored]
    cells: list[Cell] = [name]
    for values in ([s["site"]["all"] for s in scored], [s["well"]["all"] for s in scored], worst):
        found = statistics.spread(values)
        cells.append(Value(100 * found.mean, sd=100 * found.sd))
    if name == BASE:
        return [*cells, ""]
    if len(runs) == 1:
        (tables,) = runs.values()
        over_wells = statistics.paired_difference(tables[name], tables[BASE])["all"]
        return [*cells, gain(over_wells)]
    base = [predictions.accuracies(tables[BASE]) for tables in runs.values()]
    pairs = ({Unit("", k, 0): s["site"]["all"] for k, s in enumerate(of)} for of in (scored, base))
    return [*cells, gain(statistics.compare(*pairs))]


def _check_alike(runs: Sequence[Path]) -> None:
    """Raises RunError for the first setting but fold and seed in which two runs differ."""
    one = flat(read_settings(runs[0]))
    for run in runs[1:]:
        two = flat(read_settings(run))
        for field in sorted((one.keys() | two.keys()) - DIFFERING):
            if one.get(field) != two.get(field):
                raise RunError(
                    f"{run} has {field}={two.get(field)!r}, {runs[0]} has {one.get(field)!r}: the "
                    "runs of one table may differ in fold and seed; name the others separately"
                )


def _rows(task: Task) -> np.ndarray:
    """Records a correction may be given: training, test, and the controls of their experiments."""
    sites, split = task.records.sites, task.split
    used = np.concatenate([split.train, split.test])
    there = np.isin(sites["experiment"], np.unique(sites["experiment"][used]))
    controls = np.flatnonzero(there & (sites["well_type"] != "treatment"))
    return np.unique(np.concatenate([used, controls]))


def _evidence(config: ConfigDict, task: Task, state: Any, rows: np.ndarray) -> Evidence:
    """Embeds and scores `rows`."""
    role = splits.site_roles(task.split, len(task.records.sites))
    role[role == "other"] = "control"  # of the rows here no others are left
    batches = eval_batches(config, task, rows)
    outputs = evaluate.predict(task.steps.embed_step, state, batches, rows)
    return Evidence(
        task.records.sites[rows], role[rows], outputs["embedding"], outputs["log_probs"],
        task.split.classes,
    )  # fmt: skip


def _oriented_log_probs(
    config: ConfigDict, task: Task, state: Any, rows: np.ndarray
) -> np.ndarray:
    """The mean of the log-probabilities over the eight orientations of each image."""

    def step(state: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        turned = [{**batch, "image": _turn(batch["image"], k)} for k in range(8)]
        scored = [task.steps.eval_step(state, one)["log_probs"] for one in turned]
        return {"log_probs": sum(scored[1:], scored[0]) / len(scored)}

    return evaluate.predict(step, state, eval_batches(config, task, rows), rows)["log_probs"]


@partial(jax.jit, static_argnums=1)
def _turn(images: jax.Array, orientation: int) -> jax.Array:
    """[N, H, W, C]: quarter turns, and for orientations 4 to 7 the mirror image first."""
    images = images[:, :, ::-1] if orientation >= 4 else images
    return jnp.rot90(images, orientation % 4, axes=(1, 2))


def _adapted_log_probs(
    config: ConfigDict, task: Task, state: Any, evidence: Evidence, rows: np.ndarray,
    method: Method,
) -> np.ndarray:  # fmt: skip
    """The network's log-probabilities after AdaBN in each experiment or plate with test sites."""
    spec = replace(task.spec, model=create_model(config))
    sites = evidence.sites
    batch_of = sites["experiment"]
    if method.adapt_by == "plate":
        batch_of = np.char.add(np.char.add(batch_of, "_"), sites["plate"].astype(str))
    on_controls = method.adapt_on == "control"
    log_probs = evidence.log_probs.copy()
    average = state.ema_params is not None
    params = state.ema_params if average else state.params
    for name in np.unique(batch_of[evidence.role == "test"]):
        here = batch_of == name
        learn = rows[here & ((sites["well_type"] != "treatment") == on_controls)]
        if not len(learn):
            continue  # a part of the release without controls: the network stays as it is
        images = input_pipeline.eval_batches(
            task.records, _whole_batches(learn), task.split, batch_size=ADAPT_BATCH,
            normalisation=config.data.normalisation, crop=config.data.crop,
            dtype=jnp.dtype(config.model.dtype), sharding=task.steps.batch_sharding,
            threads=config.data.threads,
        )  # fmt: skip
        statistics = adabn.adapted_statistics(spec, params, state.batch_stats, images)
        statistics = jax.device_put(statistics, task.steps.state_sharding)
        adapted = state.replace(batch_stats=statistics)
        if average:
            adapted = adapted.replace(ema_batch_stats=statistics)
        test = np.flatnonzero(here & (evidence.role == "test"))
        batches = eval_batches(config, task, rows[test])
        log_probs[test] = evaluate.predict(task.steps.eval_step, adapted, batches, rows[test])[
            "log_probs"
        ]
    return log_probs


def _whole_batches(rows: np.ndarray) -> np.ndarray:
    """`rows`, and the first of them again until the last batch is full."""
    return np.resize(rows, -(-len(rows) // ADAPT_BATCH) * ADAPT_BATCH)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m rxrx1_jax.correct", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="directories of runs")
    parser.add_argument(
        "--methods", nargs="+", default=list(METHODS), metavar="METHOD",
        help=f"{', '.join(METHODS)}, or module.name of your own (default: all of these)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, help="file for the table, Markdown")
    options = parser.parse_args()
    if options.out and (options.out.is_dir() or not options.out.parent.is_dir()):
        parser.error(f"--out={options.out}: expected a file in a folder that exists")
    names = list(dict.fromkeys([BASE, *options.methods]))
    tables = {}
    try:
        for name in names:
            find(name)  # a name that is none is told before the work
        _check_alike(options.runs)
        for i, run in enumerate(options.runs, 1):
            print(f"{run} ({i} of {len(options.runs)})", file=sys.stderr, flush=True)
            tables[str(run)] = correct(run, names)
        text = summary(tables).markdown()
    except (RunError, DatasetError, ImportError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(text)
    if options.out:
        write_text(options.out, text)


if __name__ == "__main__":
    main()
