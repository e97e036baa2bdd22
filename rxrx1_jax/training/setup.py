"""What a run works on, made from its settings and the dataset: network, steps, state, batches."""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from rxrx1_jax.config import check, load, load_all
from rxrx1_jax.data import input_pipeline, records
from rxrx1_jax.data import splits as splits_lib
from rxrx1_jax.data.images import Vocabulary
from rxrx1_jax.data.info import Info
from rxrx1_jax.model.networks import NetworkSpec
from rxrx1_jax.training import optimizers, parallel, progress, run_dir, steps


class Task(NamedTuple):
    """What a run works on, all of it determined by its settings and the dataset."""

    records: records.Records
    split: splits_lib.Split
    spec: steps.StepSpec
    steps: parallel.ParallelSteps
    state: steps.TrainState  # initial; on the devices
    total_steps: int
    steps_per_epoch: float


def prepare(config: ConfigDict) -> Task:
    """Checks the settings against each other and the data, and builds everything a run needs."""
    check(config, jax.device_count())
    dataset = records.Records(records.find_dataset(config.data.dir, config.data.name))
    size = dataset.image_shape[1]
    if config.data.crop > size:
        raise run_dir.RunError(
            f"data.crop={config.data.crop}: expected at most {size}, the image size"
        )
    split = splits_lib.make_split(
        dataset.sites, config.data.protocol, fold=config.data.fold, seed=config.data.seed,
        cell_type=config.data.cell_type,
    )  # fmt: skip
    if len(split.train) < config.optim.batch_size:
        raise run_dir.RunError(
            f"optim.batch_size={config.optim.batch_size}: the split has only {len(split.train)} "
            "training sites; choose a smaller one"
        )
    steps_per_epoch = len(split.train) / config.optim.batch_size
    total_steps = max(1, round(steps_per_epoch * config.optim.epochs))

    axis = parallel.AXIS if config.train.parallelism == "pmap" and config.train.bn_sync else None
    sampler = load("data.sampler", config.data.sampler)
    try:
        sampler(dataset.sites[split.train], config.optim.batch_size, config.train.seed)
    except ValueError as error:
        raise run_dir.RunError(f"data.sampler={config.data.sampler!r}: {error}") from error
    try:
        tx, schedule = optimizers.create_optimizer(config.optim, total_steps)
    except ValueError as error:
        raise run_dir.RunError(str(error)) from error
    spec = steps.StepSpec(
        model=create_model(config, axis), tx=tx, schedule=schedule,
        vocabulary=Vocabulary.of(dataset.sites, split.classes), total_steps=total_steps,
        loss=load("optim.loss", config.optim.loss),
        label_smoothing=config.optim.label_smoothing, ema_decay=config.optim.ema_decay,
        accumulation=config.optim.accumulation, seed=config.train.seed,
    )  # fmt: skip
    on_devices = parallel.parallelise(
        config.train.parallelism, partial(steps.train_step, spec), partial(steps.eval_step, spec),
        partial(steps.embed_step, spec),
    )  # fmt: skip
    side = config.data.crop or size
    shape = (side, side, dataset.image_shape[0])
    key = jax.random.key(config.train.seed)
    _try_plug_ins(config, spec, shape)
    state = jax.device_put(steps.create_state(spec, key, shape), on_devices.state_sharding)
    return Task(dataset, split, spec, on_devices, state, total_steps, steps_per_epoch)


def _try_plug_ins(config: ConfigDict, spec: steps.StepSpec, shape: tuple) -> None:
    """Raises RunError if network, optimizer, augmentation, head and loss do not fit each other;
    computes nothing."""
    chosen = {
        "data.augmentation": (config.data.augmentation, ""),
        "model.head": (config.model.head, "linear"),
        "optim.loss": (config.optim.loss, "cross_entropy"),
    }
    other = {field: value for field, (value, default) in chosen.items() if value != default}
    free = {"model.name": config.model.name, "optim.name": config.optim.name,
            "optim.schedule": config.optim.schedule}  # fmt: skip
    other |= {field: value for field, value in free.items() if "." in value.partition("(")[0]}
    if not other or config.train.parallelism == "pmap":  # of pmap the mapped axis would be missing
        return
    rows = config.optim.batch_size

    def trial(keys: jax.Array, batch: dict[str, jax.Array]) -> Any:
        for augment in load_all("data.augmentation", config.data.augmentation):
            batch = augment(keys, batch, Info(spec.vocabulary, True, jnp.zeros(())))
        return steps.train_step(spec, steps.initial_state(spec, jax.random.key(0), shape), batch)

    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
    batch = {name: jax.ShapeDtypeStruct((rows,), jnp.int32) for name in input_pipeline.ON_DEVICE}
    batch["mask"] = jax.ShapeDtypeStruct((rows,), jnp.bool_)
    batch["image"] = jax.ShapeDtypeStruct((rows, *shape), jnp.dtype(config.model.dtype))
    try:
        jax.eval_shape(trial, keys, batch)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        named = ", ".join(f"{field}={value!r}" for field, value in other.items())
        raise run_dir.RunError(f"{named}: {str(error).splitlines()[0]}") from error


def create_model(config: ConfigDict, bn_axis_name: str | None = None) -> nn.Module:
    """The network of the settings."""
    head = load("model.head", config.model.head)
    spec = NetworkSpec(head, config.model.width, jnp.dtype(config.model.dtype), bn_axis_name)
    make = load("model.name", config.model.name)
    try:
        return make(spec)
    except Exception as error:  # it is anybody's
        raise run_dir.RunError(f"model.name={config.model.name!r}: {error}") from error


def train_batches(config: ConfigDict, task: Task, start: int) -> Iterator[dict[str, jax.Array]]:
    return input_pipeline.train_batches(
        task.records, task.split, batch_size=config.optim.batch_size, seed=config.train.seed,
        normalisation=config.data.normalisation, start_step=start, end_step=task.total_steps,
        augment=config.data.augment, crop=config.data.crop,
        augmentations=load_all("data.augmentation", config.data.augmentation),
        sampler=load("data.sampler", config.data.sampler),
        vocabulary=task.spec.vocabulary, shuffled_labels=config.data.shuffled_labels,
        dtype=jnp.dtype(config.model.dtype), sharding=task.steps.batch_sharding,
        threads=config.data.threads,
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


def summary(config: ConfigDict, task: Task, start: int) -> str:
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
        progress.parameter_table(task.state.params) if not start else f"resumed at step {start:,}",
    ]
    return "\n".join(parts)
