"""What a training needs of its devices, known before anything is compiled; refuses what cannot fit.

A step keeps the outputs of convolutions for its backward pass. Measured on an H100 and an H200
(ResNet-50, 128 to 512 px, bfloat16 and float32), its temporary memory is 1.83 to 1.91 times their
bytes, which a trace of the network gives in half a second. Products of matrices count as
convolutions do. The weights of attention, a product per image and head, are kept as float32 and in
the type of the computation; their gradient takes them twice more, for one block at a time. That is
counted, and compared with what XLA plans for a CPU; it has not been measured on a GPU.
"""

import functools
import itertools
import math
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, jaxprs_in_params

from rxrx1_jax.config import change
from rxrx1_jax.data import cache
from rxrx1_jax.data.info import Info
from rxrx1_jax.training.progress import STEPS_AHEAD
from rxrx1_jax.training.run_dir import RunError, write_json
from rxrx1_jax.training.setup import Setup, create_model
from rxrx1_jax.training.steps import CONTEXT

TEMPORARY = 1.9  # bytes of a step for each byte of its convolutions' outputs
MARGIN = 1.1  # of the estimate: what needs more than so many times the memory is refused
DRAWS = STEPS_AHEAD + 2  # of planes on a device at once: in steps, and on their way
WARM, TIMED = 2, 8  # steps of a plan: that compile, that are timed


class Need(NamedTuple):
    """Bytes of each device."""

    state: int
    activations: int  # temporary memory of the step
    batches: int  # in flight
    cache: int  # data that are kept there

    @property
    def total(self) -> int:
        return sum(self)

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {_size(size)}" for name, size in self._asdict().items() if size)
        return f"{_size(self.total)} of each device ({parts})"


class Kept(NamedTuple):
    """Temporary bytes of a training step with a forward pass, or of a part of it."""

    held: float = 0  # from the forward to the backward pass
    again: float = 0  # of the largest block that is computed again; 0: none is
    passing: float = 0  # of the largest gradient of attention

    @property
    def total(self) -> float:
        return self.held + max(self.again, self.passing)


def need(setup: Setup, changes: Mapping[str, Any] | None = None) -> Need:
    """The estimate for a training of these settings. changes: {field: value} in place of them."""
    config = setup.config.copy_and_resolve_references()
    change(config, changes or {})
    rows, parts = config.optim.batch_size // jax.device_count(), config.optim.accumulation
    kept = _row_bytes(setup, config.model.dtype, config.model.remat)
    stream, planes = setup.stream, math.prod(setup.images.image_shape)
    channels, *sides = setup.images.image_shape
    image = channels * math.prod(config.data.crop or side for side in sides)
    image *= jnp.dtype(config.model.dtype).itemsize * min(parts, 2)  # cut into parts: a copy
    rows_kept = 0 if stream.kept is None else len(stream.kept)
    cached = planes * (rows_kept + 1) if stream.cache == "device" else 0
    sent = 0 if cached else DRAWS * planes * max(config.train.steps_per_call, 1)
    batches = rows * (image + sent)
    sums = _bytes(setup.abstract_state.params) if parts > 1 else 0  # of the parts' gradients
    activations = round(rows / parts * kept.total) + sums
    return Need(_bytes(setup.abstract_state), activations, batches, cached)


def limit() -> int:
    """Bytes that a program may have of each device: the least over the devices of all processes; 0
    where it is not known (CPUs)."""
    return cache.least(_own_limit())[0]


def _own_limit() -> int:
    """The same of this process alone."""
    return min(
        (device.memory_stats() or {}).get("bytes_limit", 0) for device in jax.local_devices()
    )


def beside(setup: Setup) -> int | None:
    """Bytes that a training needs beside its images (`cache.choose`); None on CPUs."""
    return need(setup).total if limit() else None


def check(setup: Setup) -> Need:
    """The estimate. Raises RunError: clearly beyond the memory; model.remat without blocks."""
    model = setup.config.model
    if model.remat and not _row_bytes(setup, model.dtype, True).again:
        raise RunError(
            f"model.remat=True: {model.name} has no blocks to compute again; expected one of our"
            " networks, or False"
        )
    found, there = need(setup), limit()
    if there and found.total > MARGIN * there:
        raise RunError(too_large(setup, found, there))
    return found


def record(setup: Setup, workdir: Path, steps_per_call: int) -> None:
    """Writes plan.json: what this start of the training decided, and what it expects to need."""
    there, found = limit(), need(setup)
    if jax.process_index() == 0:
        write_json(workdir / "plan.json", {
            "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "dtype": setup.config.model.dtype, "cache": setup.stream.cache,
            "steps_per_call": steps_per_call,
            "bytes_per_device": {**found._asdict(), "total": found.total, "limit": there or None},
        })  # fmt: skip


def checked_step(setup: Setup) -> Callable[..., Any]:
    """`setup.train_step`, whose first call compares the compiler's own figures with the memory.

    Raises RunError there. Under pmap only the estimate is compared.
    """
    there, seen, lower = limit(), list[Need](), getattr(setup.train_step, "lower", None)
    if not there or lower is None:
        return setup.train_step

    def step(*arguments: Any) -> Any:
        if not seen:  # compiled once: the call below finds the program
            figures = lower(*arguments).compile().memory_analysis()
            seen.append(need(setup)._replace(activations=figures.temp_size_in_bytes))
            if seen[0].total > there:
                raise RunError(too_large(setup, seen[0], there))
        return setup.train_step(*arguments)

    return step


