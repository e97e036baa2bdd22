"""The training loop against its compiled step alone, fed one batch from memory again and again.

    python -m benchmarks.end_to_end [--work DIR] [--cases 64 224] [--rounds 5]

Both run in one process and take turns: the loop (reading, inflating, normalising, augmenting,
logging, checkpoints) is `train.fit` on a synthetic screen, held at a gate while the others run.
Compilation and evaluations are left out. The third row is the input pipeline without any step: on
a CPU it takes its time from the same cores as the step, on an accelerator it does not.

Case 64: configs/demo.py with a checkpoint in each round, 2.5 times as often as there. Case 224:
ResNet-18 on batches of 8, without checkpoints in the rounds; what they would cost is the last line.
"""

import argparse
import contextlib
import tempfile
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import logging
from ml_collections import ConfigDict

from benchmarks.screens import use_screen
from benchmarks.timing import Task, compare, describe, markdown
from configs import demo
from rxrx1_jax.training import checkpoint, preemption, progress, train

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
    """`train.fit` in a thread of its own; each call lets it do `steps` more steps."""

    def __init__(self, config: ConfigDict, task: train.Task, workdir: Path, steps: int):
        self._step, self._steps, self._left = task.steps.train_step, steps, 0
        self._open, self._done = threading.Semaphore(0), threading.Event()
        self._error: BaseException | None = None
        gated = task._replace(steps=task.steps._replace(train_step=self._gated_step))
        self._thread = threading.Thread(target=self._fit, args=(config, gated, workdir))
        self._thread.daemon = True
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

    def _gated_step(self, state, batch):
        self._open.acquire()
        state, step_metrics = self._step(state, batch)
        self._left -= 1
        if not self._left:
            jax.block_until_ready(step_metrics)
            self._done.set()
        return state, step_metrics

    def _fit(self, config: ConfigDict, task: train.Task, workdir: Path) -> None:
        try:
            checkpoints = checkpoint.manager(workdir, config.train.keep)
            log = progress.Log(
                workdir, step=0, steps=task.total_steps, steps_per_epoch=task.steps_per_epoch,
                batch_size=config.optim.batch_size, every=config.train.log_every,
            )  # fmt: skip
            with checkpoints, log:
                state, notice = jax.tree.map(jnp.copy, task.state), preemption.Notice()
                train.fit(config, task, state, log, checkpoints, notice)
        except BaseException as error:
            self._error = error
            self._done.set()


def step_alone(task: train.Task, batch: dict[str, jax.Array], steps: int) -> Task:
    state = jax.tree.map(jnp.copy, task.state)

    def run() -> None:
        nonlocal state
        for _ in range(steps):
            state, step_metrics = task.steps.train_step(state, batch)
        jax.block_until_ready(step_metrics)

    return run


def pipeline_alone(config: ConfigDict, task: train.Task, steps: int) -> Task:
    batches = train.train_batches(config, task, 0)

    def run() -> None:
        for _ in range(steps):
            jax.block_until_ready(next(batches))

    return run


def blocking_save(task: train.Task, workdir: Path) -> tuple[float, float]:
    """Seconds that a checkpoint holds the loop up, and until it is on disk."""
    began = time.perf_counter()
    with checkpoint.manager(workdir, 1) as checkpoints:
        checkpoint.save(checkpoints, 0, task.state, task.split.classes)
        checkpoints.wait_until_finished()
        began = time.perf_counter()
        checkpoint.save(checkpoints, 1, task.state, task.split.classes)
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
    packages = ("jax", "flax", "grain", "orbax-checkpoint", "numpy")
    print(describe(packages, rounds=options.rounds))
    for name in options.cases:
        config, epochs = CASES[name]()
        use_screen(config, options.work, int(name))
        task = train.prepare(config)
        steps = round(epochs * task.steps_per_epoch)
        task = task._replace(total_steps=steps * (options.rounds + 1))
        with tempfile.TemporaryDirectory() as folder:
            batch = next(train.train_batches(config, task, 0))
            loop = GatedLoop(config, task, Path(folder) / "loop", steps)
            tasks = {
                STEP: step_alone(task, batch, steps),
                LOOP: loop,
                PIPELINE: pipeline_alone(config, task, steps),
            }
            with open(Path(folder) / "log", "w") as log, contextlib.redirect_stdout(log):
                timings = compare(tasks, steps * config.optim.batch_size, STEP, options.rounds)
                loop.join()
            blocked, written = blocking_save(task, Path(folder) / "save")
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
