"""Training and evaluation of one run, from its settings to its results, in a fixed order."""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pyarrow as pa
from ml_collections import ConfigDict

from rxrx1_jax import (
    checkpoint,
    evaluate,
    input_pipeline,
    metrics,
    models,
    predictions,
    records,
    run,
    steps,
)
from rxrx1_jax import splits as splits_lib


class Task(NamedTuple):
    """What a run works on, all of it determined by its settings and the dataset."""

    records: records.Records
    split: splits_lib.Split
    steps: steps.ParallelSteps
    state: steps.TrainState  # initial; on the devices
    total_steps: int
    steps_per_epoch: float


def prepare(config: ConfigDict) -> Task:
    """Checks the settings against each other and the data, and builds everything a run needs."""
    run.check(config)
    dataset = records.Records(records.find_dataset(config.data.dir, config.data.name))
    size = dataset.image_shape[1]
    if config.data.crop > size:
        raise run.RunError(f"data.crop={config.data.crop}: expected at most {size}, the image size")
    split = splits_lib.make_split(
        dataset.sites, config.data.protocol, fold=config.data.fold, seed=config.data.seed,
        cell_type=config.data.cell_type,
    )  # fmt: skip
    if len(split.train) < config.optim.batch_size:
        raise run.RunError(
            f"optim.batch_size={config.optim.batch_size}: the split has only {len(split.train)} "
            "training sites; choose a smaller one"
        )
    steps_per_epoch = len(split.train) / config.optim.batch_size
    total_steps = max(1, round(steps_per_epoch * config.optim.epochs))

    axis = steps.AXIS if config.train.parallelism == "pmap" and config.train.bn_sync else None
    model = models.create_model(
        config.model.name, len(split.classes), width=config.model.width,
        dtype=jnp.dtype(config.model.dtype), bn_axis_name=axis,
    )  # fmt: skip
    try:
        tx, schedule = steps.create_optimizer(config.optim, total_steps)
    except ValueError as error:
        raise run.RunError(str(error)) from error
    parallel = steps.parallelise(
        config.train.parallelism,
        partial(
            steps.train_step, model=model, tx=tx, schedule=schedule,
            label_smoothing=config.optim.label_smoothing, ema_decay=config.optim.ema_decay,
            accumulation=config.optim.accumulation,
        ),
        partial(steps.eval_step, model=model),
        partial(steps.embed_step, model=model),
    )  # fmt: skip
    side = config.data.crop or size
    shape = (side, side, dataset.image_shape[0])
    key = jax.random.key(config.train.seed)
    state = steps.create_state(model, tx, key, shape, ema=config.optim.ema_decay > 0)
    state = jax.device_put(state, parallel.state_sharding)
    return Task(dataset, split, parallel, state, total_steps, steps_per_epoch)