def too_large(setup: Setup, found: Need, there: int) -> str:
    """One line: what is needed, what there is, and the changes of the settings that would fit."""
    has = f"{jax.devices()[0].device_kind} has {_size(there)}"
    return f"a step needs {found}, {has}; {_what_fits(setup, there)}"


def ran_out(setup: Setup) -> str:
    """The same, of a device that was out of memory although the estimate had seen room.

    Other processes may be at work still: nothing here waits for them.
    """
    found = need(setup)
    less = round(0.9 * min(found.total, _own_limit() or found.total))
    kind = jax.devices()[0].device_kind
    return f"{kind} is out of memory; a step needs {found}; {_what_fits(setup, less)}"


def _what_fits(setup: Setup, there: int) -> str:
    config, devices = setup.config, jax.device_count()
    rows, parts = config.optim.batch_size // devices, config.optim.accumulation
    choices: dict[str, Iterable[Any]] = {
        "optim.batch_size": (devices * parts * n for n in range(rows // parts - 1, 0, -1)),
        "optim.accumulation": (n for n in range(parts + 1, rows + 1) if rows % n == 0),
        "model.remat": [] if config.model.remat else [True],
        "train.steps_per_call": [1] if config.train.steps_per_call > 1 else [],
        "model.dtype": ["bfloat16"] if config.model.dtype == "float32" else [],
    }
    fits = []
    for field, values in choices.items():  # of each the first that fits
        totals = ((value, need(setup, {field: value}).total) for value in values)
        found = next(((value, total) for value, total in totals if total <= there), None)
        fits += [f"{field}={found[0]} ({_size(found[1])})"] if found else []
    smaller = "a smaller network or image (model.width, data.crop)"
    return f"what would fit: {' or '.join(fits) or smaller}"


def show(setup: Setup, workdir: Path) -> Iterator[str]:
    """The lines of --mode=plan. Raises RunError, after the first, if the run would be refused."""
    found, there, device = need(setup), limit(), jax.devices()[0].device_kind
    fits = "it fits" if found.total <= there else "it may not fit"
    yield f"memory: a step needs {found}" + f"; {fits} {device}, {_size(there)}" * bool(there)
    check(setup)
    kept = setup.config.train.keep + 2  # the best, and the one that is being written
    saved = _bytes(setup.abstract_state)
    there_is = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    free = shutil.disk_usage(there_is).free
    yield (
        f"disk: {_size(kept * saved)} ({kept} checkpoints of {_size(saved)}), {_size(free)} are"
        " free"
    )
    state, store, draws = setup.init(), setup.train_store(), setup.train_draws(0)
    step, times = checked_step(setup), []
    for draw in itertools.islice(draws, WARM + TIMED):
        begun = time.monotonic()
        state, metrics = step(state, store, draw)
        jax.block_until_ready(metrics)
        times.append(time.monotonic() - begun)
    seconds = statistics.median(times[WARM:] or times)
    size, total = setup.config.optim.batch_size, setup.spec.total_steps
    yield (
        f"time: {seconds:.3f} s per step of {size} sites ({size / seconds:,.0f} sites per second),"
        f" {total:,} steps: {total * seconds / 3600:.2f} hours on {jax.device_count()} x {device},"
        " without evaluations"
    )


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _bytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


@functools.lru_cache(maxsize=8)
def _row_bytes(setup: Setup, dtype: str, remat: bool) -> Kept:
    """`_kept` per row of a batch, of the network with this type of the computation."""
    config = setup.config.copy_and_resolve_references()
    change(config, {"model.dtype": dtype, "model.remat": remat})
    rows = max(1, config.optim.batch_size // jax.device_count() // config.optim.accumulation)
    channels, *sides = setup.images.image_shape
    height, width = (config.data.crop or side for side in sides)
    images = jax.ShapeDtypeStruct((rows, height, width, channels), jnp.dtype(dtype))
    codes = dict.fromkeys(CONTEXT, jax.ShapeDtypeStruct((rows,), jnp.int32))
    model, state = create_model(config), setup.abstract_state

    def forward(params: Any, batch_stats: Any, images: jax.Array, codes: Any) -> Any:
        return model.apply(
            {"params": params, "batch_stats": batch_stats}, images, codes,
            Info(setup.vocabulary, True, jnp.float32(0)), mutable=["batch_stats", "intermediates"],
            rngs={"dropout": jax.random.key(0)},
        )  # fmt: skip

    with jax.numpy_dtype_promotion("standard"):  # Flax's BatchNorm needs it for bfloat16
        traced = jax.make_jaxpr(forward)(state.params, state.batch_stats, images, codes)
    return Kept(*(x / rows for x in _kept(traced.jaxpr)))


def _kept(jaxpr: Jaxpr) -> Kept:
    held = again = passing = 0.0
    for equation in jaxpr.eqns:
        name, outputs = equation.primitive.name, _bytes([x.aval for x in equation.outvars])
        if name == "dot_general" and equation.params["dimension_numbers"][1][0]:  # of attention
            in_float32 = equation.invars[0].aval.dtype.itemsize >= 4  # type: ignore[attr-defined]
            held += outputs if in_float32 else 1.5 * outputs
            passing = max(passing, 2 * outputs)
        elif name in ("conv_general_dilated", "dot_general"):
            held += TEMPORARY * outputs
        for inner in map(_kept, jaxprs_in_params(equation.params)):
            if name.startswith("remat"):
                held, again = held + outputs, max(again, inner.total)
            else:
                held += inner.held * equation.params.get("length", 1)  # of a scan
                again, passing = max(again, inner.again), max(passing, inner.passing)
    return Kept(held, again, passing)
