"""The training loop of one run, from its settings to its results, in a fixed order."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from rxrx1_jax.config import FREE, check, flat
from rxrx1_jax.data import splits
from rxrx1_jax.data.images import Images
from rxrx1_jax.training import (
    checkpoint,
    evaluate,
    predictions,
    processes,
    progress,
    run_dir,
)
from rxrx1_jax.training.run import Run
from rxrx1_jax.training.setup import (
    Setup,
    find_images,
    make_order,
    make_split,
    prepare,
    summary,
)
from rxrx1_jax.training.steps import TrainState

# The settings that a run may have other than its parent.
CONTINUED = {
    "train.parent", "optim.epochs", "optim.schedule", "optim.learning_rate", "optim.warmup_epochs",
    *FREE,
}  # fmt: skip


def train_and_evaluate(
    config: ConfigDict, workdir: str | Path, images: Images | None = None
) -> dict[str, Any]:
    """Trains from the newest checkpoint in `workdir` to the end, evaluates, returns the results.

    A run that is complete is evaluated only when its results are missing.

    Args:
      images: in place of the dataset that the settings name.

    Raises:
      Preempted: the run was told to end and has saved where it stood.
      Diverged: the loss or the gradient of a step was not finite; diverged.json says more.
    """
    workdir = Path(workdir)
    run_dir.check_workdir(workdir)
    with processes.Notice() as notice:
        setup = prepare(config, images)
        fingerprint = _describe(setup.images, setup.split, setup.vocabulary.classes)
        parent = _parent(setup, fingerprint) if config.train.parent else None
        run_dir.open_run(workdir, config, fingerprint)
        processes.check_shared(workdir / "config.json")
        with run_dir.hold(workdir):
            return Training(setup, workdir, fingerprint, notice).run(parent)


@dataclass(frozen=True)
class Training:
    """One training in its directory."""

    setup: Setup
    workdir: Path
    fingerprint: dict[str, Any]
    notice: processes.Notice

    def run(self, parent: Path | None) -> dict[str, Any]:
        """parent: a checkpoint to start from."""
        setup, workdir, config = self.setup, self.workdir, self.setup.config
        if run_dir.is_complete(workdir):
            print(f"{workdir}: complete, nothing to do (--mode=evaluate evaluates it again)")
            return run_dir.read_results(workdir)
        checkpoints = checkpoint.manager(workdir, config.train.keep)
        state, recent = self._start(parent)
        start, total = int(state.step), setup.spec.total_steps
        if jax.process_index() == 0:
            splits.write_split(workdir / "split.csv", setup.images.sites, setup.split)
        log = progress.Log(
            workdir, step=start, steps=total, steps_per_epoch=setup.steps_per_epoch,
            batch_size=config.optim.batch_size, every=config.train.log_every, recent=recent,
        )  # fmt: skip
        with checkpoints, log:
            log.say(summary(setup, start))
            try:
                state = self.fit(state, log, checkpoints)
            except progress.Diverged as error:
                batch = setup.train_batch(error.step - 1)
                ids = setup.images.sites["site_id"]
                raise progress.diagnose(error, batch, ids, workdir) from error
            evaluated = evaluate.evaluate_sets(setup, state, notice=self.notice)
            log.evaluation(total, evaluate.curves(evaluated))
            for name, (_, result) in evaluated.items():
                if name != "test":
                    log.say(f"{name}: accuracy by site {result['accuracy']['site']['all']:.4f}")
        return evaluate.write_results(setup, workdir, state, total, evaluated)

    def _start(self, parent: Path | None) -> tuple[TrainState, list[dict[str, float]]]:
        """The state to train from, and what the log knew there."""
        path = checkpoint.find(self.workdir) or parent
        if path is None:
            return self.setup.init(), []
        saved = checkpoint.describe(path)
        checkpoint.check_resumable(saved, self.setup.vocabulary)
        return checkpoint.restore(saved, self.setup.abstract_state, resume=True), saved.recent

    def fit(
        self, state: TrainState, log: progress.Log, checkpoints: ocp.CheckpointManager
    ) -> TrainState:
        """Trains `state` (donated) from its step to the last, with evaluations and checkpoints.

        The loop only draws batches and dispatches: the log waits for the device, checkpoints are
        written in the background. When it returns, every step was checked and the last one is
        saved. Raises Preempted, with the last step saved, if the run was told to end.
        """
        setup, config, given = self.setup, self.setup.config, self.notice.given
        start, total = int(state.step), setup.spec.total_steps
        eval_steps = _milestones(config.train.eval_every, setup) - {total}
        save_steps = _milestones(config.train.checkpoint_every, setup) | {total}
        told = given()
        if start in eval_steps and not told:  # killed between its checkpoint and its evaluation
            told = not self._evaluate_midway(state, log)
        if told:
            raise processes.Preempted(start)
        store, draws = setup.train_store(), setup.train_draws(start)
        # 1. next batch  2. update  3. metrics  4. checkpoint  5. evaluation  6. told to end?
        for step in range(start + 1, total + 1):
            asked = time.monotonic()
            draw = next(draws)
            got = time.monotonic()
            state, metrics = setup.train_step(state, store, draw)
            log.train(step, metrics, asked, got)
            told = given()
            if step in save_steps:
                log.flush()
                score = self._score(state, log, step in eval_steps | {total})
                self._save(checkpoints, state, log, score)
            if step in eval_steps and not told:
                log.flush()
                told = not self._evaluate_midway(state, log)
            if told and step < total:
                log.flush()
                self._save(checkpoints, state, log, None)
                checkpoint.wait(checkpoints)
                raise processes.Preempted(step)
        checkpoint.wait(checkpoints)
        return state

    def _save(
        self, checkpoints: ocp.CheckpointManager, state: TrainState, log: progress.Log,
        score: float | None,
    ) -> None:  # fmt: skip
        vocabulary, recent = self.setup.vocabulary, log.recent()
        checkpoint.save(checkpoints, state, vocabulary, self.fingerprint, recent, score)

    def _score(self, state: TrainState, log: progress.Log, evaluated: bool) -> float | None:
        """How good a checkpoint is, higher is better: without the test set, which must not choose.

        Accuracy on the split's set `val` where it has one, in the steps that are `evaluated`; else
        minus the training loss of the last steps. None: not known.
        """
        if not len(self.setup.split.val):
            return -log.recent_loss()
        if not evaluated:
            return None
        try:
            found = evaluate.evaluate_sets(self.setup, state, ("val",), self.notice)
        except processes.Preempted:
            return None
        return found["val"][1]["accuracy"]["site"]["all"]

    def _evaluate_midway(self, state: TrainState, log: progress.Log) -> bool:
        """Logs what the sets of the learning curves score; False if told to end instead."""
        try:
            evaluated = evaluate.evaluate_sets(self.setup, state, ("test", "val"), self.notice)
        except processes.Preempted:
            return False
        log.evaluation(int(state.step), evaluate.curves(evaluated))
        return True


def evaluate_run(
    config: ConfigDict, workdir: str | Path, images: Images | None = None
) -> dict[str, Any]:
    """Evaluates the newest checkpoint of a run again: predictions.parquet and results.json."""
    run, setup = open_trained(config, Path(workdir), images)
    _, total = make_order(config, setup.images, setup.split)
    state = run.state(setup)
    evaluated = evaluate.evaluate_sets(setup, state)
    return evaluate.write_results(setup, run.path, state, total, evaluated)


def predict_run(config: ConfigDict, workdir: str | Path, images: Images | None = None) -> Path:
    """Predicts every treatment site of the dataset, labelled or not, trained on or not.

    Where controls are classes of the split, their sites too. Returns the path of the Parquet file;
    its `role` column is that of `splits.site_roles`.
    """
    run, setup = open_trained(config, Path(workdir), images)
    sites = setup.images.sites
    is_class = np.isin(sites["sirna_id"], setup.vocabulary.classes)
    rows = np.flatnonzero((sites["well_type"] == "treatment") | is_class)
    table, _ = evaluate.evaluate_sites(setup, run.state(setup), rows)
    loss = table["loss"].to_numpy().copy()
    loss[table["label"].to_numpy() < 0] = np.nan  # unlabelled: there is no right answer
    table = table.set_column(table.column_names.index("loss"), "loss", [loss])
    role = splits.site_roles(setup.split, len(sites))
    path = run.path / "predictions_all.parquet"
    if jax.process_index() == 0:
        predictions.write_predictions(path, table.append_column("role", [role[rows].tolist()]))
    return path


def open_trained(
    config: ConfigDict, workdir: Path, images: Images | None
) -> tuple[Run, Setup]:
    """The run in `workdir`, read with these settings, which may differ in FREE ones."""
    run = Run.open(workdir)
    check(config, jax.device_count())
    images = find_images(config) if images is None else images
    split = make_split(config, images)
    classes = splits.classes_of(images.sites, config.data.protocol)
    run_dir.open_run(workdir, config, _describe(images, split, classes))
    run = replace(run, config=config)
    return run, run.set_up(images)


def _parent(setup: Setup, fingerprint: Mapping[str, Any]) -> Path:
    """The checkpoint that the run starts from. Raises RunError unless it can resume there."""
    config = setup.config
    parent = Run.open(config.train.parent)
    where, own = f"train.parent={config.train.parent}", flat(config)
    old = flat(parent.config)
    for name in ("data", "split", "order"):  # of version 0.2 they are missing; it cannot be resumed
        old[name], own[name] = parent.fingerprint.get(name), fingerprint[name]
    for field in sorted(own.keys() - CONTINUED):
        if own[field] != old[field]:
            raise run_dir.RunError(
                f"{where}: it has {field}={old[field]!r}, this run {own[field]!r}; expected the"
                " same of all but epochs, schedule, learning rate and warm-up"
            )
    path = parent.checkpoint()
    if int(path.name) >= setup.spec.total_steps:
        raise run_dir.RunError(
            f"{where}: it is at step {path.name}, and optim.epochs={config.optim.epochs} ends at"
            f" {setup.spec.total_steps}; expected more epochs"
        )
    return path


def _describe(images: Images, split: splits.Split, classes: np.ndarray) -> dict[str, Any]:
    return run_dir.describe_data(images.about["version"], images.sites, split, classes)


def _milestones(every: int, setup: Setup) -> set[int]:
    """The steps that end each `every`-th epoch; none for 0."""
    if not every:
        return set()
    per_epoch, total = setup.steps_per_epoch, setup.spec.total_steps
    epochs = range(every, int(total / per_epoch + 0.5) + 1, every)
    return {min(round(epoch * per_epoch), total) for epoch in epochs}
