"""What one process of `benchmarks.accelerator` measures, with the device to itself."""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.implementations import TORCH, Case, make, model_flops

RUN, DETERMINISM = "run", "determinism"


@dataclass(frozen=True)
class Part:
    """kind: RUN, DETERMINISM, or one of `implementations.IMPLEMENTATIONS`."""

    kind: str
    network: str = "resnet50"
    px: int = 64
    rows: int = 256
    dtype: str = "bfloat16"
    sites: int = 1024  # in memory
    images: int = 10_000  # that the loop trains on
    seconds: float = 2.0  # of each measurement
    cache: str = "auto"  # data.cache of the run
    blocks: tuple[int, ...] = (3, 4, 6, 3)  # of the plain networks

    @property
    def name(self) -> str:
        return f"{self.kind} {self.network} {self.px} px, {self.rows} x {self.dtype}"

    @property
    def case(self) -> Case:
        return Case(self.network, self.px, self.rows, self.dtype, tuple(self.blocks))


def measure(part: Part, data: Path | None) -> dict[str, Any]:
    """The figures of a part, in this process."""
    if part.kind == DETERMINISM:
        return measure_determinism(part)
    found = measure_run(part, data) if part.kind == RUN else measure_rival(part)
    if part.kind not in TORCH:
        import jax

        device = jax.devices()[0]
        found["device"] = device.device_kind
        found["peak_bytes"] = (device.memory_stats() or {}).get("peak_bytes_in_use")
    return found


def measure_rival(part: Part) -> dict[str, Any]:
    began = time.perf_counter()
    run = make(part.kind, part.case)
    run(1)
    first = time.perf_counter() - began
    return {"first_step_seconds": first, "step": rate(run, part)}


def measure_run(part: Part, data: Path | None) -> dict[str, Any]:
    from rxrx1_jax import config as config_lib
    from rxrx1_jax.training import setup, train

    images = find_images(part, data)
    config = config_lib.default()
    config_lib.change(config, {
        "data.protocol": "official", "model.name": part.network, "model.dtype": part.dtype,
        "optim.batch_size": part.rows, "eval.batch_size": part.rows, "optim.learning_rate": 0.01,
        "train.eval_every": 0, "train.checkpoint_every": 10**6, "data.cache": part.cache,
        "optim.epochs": 10**4, "train.max_steps": max(2, part.images // part.rows),
    })  # fmt: skip
    found = measure_setup(part, lambda: setup.prepare(config, images))
    with tempfile.TemporaryDirectory() as folder:
        config.train.log_every = max(1, config.train.max_steps // 10)
        train.train_and_evaluate(config, folder, images)
        lines = map(json.loads, (Path(folder) / "metrics.jsonl").read_text().splitlines())
        speeds = [line["images_per_second"] for line in lines if "images_per_second" in line]
    found["loop"] = statistics.median(speeds[1:] or speeds)  # the first has the first steps
    found["flops"] = model_flops("ours", part.case)
    return found


def measure_setup(part: Part, prepare: Callable[[], Any]) -> dict[str, Any]:
    """The step, the forward pass and the evaluation of what `prepare` sets up."""
    import jax

    from rxrx1_jax.training import evaluate, plan, steps

    began = time.perf_counter()
    setup = prepare()
    state, store, draw = setup.init(), setup.train_store(), next(setup.train_draws(0))
    state, metrics = jax.block_until_ready(setup.train_step(state, store, draw))
    found: dict[str, Any] = {"first_step_seconds": time.perf_counter() - began}
    found["planned_bytes"] = plan.need(setup).total

    def step(count: int) -> None:
        nonlocal state, metrics
        for _ in range(count):
            state, metrics = setup.train_step(state, store, draw)
        jax.block_until_ready(metrics)

    found["step"] = rate(step, part, part.rows * int(draw.count))
    tested = np.arange(min(len(setup.images), part.sites))
    kept, draws = setup.evaluation_draws(tested)
    one, run = next(draws), setup.evaluator(steps.eval_step)

    def forward(count: int) -> None:
        for _ in range(count):
            outputs = run(state, kept, one)
        jax.block_until_ready(outputs)

    def whole(count: int) -> None:
        for _ in range(count):
            evaluate.evaluate_sites(setup, state, tested)

    found["forward"] = rate(forward, part)
    found["evaluation"] = rate(whole, part, len(tested))
    return found


def measure_determinism(part: Part) -> dict[str, Any]:
    """Whether two runs that share no compiled program end with the same bits."""
    from benchmarks.kill_training import assert_same_run

    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    with tempfile.TemporaryDirectory() as folder:
        runs = [Path(folder) / name for name in ("first", "second")]
        for run in runs:
            command = [
                sys.executable, "-m", "rxrx1_jax.main", "--config=smoke", f"--workdir={run}",
                f"--config.data.name=rxrx1_jax.data.smoke.screen(size={part.px})",
                f"--config.model.name={part.network}", f"--config.model.dtype={part.dtype}",
            ]  # fmt: skip
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        try:
            assert_same_run(*runs)
        except AssertionError as error:
            return {"equal": False, "differs": str(error).strip().splitlines()[0]}
    return {"equal": True}


def find_images(part: Part, data: Path | None) -> Any:
    """Images of the part's size: a dataset below `data`, or drawn at random."""
    from rxrx1_jax.data.images import InMemory
    from rxrx1_jax.data.records import Records

    for path in sorted(data.glob("*/*/*.*.*")) if data else ():
        records = Records(path)
        if records.image_shape[1:] == (part.px, part.px):
            return records
    rng = np.random.default_rng(0)
    planes = rng.integers(0, 255, (part.sites, 6, part.px, part.px), np.uint8)
    number = np.arange(part.sites)
    sites = {
        "cell_type": ["HUVEC"] * part.sites, "experiment": ["HUVEC-01"] * part.sites,
        "dataset": np.where(number % 8, "train", "test"), "sirna_id": number // 2 % 1108,
    }  # fmt: skip
    return InMemory(planes, sites, control_mean=[100.0] * 6, control_std=[50.0] * 6)


def rate(run: Callable[[int], None], part: Part, rows: int = 0) -> float:
    """Images per second: the median of five rounds. rows: per count, default those of a batch."""
    run(1)  # compiles
    began = time.perf_counter()
    run(2)
    each = (time.perf_counter() - began) / 2
    count = max(1, math.ceil(part.seconds / 5 / each))
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        run(count)
        seconds.append((time.perf_counter() - began) / count)
    return (rows or part.rows) / statistics.median(seconds)
