"""Training and evaluation of one run, from its settings to its results, in a fixed order."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pyarrow as pa
from ml_collections import ConfigDict

from rxrx1_jax.data import splits as splits_lib
from rxrx1_jax.training import (
    checkpoint,
    diverged,
    evaluate,
    parallel,
    predictions,
    preemption,
    processes,
    progress,
    run_dir,
    steps,
)
from rxrx1_jax.training.setup import Task, eval_batches, prepare, summary, train_batches


def train_and_evaluate(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Trains from the newest checkpoint in `workdir` to the end, evaluates, returns the results.

    A run that is complete is evaluated only when its results are missing.

    Raises:
      Preempted: the run was told to end and has saved where it stood.
      Diverged: the loss or the gradient of a step was not finite; diverged.json says more.
    """
    workdir = Path(workdir)
    run_dir.check_workdir(workdir)
    with preemption.Notice() as notice:
        task = prepare(config)
        _open(workdir, config, task)
        with run_dir.hold(workdir):
            return _train_and_evaluate(config, workdir, task, notice)


def _train_and_evaluate(
    config: ConfigDict, workdir: Path, task: Task, notice: preemption.Notice
) -> dict[str, Any]:
    if run_dir.is_complete(workdir):
        print(f"{workdir}: complete, nothing to do (--mode=evaluate evaluates it again)")
        return run_dir.read_results(workdir)
    checkpoints = checkpoint.manager(workdir, config.train.keep)
    state, recent = checkpoint.restore(checkpoints, task.state, task.split.classes)
    start = int(state.step)
    if jax.process_index() == 0:
        splits_lib.write_split(workdir / "split.csv", task.records.sites, task.split)
    log = progress.Log(
        workdir, step=start, steps=task.total_steps, steps_per_epoch=task.steps_per_epoch,
        batch_size=config.optim.batch_size, every=config.train.log_every, recent=recent,
    )  # fmt: skip
    with checkpoints, log:
        log.say(summary(config, task, start))
        try:
            state = fit(config, task, state, log, checkpoints, notice)
        except progress.Diverged as error:
            batches = train_batches(config, task, error.step - 1)
            raise diverged.diagnose(error, batches, task.records, workdir) from error
        evaluated = evaluate_sets(config, task, state, notice=notice)
        log.evaluation(task.total_steps, _curves(evaluated))
        for name in task.split.other_sets:
            accuracy = evaluated[name][1]["accuracy"]["site"]["all"]
            log.say(f"{name}: accuracy by site {accuracy:.4f}")
    return _write_results(config, workdir, task, state, evaluated)


def fit(
    config: ConfigDict, task: Task, state: steps.TrainState, log: progress.Log,
    checkpoints: ocp.CheckpointManager, notice: preemption.Notice,
) -> steps.TrainState:  # fmt: skip
    """Trains `state` (donated) from its step to the last, with evaluations and checkpoints.

    The loop only draws batches and dispatches: the log waits for the device, checkpoints are
    written in the background. When it returns, every step was checked and the last one is saved.
    Raises Preempted, with the last step saved, if the run was told to end.
    """
    start, total, classes = int(state.step), task.total_steps, task.split.classes
    eval_steps = _milestones(config.train.eval_every, task) - {total}
    save_steps = _milestones(config.train.checkpoint_every, task) | {total}
    told = notice.given(start)
    if start in eval_steps and not told:  # killed between its checkpoint and its evaluation
        told = not _evaluate_midway(config, task, state, log, notice)
    if told:
        raise preemption.Preempted(start)
    batches = train_batches(config, task, start)
    # 1. next batch  2. update  3. metrics  4. checkpoint  5. evaluation  6. told to end?
    for step in range(start + 1, total + 1):
        asked = time.monotonic()
        batch = next(batches)
        got = time.monotonic()
        if step == start + 1:
            parallel.compile_ahead(task.steps.train_step, state, batch)
        state, step_metrics = task.steps.train_step(state, batch)
        diverged.log_step(log, step, step_metrics, asked, got)
        told = notice.given(step)
        if step in save_steps:
            log.flush()
            score = _score(config, task, state, log, notice, step in eval_steps | {total})
            checkpoint.save(checkpoints, step, state, classes, log.recent(), score)
        if step in eval_steps and not told:
            log.flush()
            told = not _evaluate_midway(config, task, state, log, notice)
        if told and step < total:
            log.flush()
            checkpoint.save(checkpoints, step, state, classes, log.recent())
            checkpoint.wait(checkpoints)
            raise preemption.Preempted(step)
    checkpoint.wait(checkpoints)
    return state


