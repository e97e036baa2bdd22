"""Learning curves while they grow: console with time left, metrics.jsonl and TensorBoard."""

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tensorboardX import SummaryWriter

Metrics = dict[str, Any]


class Log:
    """Collects the metrics of training steps and writes their mean once an interval.

    The device is never waited for in the loop: the metrics of an interval are fetched when the next
    one is complete. On hosts other than the first nothing is written, but a loss that is not finite
    still stops the run there.
    """

    def __init__(self, workdir: Path, *, step: int, steps: int, steps_per_epoch: float,
                 batch_size: int, every: int):  # fmt: skip
        """`step`: where training starts; later lines of an interrupted run are dropped."""
        self._steps, self._per_epoch, self._batch_size = steps, steps_per_epoch, batch_size
        self._every, self._start = every, step
        self._current: list[Metrics] = []  # device scalars of the interval that grows
        self._steps_done = step
        self._complete: tuple[int, float, float, list[Metrics]] | None = None
        self._began = self._interval_began = time.monotonic()
        self._main = jax.process_index() == 0
        self._path = workdir / "metrics.jsonl"
        if self._main:
            _drop_after(self._path, step)
            self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def train(self, step: int, metrics: Metrics) -> None:
        """Metrics (device scalars) of step `step`, counted from 1."""
        self._current.append(metrics)
        self._steps_done = step
        if step % self._every == 0 or step == self._steps:
            self._flush_complete()
            now = time.monotonic()
            self._complete = (step, now, now - self._interval_began, self._current)
            self._current, self._interval_began = [], now

    def flush(self) -> None:
        """Writes what is complete and checks every step so far: before a checkpoint or the end."""
        self._flush_complete()
        last = self._steps_done - len(self._current)
        _check_finite(jax.device_get(self._current), first=last + 1)

    def evaluation(self, step: int, values: dict[str, float]) -> None:
        """Figures of an evaluation after `step`; the time it took is not training time."""
        self._write(step, values)
        text = "  ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in values.items())
        self.say(f"{self._position(step)}  {text}")

    def exclude(self, seconds: float) -> None:
        """Keeps `seconds` (of an evaluation) out of the training speed."""
        self._interval_began += seconds
        self._began += seconds

    def say(self, text: str) -> None:
        if self._main:
            print(text, flush=True)

    def close(self) -> None:
        self.flush()
        if self._main:
            self._board.close()

    def _flush_complete(self) -> None:
        if self._complete is None:
            return
        step, when, seconds, interval = self._complete
        self._complete = None
        fetched = jax.device_get(interval)
        _check_finite(fetched, first=step - len(fetched) + 1)
        mean = {name: float(np.mean([one[name] for one in fetched])) for name in fetched[0]}
        values = {
            "train_loss": mean["loss"],
            "train_accuracy": mean["accuracy"],
            "learning_rate": float(fetched[-1]["learning_rate"]),
            "gradient_norm": mean["gradient_norm"],
            "images_per_second": len(fetched) * self._batch_size / max(seconds, 1e-9),
        }
        self._write(step, values)
        left = (when - self._began) / (step - self._start) * (self._steps - step)
        self.say(
            f"{self._position(step)}  loss {values['train_loss']:.3f}  "
            f"accuracy {values['train_accuracy']:.3f}  "
            f"{values['images_per_second']:.0f} images/s  {_duration(left)} left"
        )

    def _position(self, step: int) -> str:
        return f"step {step}/{self._steps}  epoch {step / self._per_epoch:.1f}"

    def _write(self, step: int, values: dict[str, float]) -> None:
        if not self._main:
            return
        line = {"step": step, "epoch": round(step / self._per_epoch, 4), **values}
        with open(self._path, "a") as file:
            file.write(json.dumps(line) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)


def _check_finite(fetched: list[Metrics], first: int) -> None:
    """Raises FloatingPointError for the first step whose loss or gradient is not finite."""
    for step, one in enumerate(fetched, first):
        if not (math.isfinite(one["loss"]) and math.isfinite(one["gradient_norm"])):
            raise FloatingPointError(
                f"step {step}: loss is {one['loss']}, gradient norm {one['gradient_norm']}; the "
                "last checkpoint is from before it. In a new --workdir lower optim.learning_rate "
                "or lengthen optim.warmup_epochs"
            )


def _drop_after(path: Path, step: int) -> None:
    """Removes lines later than the restored checkpoint, and one that a kill cut short."""
    if not path.exists():
        return
    kept = []
    for text in path.read_text().splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if line["step"] <= step:
            kept.append(text + "\n")
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text("".join(kept))
    os.replace(temporary, path)


def parameter_table(params: Any) -> str:
    """One line for each top-level module: its name and number of parameters, then the total."""
    counts = {
        name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in params.items()
    }
    width = max(len(name) for name in (*counts, "total"))
    lines = [f"{name:{width}} {count:>12,}" for name, count in counts.items()]
    return "\n".join([*lines, f"{'total':{width}} {sum(counts.values()):>12,}"])


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
