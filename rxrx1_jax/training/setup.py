"""What a run works on, made from its settings and the data: input, network, steps, state."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from rxrx1_jax import config as config_lib
from rxrx1_jax.data import cache, records, splits
from rxrx1_jax.data.images import DatasetError, Images, Sites, Vocabulary
from rxrx1_jax.data.orders import Order
from rxrx1_jax.data.reading import one_pass
from rxrx1_jax.data.stream import Augmentation, Batch, Draw, Host, Store, Stream
from rxrx1_jax.data.taught import Taught, taught
from rxrx1_jax.model import heads
from rxrx1_jax.model.networks import NetworkSpec
from rxrx1_jax.model.resnet import on_cpu
from rxrx1_jax.training import optimizers, parallel, run_dir, steps

SpecStep = Callable[[steps.StepSpec, steps.TrainState, Batch], Mapping[str, jax.Array]]
Beside = Callable[["Setup"], int | None]  # bytes of a device that training needs beside images
Evaluator = Callable[[steps.TrainState, Store, Draw], Mapping[str, jax.Array]]


@dataclass(frozen=True, eq=False)
class Setup:
    """All of it is determined by the settings and the data. Nothing in it is a state.

    order: of the training batches; None where nothing is to be trained, then `spec` has neither
      optimizer nor learning rate.
    """

    config: ConfigDict
    stream: Stream
    spec: steps.StepSpec
    devices: parallel.Devices
    order: Order | None = None
    _evaluators: dict[SpecStep, Evaluator] = field(default_factory=dict)

    @property
    def images(self) -> Images:
        return self.stream.images

    @property
    def split(self) -> splits.Split:
        return self.stream.split

    @property
    def vocabulary(self) -> Vocabulary:
        return self.stream.vocabulary

    @property
    def steps_per_epoch(self) -> float:
        assert self.order is not None
        return self.order.per_epoch

    @cached_property
    def abstract_state(self) -> steps.TrainState:
        """Shapes, types and places of the state, which takes no memory."""
        shapes = jax.eval_shape(lambda: self._create(steps.initial_state))
        place = partial(jax.ShapeDtypeStruct, sharding=self.devices.copied)
        return jax.tree.map(lambda x: place(x.shape, x.dtype), shapes)

    def init(self) -> steps.TrainState:
        """The state before the first update, on the devices."""
        # Copying a state that no memory was left for would wait for it for ever.
        state = jax.block_until_ready(self._create(steps.create_state))
        return jax.device_put(state, self.devices.copied)

    def _create(self, create: Callable[..., steps.TrainState]) -> steps.TrainState:
        channels, *sides = self.images.image_shape
        height, width = (self.config.data.crop or side for side in sides)
        key = jax.random.key(self.config.train.seed)
        return create(self.spec, key, (height, width, channels))

    @cached_property
    def train_step(self) -> Callable[..., tuple[steps.TrainState, jax.Array]]:
        """(state, store, draw) -> (state, metrics); the state is donated."""
        return self.devices.trainer(self._given, self.stream)

    def _given(self, numbers: Mapping[str, jax.Array]) -> steps.StepSpec:
        """The spec of a program whose arguments they are: all runs that differ in them share it."""
        optim = self.config.optim
        own: dict[str, Any] = {name: numbers[name] for name in steps.NUMBERS}
        tx, schedule = optimizers.create_optimizer(optim, self.spec.total_steps, numbers)
        return replace(self.spec, tx=tx, schedule=schedule, **own)

    def evaluator(self, step: SpecStep) -> Evaluator:
        """A step of `training.steps`, or one like it, on all devices; compiled once."""
        if step not in self._evaluators:
            ours = partial(step, self.spec)
            self._evaluators[step] = self.devices.evaluator(ours, self.stream)
        return self._evaluators[step]

    @cached_property
    def taught(self) -> Taught:
        return taught(self.config.data, self.images.sites, self.split)

    @cached_property
    def train_rows(self) -> np.ndarray:
        return splits.train_rows(self.taught.sites, self.taught.split)

    def train_store(self) -> Store:
        seed = self.config.train.seed if self.config.data.shuffled_labels else None
        store = self.stream.store(self.train_rows, self.taught.labels(self.train_rows, seed))
        numbers = self.stream.host.put(self._numbers)
        return store._replace(numbers=store.numbers | numbers)

    @property
    def _numbers(self) -> dict[str, np.float32]:
        optim = self.config.optim
        own = optimizers.numbers_of(optim, self.spec.total_steps)
        return own | {"label_smoothing": np.float32(optim.label_smoothing)}

    def train_shapes(self, k: int = 1) -> tuple[Store, Draw]:
        """What the training step takes beside the state, as shapes."""
        size = self.config.optim.batch_size
        store, draw = self.stream.shapes(len(self.train_rows), size, k)
        numbers = dict.fromkeys(self._numbers, jax.ShapeDtypeStruct((), jnp.float32))
        return store._replace(numbers=store.numbers | numbers), draw

    def train_draws(
        self, start: int, stop: int | None = None, k: int = 1, cuts: Iterable[int] = ()
    ) -> Iterator[Draw]:
        """The training batches from step `start` on, as `Stream.draws` gives them."""
        assert self.order is not None
        stop = stop or self.spec.total_steps
        return self.stream.draws(self.order, self.train_rows, start, stop, k, cuts)

    def batches(self, rows: np.ndarray, batch_size: int = 0) -> Iterator[Batch]:
        """Evaluation batches of `rows`, each row once, in order and padded, on the devices.

        batch_size: default eval.batch_size.
        """
        store, draws = self.evaluation_draws(rows, batch_size)
        make = self._maker(False)
        return (make(store, draw) for draw in draws)

    def train_batch(self, step: int) -> Batch:
        """The batch of one step of the training (from 0), made again, on the devices."""
        draw = next(self.train_draws(step))
        return self._maker(True, step / self.spec.total_steps)(self.train_store(), draw)

    def _maker(self, train: bool, progress: float = 1.0) -> Callable[[Store, Draw], Batch]:
        make = partial(self.stream.batch, i=0, train=train, progress=jnp.float32(progress))
        return jax.jit(make, out_shardings=self.devices.by_row)

    def evaluation_draws(
        self, rows: np.ndarray, batch_size: int = 0
    ) -> tuple[Store, Iterator[Draw]]:
        """What the evaluation of `rows` (any order, each may come twice) works on."""
        stored = np.unique(rows)
        size = batch_size or self.config.eval.batch_size
        order, count = one_pass(rows, size, self.stream.host)
        store = self.stream.store(stored)
        return store, self.stream.draws(order, stored, 0, count)


def prepare(
    config: ConfigDict, images: Images | None = None, beside: Beside = lambda _: None
) -> Setup:
    """Checks the settings against each other and the data, and sets up a training.

    images: in place of the dataset that the settings name.
    """
    config = config.copy_and_resolve_references()
    if config.model.dtype == "auto":
        config.model.dtype = "float32" if on_cpu() else "bfloat16"
    config_lib.check(config, jax.device_count())
    images = find_images(config) if images is None else images
    split = splits.configured(images.sites, config.data)
    given = taught(config.data, images.sites, split)
    if (found := len(given.split.train)) < (size := config.optim.batch_size):
        raise run_dir.RunError(
            f"optim.batch_size={size}: the split has only {found} training sites; choose a smaller"
            " one"
        )
    order, total_steps = make_order(config, given.sites, given.split)
    try:
        tx, schedule = optimizers.create_optimizer(config.optim, total_steps)
    except ValueError as error:
        raise run_dir.RunError(str(error)) from error
    vocabulary = Vocabulary.of(images.sites, given.classes)
    stream = make_stream(config, images, split, vocabulary)
    axis = parallel.AXIS if config.train.parallelism == "pmap" and config.train.bn_sync else None
    spec = steps.StepSpec(
        model=create_model(config, axis), tx=tx, schedule=schedule, vocabulary=vocabulary,
        total_steps=total_steps, loss=config_lib.load("optim.loss", config.optim.loss),
        label_smoothing=config.optim.label_smoothing, ema_decay=config.optim.ema_decay,
        accumulation=config.optim.accumulation, seed=config.train.seed,
    )  # fmt: skip
    devices = parallel.Devices(config.train.parallelism, config.train.deterministic)
    setup = Setup(config, stream, spec, devices, order)
    kept = np.unique(np.concatenate([setup.train_rows, *split.scored.values()]))
    where = cache.choose(config.data.cache, images, len(kept), beside(setup))
    setup = replace(setup, stream=replace(stream, cache=where, kept=kept))
    _try_plug_ins(setup)
    return setup


def for_evaluation(
    config: ConfigDict, images: Images, split: splits.Split, vocabulary: Vocabulary
) -> Setup:
    """The set-up for a network that was trained with these settings."""
    spec = steps.StepSpec(
        model=create_model(config), tx=optax.identity(), schedule=lambda step: jnp.zeros(()),
        vocabulary=vocabulary, total_steps=1, ema_decay=config.optim.ema_decay,
    )  # fmt: skip
    stream = make_stream(config, images, split, vocabulary)
    if (where := config.data.cache) != "auto":  # images are read once, as a rule
        stream = replace(stream, cache=cache.choose(where, images, len(images)))
    devices = parallel.Devices(config.train.parallelism, config.train.deterministic)
    return Setup(config, stream, spec, devices)


def make_stream(
    config: ConfigDict, images: Images, split: splits.Split, vocabulary: Vocabulary
) -> Stream:
    """How the settings turn sites into input, none kept. Raises RunError: not these images."""
    _, height, width = images.image_shape
    if config.eval.orientations and height != width and not config.data.crop:
        raise run_dir.RunError(
            f"eval.orientations=True of {height}x{width} images: orientations need a square; crop"
            " (data.crop), or leave it out"
        )
    augment = Augmentation(
        config.train.seed, config.data.augment, config.data.crop,
        tuple(config_lib.load_all("data.augmentation", config.data.augmentation)),
    )  # fmt: skip
    normalise = config_lib.load("data.normalisation", config.data.normalisation)
    host = Host(config.data.threads, mesh=parallel.Devices().mesh)
    dtype = jnp.dtype(config.model.dtype)
    try:
        return Stream(images, split, vocabulary, normalise, augment, dtype, host)
    except ValueError as error:
        raise run_dir.RunError(f"data.{error}") from error


def create_model(
    config: ConfigDict, bn_axis_name: str | None = None, head: heads.Head | None = None
) -> nn.Module:
    """The network of the settings; head: in place of theirs."""
    model, head = config.model, head or config_lib.load("model.head", config.model.head)
    network = config_lib.load("model.name", model.name)
    try:
        spec = NetworkSpec(head, model.width, jnp.dtype(model.dtype), bn_axis_name, model.remat)
        return network(spec)
    except Exception as error:  # it is anybody's
        what = config_lib.described(error)
        raise run_dir.RunError(f"model.name={config.model.name!r}: {what}") from error


def find_images(config: ConfigDict) -> Images:
    """The images that the settings name. Raises DatasetError, ConfigError."""
    return records.open_images(config.data.dir, config.data.name)


def make_order(config: ConfigDict, sites: Sites, split: splits.Split) -> tuple[Order, int]:
    """The order of the training batches, and how many there are. Raises RunError."""
    sampler = config_lib.load("data.sampler", config.data.sampler)
    try:
        order = sampler(sites, split, config.optim.batch_size, config.train.seed)
    except Exception as error:  # it is anybody's
        what = config_lib.described(error)
        raise run_dir.RunError(f"data.sampler={config.data.sampler!r}: {what}") from error
    steps, most = max(1, round(order.per_epoch * config.optim.epochs)), config.train.max_steps
    return order, min(steps, most) if most else steps


def _try_plug_ins(setup: Setup) -> None:
    """Raises RunError for parts that do not fit each other or the data: traces the first step."""
    assert setup.order is not None
    config, rows = setup.config, setup.config.optim.batch_size
    try:
        first = setup.order(0)[0]
        if len(first) != rows:
            raise ValueError(f"the sampler gives {len(first)} rows, expected optim.batch_size")
        inputs = setup.train_shapes()
        batch = jax.eval_shape(partial(setup.stream.batch, i=0, train=True), *inputs)
        state = setup.abstract_state  # a network that does not fit the images is found here
        if config.train.parallelism == "jit":
            jax.eval_shape(setup.train_step, state, *inputs)
        elif "share" in batch and setup.devices.mesh.size > 1:
            raise ValueError("mixes rows of the whole batch, which no device has under pmap")
    except DatasetError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        named = ", ".join(
            f"{name}={x!r}" for name, x in config_lib.flat(config).items() if name in
            config_lib.POINTS and (name == "model.name" or x != config_lib.FIELDS[name].default)
        )  # fmt: skip
        raise run_dir.RunError(f"{named}: {config_lib.described(error)}") from error