def train_and_evaluate(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Trains from the newest checkpoint in `workdir` to the end, evaluates, returns the results.

    A run that is complete is evaluated only when its results are missing.
    """
    workdir = Path(workdir)
    task = prepare(config)
    _open(workdir, config, task)
    if run.is_complete(workdir):
        print(f"{workdir}: complete, nothing to do (--mode=evaluate evaluates it again)")
        return run.read_results(workdir)
    checkpoints = checkpoint.manager(workdir, config.train.keep)
    state = checkpoint.restore(checkpoints, task.state, task.split.classes)
    start = int(state.step)
    if jax.process_index() == 0:
        splits_lib.write_split(workdir / "split.csv", task.records.sites, task.split)
    log = metrics.Log(
        workdir, step=start, steps=task.total_steps, steps_per_epoch=task.steps_per_epoch,
        batch_size=config.optim.batch_size, every=config.train.log_every,
    )  # fmt: skip
    with checkpoints, log:
        log.say(_summary(config, task, start))
        state = fit(config, task, state, log, checkpoints)
        evaluated = evaluate_sets(config, task, state)
        log.evaluation(task.total_steps, _curve(evaluated["test"][1]))
        for name in task.split.other_sets:
            accuracy = evaluated[name][1]["accuracy"]["site"]["all"]
            log.say(f"{name}: accuracy by site {accuracy:.4f}")
    return _write_results(config, workdir, task, state, evaluated)


def fit(
    config: ConfigDict, task: Task, state: steps.TrainState, log: metrics.Log,
    checkpoints: ocp.CheckpointManager,
) -> steps.TrainState:  # fmt: skip
    """Trains `state` (donated) from its step to the last, with evaluations and checkpoints.

    The loop only draws batches and dispatches: the log waits for the device, checkpoints are
    written in the background. When it returns, every step was checked and the last one is saved.
    """
    start = int(state.step)
    eval_steps = _milestones(config.train.eval_every, task)
    save_steps = _milestones(config.train.checkpoint_every, task) | {task.total_steps}
    batches = train_batches(config, task, start)
    # 1. next batch  2. update  3. metrics  4. evaluation  5. checkpoint
    for step in range(start + 1, task.total_steps + 1):
        asked = time.monotonic()
        batch = next(batches)
        got = time.monotonic()
        state, step_metrics = task.steps.train_step(state, batch)
        log.train(step, step_metrics, asked, got)
        if step in eval_steps and step < task.total_steps:
            log.flush()
            _, result = evaluate_sites(config, task, state, task.split.test)
            log.evaluation(step, _curve(result))
        if step in save_steps:
            log.flush()
            checkpoint.save(checkpoints, step, state, task.split.classes)
    checkpoints.wait_until_finished()
    return state


def evaluate_run(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Evaluates the newest checkpoint of a run again: predictions.parquet and results.json."""
    task, state = restored(config, Path(workdir))
    evaluated = evaluate_sets(config, task, state)
    return _write_results(config, Path(workdir), task, state, evaluated)


def predict_run(config: ConfigDict, workdir: str | Path) -> Path:
    """Predicts every treatment site of the dataset, labelled or not, trained on or not.

    Where controls are classes of the split, their sites too. Returns the path of the Parquet file;
    its `role` column is that of `splits.site_roles`.
    """
    workdir = Path(workdir)
    task, state = restored(config, workdir)
    sites = task.records.sites
    is_class = np.isin(sites["sirna_id"], task.split.classes)
    rows = np.flatnonzero((sites["well_type"] == "treatment") | is_class)
    table, _ = evaluate_sites(config, task, state, rows)
    loss = table["loss"].to_numpy().copy()
    loss[table["label"].to_numpy() < 0] = np.nan  # unlabelled: there is no right answer
    table = table.set_column(table.column_names.index("loss"), "loss", [loss])
    role = splits_lib.site_roles(task.split, len(sites))
    path = workdir / "predictions_all.parquet"
    if jax.process_index() == 0:
        predictions.write_predictions(path, table.append_column("role", [role[rows].tolist()]))
    return path


def _write_results(
    config: ConfigDict, workdir: Path, task: Task, state: steps.TrainState,
    evaluated: dict[str, tuple[pa.Table, dict[str, Any]]],
) -> dict[str, Any]:  # fmt: skip
    """Writes the predictions of each set, then results.json, which makes the run complete.

    evaluated: as `evaluate_sets` gives it. results.json holds what `test` scores, and below
    "other_sets" what the others do.
    """
    name, _, _ = config.data.name.partition(":")
    other_sets = {
        other: {"sites": table.num_rows, **result}
        for other, (table, result) in evaluated.items()
        if other != "test"
    }
    results = {
        "data": {
            "name": name,
            "version": task.records.path.name,
            "source": task.records.metadata.get("source", "release"),
            "classes": len(task.split.classes),
            "image_size": task.records.image_shape[1],
            "train_sites": len(task.split.train),
            "test_sites": len(task.split.test),
        },
        "protocol": config.data.protocol,
        "fold": config.data.fold,
        "cell_type": config.data.cell_type,
        "normalisation": config.data.normalisation,
        "model": config.model.name,
        "epochs": config.optim.epochs,
        "seed": config.train.seed,
        "step": int(state.step),
        "total_steps": task.total_steps,
        **evaluated["test"][1],
        **({"other_sets": other_sets} if other_sets else {}),
    }
    if jax.process_index() == 0:
        for part, (table, _) in evaluated.items():
            file = "predictions.parquet" if part == "test" else f"predictions_{part}.parquet"
            predictions.write_predictions(workdir / file, table)
        run.write_json(workdir / "results.json", results)
    return results


def _open(workdir: Path, config: ConfigDict, task: Task) -> None:
    data = run.describe_data(task.records.path.name, task.records.sites, task.split)
    run.open_run(workdir, config, data)


def restored(config: ConfigDict, workdir: Path) -> tuple[Task, steps.TrainState]:
    """A run's task, and its state of the newest checkpoint; RunError where there is none."""
    if not (workdir / "config.json").exists():
        raise run.RunError(f"{workdir}: no run here (no config.json); train with this --workdir")
    task = prepare(config)
    _open(workdir, config, task)
    with checkpoint.manager(workdir, config.train.keep) as checkpoints:
        state = checkpoint.restore(checkpoints, task.state, task.split.classes)
    if not int(state.step):
        raise run.RunError(f"{workdir}: the run has no checkpoint yet; train with --mode=train")
    return task, state


def train_batches(config: ConfigDict, task: Task, start: int) -> Iterator[dict[str, jax.Array]]:
    return input_pipeline.train_batches(
        task.records, task.split, batch_size=config.optim.batch_size, seed=config.train.seed,
        normalisation=config.data.normalisation, start_step=start, end_step=task.total_steps,
        augment=config.data.augment,
        crop=config.data.crop, dtype=jnp.dtype(config.model.dtype),
        sharding=task.steps.batch_sharding, threads=config.data.threads,
    )  # fmt: skip


def eval_batches(
    config: ConfigDict, task: Task, rows: np.ndarray
) -> Iterator[dict[str, jax.Array]]:
    return input_pipeline.eval_batches(
        task.records, rows, task.split, batch_size=config.eval.batch_size,
        normalisation=config.data.normalisation, crop=config.data.crop,
        dtype=jnp.dtype(config.model.dtype), sharding=task.steps.batch_sharding,
        threads=config.data.threads,
    )  # fmt: skip


def evaluate_sites(
    config: ConfigDict, task: Task, state: steps.TrainState, rows: np.ndarray
) -> tuple[pa.Table, dict[str, Any]]:
    """`evaluate.evaluate` of the records `rows`."""
    batches = eval_batches(config, task, rows)
    return evaluate.evaluate(
        task.steps.eval_step, state, batches, task.records.sites, rows, task.split
    )


def evaluate_sets(
    config: ConfigDict, task: Task, state: steps.TrainState
) -> dict[str, tuple[pa.Table, dict[str, Any]]]:
    """`evaluate_sites` of the test set, "test", and of the split's other sets, by name."""
    sets = {"test": task.split.test, **task.split.other_sets}
    return {name: evaluate_sites(config, task, state, rows) for name, rows in sets.items()}


def _milestones(every: int, task: Task) -> set[int]:
    """The steps that end each `every`-th epoch; none for 0."""
    if not every:
        return set()
    epochs = range(every, int(task.total_steps / task.steps_per_epoch + 0.5) + 1, every)
    return {min(round(epoch * task.steps_per_epoch), task.total_steps) for epoch in epochs}


def _curve(result: dict[str, Any]) -> dict[str, float]:
    accuracy = result["accuracy"]
    return {
        "test_loss": result["loss"],
        "test_accuracy": accuracy["site"]["all"],
        "test_accuracy_by_well": accuracy["well"]["all"],
    }


def _summary(config: ConfigDict, task: Task, start: int) -> str:
    sites, split = task.records.sites, task.split
    wells = [len(np.unique(sites["well_id"][rows])) for rows in (split.train, split.test)]
    others = "".join(f", {name} {len(rows):,} sites" for name, rows in split.other_sets.items())
    unlabelled = int((sites["sirna_id"] < 0).sum())
    parts = [
        f"{task.records.path}: {config.data.protocol} split, fold {config.data.fold}, cell type "
        f"{config.data.cell_type}, normalisation {config.data.normalisation}",
        f"train {len(split.train):,} sites of {wells[0]:,} wells, test {len(split.test):,} sites "
        f"of {wells[1]:,} wells{others}, {len(split.classes):,} siRNA classes"
        + (f"; {unlabelled:,} sites without a label are left out" if unlabelled else ""),
        f"{config.model.name}, {task.total_steps:,} steps of {config.optim.batch_size} sites on "
        f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        metrics.parameter_table(task.state.params) if not start else f"resumed at step {start:,}",
    ]
    return "\n".join(parts)