def _score(
    config: ConfigDict, task: Task, state: steps.TrainState, log: progress.Log,
    notice: preemption.Notice, evaluated: bool,
) -> float | None:  # fmt: skip
    """How good a checkpoint is, higher is better: without the test set, which must not choose.

    Accuracy on the split's set `val` where it has one, in the steps that are `evaluated`; else
    minus the training loss of the last steps. None: not known.
    """
    if "val" not in task.split.other_sets:
        return -log.recent_loss()
    if not evaluated:
        return None
    try:
        found = evaluate_sets(config, task, state, ("val",), notice)
    except preemption.Preempted:
        return None
    return found["val"][1]["accuracy"]["site"]["all"]


def _evaluate_midway(
    config: ConfigDict, task: Task, state: steps.TrainState, log: progress.Log,
    notice: preemption.Notice,
) -> bool:  # fmt: skip
    """Logs what the sets of the learning curves score; False if the run was told to end instead."""
    names = [name for name in ("test", "val") if name in ("test", *task.split.other_sets)]
    try:
        evaluated = evaluate_sets(config, task, state, names, notice)
    except preemption.Preempted:
        return False
    log.evaluation(int(state.step), _curves(evaluated))
    return True


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
        run_dir.write_json(workdir / "results.json", results)
    return results


def _open(workdir: Path, config: ConfigDict, task: Task) -> None:
    sites, split = task.records.sites, task.split
    data = run_dir.describe_data(task.records.path.name, sites, split, split.classes)
    run_dir.open_run(workdir, config, data)
    processes.check_shared(workdir / "config.json")


def restored(config: ConfigDict, workdir: Path) -> tuple[Task, steps.TrainState]:
    """A run's task, and its state of the newest checkpoint; RunError where there is none."""
    if not (workdir / "config.json").exists():
        raise run_dir.RunError(
            f"{workdir}: no run here (no config.json); train with this --workdir"
        )
    task = prepare(config)
    _open(workdir, config, task)
    with checkpoint.manager(workdir, config.train.keep) as checkpoints:
        state, _ = checkpoint.restore(checkpoints, task.state, task.split.classes)
    if not int(state.step):
        raise run_dir.RunError(f"{workdir}: the run has no checkpoint yet; train with --mode=train")
    return task, state


def evaluate_sites(
    config: ConfigDict, task: Task, state: steps.TrainState, rows: np.ndarray,
    notice: preemption.Notice | None = None,
) -> tuple[pa.Table, dict[str, Any]]:  # fmt: skip
    """`evaluate.evaluate` of the records `rows`. Raises Preempted if `notice` comes meanwhile."""
    batches = eval_batches(config, task, rows)
    if notice is not None:
        batches = notice.until_given(batches, int(state.step))
    return evaluate.evaluate(
        task.steps.eval_step, state, batches, task.records.sites, rows, task.split
    )


def evaluate_sets(
    config: ConfigDict, task: Task, state: steps.TrainState,
    names: Sequence[str] | None = None, notice: preemption.Notice | None = None,
) -> dict[str, tuple[pa.Table, dict[str, Any]]]:  # fmt: skip
    """`evaluate_sites` of the test set, "test", and of the split's other sets, by name.

    names: of the sets; None: all.
    """
    sets = {"test": task.split.test, **task.split.other_sets}
    return {
        name: evaluate_sites(config, task, state, sets[name], notice)
        for name in (sets if names is None else names)
    }


def _milestones(every: int, task: Task) -> set[int]:
    """The steps that end each `every`-th epoch; none for 0."""
    if not every:
        return set()
    epochs = range(every, int(task.total_steps / task.steps_per_epoch + 0.5) + 1, every)
    return {min(round(epoch * task.steps_per_epoch), task.total_steps) for epoch in epochs}


def _curves(evaluated: dict[str, tuple[pa.Table, dict[str, Any]]]) -> dict[str, float]:
    """What metrics.jsonl holds of an evaluation: of the test set and, where there is one, `val`."""
    curves = {}
    for name in ("test", "val"):
        if name in evaluated:
            result = evaluated[name][1]
            curves[f"{name}_loss"] = result["loss"]
            curves[f"{name}_accuracy"] = result["accuracy"]["site"]["all"]
            curves[f"{name}_accuracy_by_well"] = result["accuracy"]["well"]["all"]
    return curves
