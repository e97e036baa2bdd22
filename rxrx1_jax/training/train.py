"""The training loop of one run, from its settings to its results, in a fixed order."""

import contextlib
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from rxrx1_jax.config import FREE, complete, flat, user_path
from rxrx1_jax.data import splits
from rxrx1_jax.data.images import METADATA, Images
from rxrx1_jax.data.reading import cores
from rxrx1_jax.training import (
    checkpoint,
    diverged,
    evaluate,
    initial,
    plan,
    processes,
    progress,
    run_dir,
)
from rxrx1_jax.training.calls import room, train_calls
from rxrx1_jax.training.fingerprints import describe_data
from rxrx1_jax.training.loggers import Start
from rxrx1_jax.training.origin import check_origin, check_resumable
from rxrx1_jax.training.picture import draw_sites
from rxrx1_jax.training.profile import Trace
from rxrx1_jax.training.run import Run
from rxrx1_jax.training.setup import Setup, prepare
from rxrx1_jax.training.steps import TrainState

# The settings that a run may have other than its parent.
CONTINUED = {
    "train.parent", "train.max_steps", "optim.epochs", "optim.schedule", "optim.learning_rate",
    "optim.warmup_epochs", "dataset.version", *FREE,
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
    workdir, config = user_path(workdir), complete(config)
    run_dir.check_workdir(workdir)
    with processes.Notice() as notice:
        setup = set_up(config, workdir, images)
        plan.check(setup)
        fingerprint = describe_data(setup.images, setup.split, setup.vocabulary.classes)
        fingerprint |= setup.taught.fingerprint(setup.split)
        begin = initial.find(setup, fingerprint) if config.model.init else None
        fingerprint |= initial.fingerprint(config.model.init)
        parent = _parent(setup, fingerprint) if config.train.parent else None
        with run_dir.hold(workdir):
            # What changes the last digits; of cores, how many share a sum.
            how = {"cores": cores(), "cache": setup.stream.cache, "looped": room(setup) > 1}
            run_dir.open_run(workdir, setup.config, fingerprint, how)
            processes.check_shared(workdir / "config.json")
            try:
                return Training(setup, workdir, fingerprint, notice, begin).run(parent)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                raise run_dir.RunError(plan.ran_out(setup)) from error


def set_up(config: ConfigDict, workdir: Path, images: Images | None = None) -> Setup:
    """`setup.prepare`; what the settings leave open is as in the run, or in its parent."""
    for run in map(Path, (workdir, config.train.parent or workdir)):
        if config.model.dtype == "auto" and (run / "config.json").exists():
            config = config.copy_and_resolve_references()
            config.model.dtype = run_dir.read_settings(run).model.dtype
    return prepare(config, images, plan.beside)


@dataclass(frozen=True)
class Training:
    """One training in its directory."""

    setup: Setup
    workdir: Path
    fingerprint: dict[str, Any]
    notice: processes.Notice
    begin: initial.Initial | None = None  # of model.init

    def run(self, parent: Path | None) -> dict[str, Any]:
        """parent: a checkpoint to start from."""
        setup, workdir, config = self.setup, self.workdir, self.setup.config
        if run_dir.is_complete(workdir):
            print(f"{workdir}: complete, nothing to do (--mode=evaluate evaluates it again)")
            return run_dir.read_results(workdir)
        state, recent = self._start(parent)
        start, total = int(state.step), setup.spec.total_steps
        if jax.process_index() == 0:
            splits.write_split(workdir / "split.csv", setup.images.sites, setup.split)
            if not (start and (workdir / "metadata.csv").exists()):
                sites = setup.images.sites
                splits.write_split(workdir / "metadata.csv", sites, setup.split, METADATA)
        about = Start(workdir, flat(config), start, total, partial(draw_sites, setup))
        log = progress.Log(
            about, steps_per_epoch=setup.steps_per_epoch, batch_size=config.optim.batch_size,
            every=config.train.log_every, recent=recent,
            evaluations=_milestones(config.train.eval_every, setup) | {total},
        )  # fmt: skip
        trace = Trace(workdir, log, *config.train.profile)
        with checkpoint.manager(workdir, config.train.keep) as checkpoints, log:
            log.say(_summary(setup, start))
            if self.begin and not start:
                log.say(self.begin.about)
            if start < total:
                log.say("compiling the training step; a large network takes a minute or more")
            try:
                with trace:
                    state, evaluated = self.fit(state, log, checkpoints, trace)
            except diverged.Diverged as error:
                batch = setup.train_batch(error.step - 1)
                ids = setup.images.sites["site_id"]
                raise diverged.diagnose(error, batch, ids, workdir) from error
            scored = setup.split.scored
            evaluated |= self._evaluate(state, scored.keys() - evaluated.keys())
            evaluated = {name: evaluated[name] for name in scored}
            log.evaluation(total, evaluate.curves(evaluated))
            for name, (_, result) in evaluated.items():
                if name != "test":
                    accuracy = 100 * result["accuracy"]["site"]["all"]
                    log.say(f"{name}: accuracy by site {accuracy:.1f} %")
        results = evaluate.write_results(setup, workdir, state, total, evaluated)
        log.say(f"complete, {workdir}/results.json; next: python -m rxrx1_jax.report {workdir}")
        return results

    def _start(self, parent: Path | None) -> tuple[TrainState, list[dict[str, float]]]:
        """The state to train from, and what the log knew there."""
        own = checkpoint.find(self.workdir)
        path = own or parent
        if path is None:
            return self.begin.state(self.setup) if self.begin else self.setup.init(), []
        saved = checkpoint.describe(path)
        if own:
            check_origin(saved, flat(self.setup.config), self.fingerprint)
        check_resumable(saved, self.setup.vocabulary)
        return checkpoint.restore(saved, self.setup.abstract_state, resume=True), saved.recent

    def fit(
        self, state: TrainState, log: progress.Log, checkpoints: ocp.CheckpointManager,
        trace: Trace,
    ) -> tuple[TrainState, evaluate.Evaluated]:  # fmt: skip
        """Trains `state` (donated) from its step to the last, with evaluations and checkpoints.

        The loop only draws batches and dispatches: the log waits for the device, checkpoints are
        written in the background. When it returns, every step was checked and the last one is
        saved; it gives the state and what was evaluated of it to score it. Raises Preempted, with
        the last step saved, if the run was told to end.
        """
        setup, config, given = self.setup, self.setup.config, self.notice.given
        start, total = int(state.step), setup.spec.total_steps
        eval_steps = _milestones(config.train.eval_every, setup) - {total}
        save_steps = _milestones(config.train.checkpoint_every, setup) | {total}
        told, evaluated = given(), evaluate.Evaluated()
        if start in eval_steps and not told:  # killed between its checkpoint and its evaluation
            told = not self._evaluate_midway(state, log, evaluated)
        if told:
            raise processes.Preempted(start)
        store, asked = setup.train_store(), time.monotonic()
        train_step = plan.checked_step(setup)
        cuts = eval_steps | save_steps | trace.cuts
        decided = partial(plan.record, setup, self.workdir)
        # 1. next batches  2. updates  3. metrics  4. checkpoint  5. evaluation  6. told to end?
        for step, draw in train_calls(setup, start, cuts, log, decided):
            with trace.step(step):
                got = time.monotonic()
                state, metrics = train_step(state, store, draw)
                log.train(step, metrics, asked, got)
            told, evaluated = given(), evaluate.Evaluated()
            if step in save_steps:
                log.flush()
                if step in eval_steps | {total}:
                    with contextlib.suppress(processes.Preempted):
                        evaluated = self._evaluate(state, {"val"})
                self._save(checkpoints, state, log, self._score(evaluated, log))
            if step in eval_steps and not told:
                log.flush()
                told = not self._evaluate_midway(state, log, evaluated)
            if told and step < total:
                log.flush()
                self._save(checkpoints, state, log, None)
                checkpoint.wait(checkpoints)
                raise processes.Preempted(step)
            asked = time.monotonic()
        checkpoint.wait(checkpoints)
        return state, evaluated

    def _save(
        self, checkpoints: ocp.CheckpointManager, state: TrainState, log: progress.Log,
        score: float | None,
    ) -> None:  # fmt: skip
        ready, settings = self.setup, flat(self.setup.config)
        total = ready.spec.total_steps
        origin = checkpoint.Origin(ready.vocabulary, self.fingerprint, settings, total)
        checkpoint.save(checkpoints, state, origin, log.recent(), score)

    def _score(self, evaluated: evaluate.Evaluated, log: progress.Log) -> float | None:
        """How good a checkpoint is, higher is better: without the test set, which must not choose.

        Accuracy on the split's set `val` where it has one and it was evaluated; else minus the
        training loss of the last steps. None: not known.
        """
        if not len(self.setup.split.val):
            return -log.recent_loss()
        return evaluated["val"][1]["accuracy"]["site"]["all"] if evaluated else None

    def _evaluate(self, state: TrainState, names: Collection[str]) -> evaluate.Evaluated:
        return evaluate.evaluate_sets(self.setup, state, names, self.notice)

    def _evaluate_midway(
        self, state: TrainState, log: progress.Log, known: evaluate.Evaluated
    ) -> bool:
        """Logs what the sets of the learning curves score; False if told to end instead.

        known: what was evaluated already.
        """
        try:
            evaluated = known | self._evaluate(state, {"test", "val"} - known.keys())
        except processes.Preempted:
            return False
        log.evaluation(int(state.step), evaluate.curves(evaluated))
        return True


def _parent(setup: Setup, fingerprint: Mapping[str, Any]) -> Path:
    """The checkpoint that the run starts from. Raises RunError unless it can resume there."""
    config = setup.config
    parent = Run.open(config.train.parent)
    where, path = f"train.parent={config.train.parent}", parent.checkpoint()
    old, own = (
        flat({**settings, "dataset": data})
        for settings, data in ((parent.config, parent.fingerprint), (config, fingerprint))
    )
    if differs := run_dir.difference(old, own, CONTINUED):
        raise run_dir.RunError(
            f"{where}: it has {differs}; expected the same of all but epochs, schedule, learning"
            " rate and warm-up"
        )
    check_resumable(parent.newest, setup.vocabulary)
    if int(path.name) >= setup.spec.total_steps:
        raise run_dir.RunError(
            f"{where}: it is at step {path.name}, and optim.epochs={config.optim.epochs} ends at"
            f" {setup.spec.total_steps}; expected more epochs"
        )
    return path


def _summary(setup: Setup, start: int) -> str:
    """The first lines of a run."""
    config, sites, split = setup.config, setup.images.sites, setup.split
    wells = [len(np.unique(sites["well_id"][rows])) for rows in (split.train, split.test)]
    others = "".join(f", {role} {len(rows):,} sites" for role, rows in split.scored.items()
                     if role != "test")  # fmt: skip
    unlabelled = int((sites["sirna_id"] < 0).sum())
    where = getattr(setup.images, "path", setup.images.about["name"])
    parameters = sum(leaf.size for leaf in jax.tree.leaves(setup.abstract_state.params))
    parts = [
        f"{where}: {config.data.protocol} split, fold {config.data.fold}, cell type "
        f"{config.data.cell_type}, normalisation {config.data.normalisation}",
        f"train {len(split.train):,} sites of {wells[0]:,} wells, test {len(split.test):,} sites "
        f"of {wells[1]:,} wells{others}{setup.taught.about(split)}, "
        f"{len(setup.vocabulary.classes):,} siRNA classes"
        + (f"; {unlabelled:,} sites without a label are left out" if unlabelled else ""),
        f"{config.model.name} of {parameters:,} parameters, {setup.spec.total_steps:,} steps of"
        f" {config.optim.batch_size} sites on {jax.device_count()} x"
        f" {jax.devices()[0].device_kind}, {config.model.dtype}, data.cache={setup.stream.cache}",
        *([f"resumed at step {start:,}"] if start else []),
    ]
    return "\n".join(parts)


def _milestones(every: int, setup: Setup) -> set[int]:
    """The steps that end each `every`-th epoch; none for 0."""
    if not every:
        return set()
    per_epoch, total = setup.steps_per_epoch, setup.spec.total_steps
    epochs = range(every, int(total / per_epoch + 0.5) + 1, every)
    return {min(round(epoch * per_epoch), total) for epoch in epochs}
