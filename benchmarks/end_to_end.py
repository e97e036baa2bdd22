"""The training loop against its compiled step alone, fed one batch from memory again and again.

    python -m benchmarks.end_to_end [--work DIR] [--cases 64 224] [--rounds 5]

Both run in one process and take turns: the loop (reading, inflating, logging, checkpoints)
is `Training.fit` on a synthetic screen, held at a gate while the others run. Normalisation and
augmentation are part of the step. Compilation and evaluations are left out. The third row is the
host half of the input alone: on a CPU it takes its time from the same cores as the step, on an
accelerator it does not.

Case 64: configs/demo.py with a checkpoint in each round, 2.5 times as often as there. Case 224:
ResNet-18 on batches of 8, without checkpoints in the rounds; what they would cost is the last line.
"""

import argparse
import contextlib
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import logging
from ml_collections import ConfigDict

from benchmarks.screens import use_screen
from benchmarks.timing import Task, compare, describe, markdown
from configs import demo
from rxrx1_jax.training import checkpoint, processes, progress, train
from rxrx1_jax.training.setup import Setup

STEP, LOOP, PIPELINE = "step alone, from memory", "training loop", "input pipeline alone"


def case_64() -> tuple[ConfigDict, int]:
    config = demo.get_config()
    config.train.eval_every, config.train.checkpoint_every = 0, 4
    return config, 4  # epochs a round


def case_224() -> tuple[ConfigDict, int]:
    config = demo.get_config()
    config.data.protocol, config.data.cell_type = "batch", "HUVEC"
    config.model.name = "resnet18"
    config.optim.batch_size = 8
    config.train.log_every, config.train.eval_every = 4, 0
    config.train.checkpoint_every = 1000
    return config, 1


CASES = {"64": case_64, "224": case_224}


class GatedLoop:
    """`Training.fit` in a thread of its own; each call lets it do `steps` more steps."""

    def __init__(self, setup: Setup, workdir: Path, steps: int):
        self._step, self._steps, self._left = setup.train_step, steps, 0
        self._open, self._done = threading.Semaphore(0), threading.Event()
        self._error: BaseException | None = None
        gated = replace(setup)
        vars(gated)["train_step"] = self._gated_step
        self._thread = threading.Thread(target=self._fit, args=(gated, workdir), daemon=True)
        self._thread.start()

    def __call__(self) -> None:
        self._done.clear()
        self._left = self._steps
        self._open.release(self._steps)
        self._done.wait()
        # Batches read ahead are work of the loop: the next task starts on idle cores.
        busy = True
        while busy:
            before = time.process_time()
            time.sleep(0.01)
            busy = time.process_time() - before > 0.001
        if self._error:
            raise self._error

    def join(self) -> None:
        self._thread.join()

    def _gated_step(self, *arguments):
        self._open.acquire()
        state, step_metrics = self._step(*arguments)
        self._left -= 1
        if not self._left:
            jax.block_until_ready(step_metrics)
            self._done.set()
        return state, step_metrics

    def _fit(self, setup: Setup, workdir: Path) -> None:
        try:
            checkpoints = checkpoint.manager(workdir, setup.config.train.keep)
            log = progress.Log(
                workdir, step=0, steps=setup.spec.total_steps, every=setup.config.train.log_every,
                steps_per_epoch=setup.steps_per_epoch, batch_size=setup.config.optim.batch_size,
            )  # fmt: skip
            with checkpoints, log:
                training = train.Training(setup, workdir, {}, processes.Notice())
                training.fit(setup.init(), log, checkpoints)
        except BaseException as error:
            self._error = error
            self._done.set()


def step_alone(setup: Setup, steps: int) -> Task:
    state, store, draw = setup.init(), setup.train_store(), next(setup.train_draws(0))

    def run() -> None:
        nonlocal state
        for _ in range(steps):
            state, step_metrics = setup.train_step(state, store, draw)
        jax.block_until_ready(step_metrics)

    return run


def pipeline_alone(setup: Setup, steps: int) -> Task:
    draws = setup.train_draws(0)

    def run() -> None:
        for _ in range(steps):
            jax.block_until_ready(next(draws))

    return run


def blocking_save(setup: Setup, workdir: Path) -> tuple[float, float]:
    """Seconds that a checkpoint holds the loop up, and until it is on disk."""
    state = setup.init()
    began = time.perf_counter()
    with checkpoint.manager(workdir, 1) as checkpoints:
        for step in (0, 1):  # the first makes folders and compiles
            checkpoints.wait_until_finished()
            began = time.perf_counter()
            state = state.replace(step=jnp.int32(step))
            checkpoint.save(checkpoints, state, setup.vocabulary, {})
            blocked = time.perf_counter() - began
        checkpoints.wait_until_finished()
    return blocked, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--work", type=Path, default=Path("data"), help="where the screens are kept"
    )
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    logging.set_verbosity(logging.WARNING)
    packages = ("jax", "flax", "orbax-checkpoint", "numpy")
    print(describe(packages, rounds=options.rounds))
    for name in options.cases:
        config, epochs = CASES[name]()
        use_screen(config, options.work, int(name))
        setup = train.prepare(config)
        steps = round(epochs * setup.steps_per_epoch)
        spec = replace(setup.spec, total_steps=steps * (options.rounds + 1))
        setup = replace(setup, spec=spec)
        with tempfile.TemporaryDirectory() as folder:
            loop = GatedLoop(setup, Path(folder) / "loop", steps)
            tasks = {
                STEP: step_alone(setup, steps),
                LOOP: loop,
                PIPELINE: pipeline_alone(setup, steps),
            }
            with open(Path(folder) / "log", "w") as log, contextlib.redirect_stdout(log):
                timings = compare(tasks, steps * config.optim.batch_size, STEP, options.rounds)
                loop.join()
            blocked, written = blocking_save(setup, Path(folder) / "save")
        heading = (
            f"{config.model.name}, {name} px, batches of {config.optim.batch_size}, "
            f"{steps} steps a round"
        )
        print(f"\n{markdown(timings, 'site', heading)}\n")
        by_name = {timing.name: timing for timing in timings}
        print(
            f"Loop / step alone: {by_name[LOOP].cpu_ratio:.3f} of the images per CPU-second, "
            f"{by_name[LOOP].wall_ratio:.3f} of the images per second. A checkpoint holds the loop "
            f"up for {1000 * blocked:.0f} ms and is on disk after {1000 * written:.0f} ms."
        )


if __name__ == "__main__":
    main()
