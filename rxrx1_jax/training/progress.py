"""The log of a training: console with time left, metrics.jsonl, TensorBoard, and the NaN stop."""

import json
import math
import queue
import statistics
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from rxrx1_jax.data.files import write_text
from rxrx1_jax.training import run_dir
from rxrx1_jax.training.steps import METRICS

# Calls of the training step that are not yet complete, beyond which the loop is held back: enough
# for the device never to wait for the loop, few enough for only as many batches to lie in memory.
STEPS_AHEAD = 2
SHOWN = 4  # site ids in the message of a divergence; the file has all


class Log:
    """Follows the training steps from a thread of its own and writes their mean once an interval.

    The loop hands over device arrays and goes on; the thread waits for them. So it sees when each
    step is complete. From that come the times:

    - step time: seconds from the completion of the step before to that of the step. The first step
      after the start has none, as it contains the compilation. The time of evaluations does not
      count; the time for which a checkpoint holds the loop up does.
    - data wait: the part of a step time in which the loop waited for the batch while the device
      had no step left to work on.

    What is wrong in a step (Diverged) is raised by the next call. On hosts other than the first
    nothing is written. A context manager: leaving it ends the thread.

    An interruption leaves no trace: the intervals are the same, and so is every value that is not a
    time. The lines that come again are dropped, and TensorBoard is told to forget their points.
    """

    def __init__(self, workdir: Path, *, step: int, steps: int, steps_per_epoch: float,
                 batch_size: int, every: int, recent: Sequence[dict[str, float]] = ()):  # fmt: skip
        """step, recent: where training starts, and what `recent` was at that step before."""
        self._workdir, self._start = workdir, step
        self._steps, self._per_epoch, self._batch_size = steps, steps_per_epoch, batch_size
        self._every = every
        self._recent = deque(recent, maxlen=every)  # of the last steps, on the host
        self._step_times: list[float] = []
        self._data_wait = 0.0
        self._timed_steps, self._timed_seconds = 0, 0.0  # since the start
        self._last: float | None = None  # when the step before was complete
        self._main = jax.process_index() == 0
        self._path = workdir / "metrics.jsonl"
        self._board: Any = None
        self._again = _drop_after(self._path, step) if self._main else []
        self._ahead = threading.Semaphore(STEPS_AHEAD)
        self._queue: queue.Queue[tuple[int, jax.Array, float, float] | None] = queue.Queue()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._follow, name="log", daemon=True)
        self._thread.start()
        # A slow disk must not make the thread see the end of a step late.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="log writer")
        self._written: deque[Future[None]] = deque()

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        self._queue.put(None)
        self._thread.join()
        self._writer.shutdown()
        if self._board is not None:
            self._board.close()

    def train(self, step: int, metrics: jax.Array, asked: float, got: float) -> None:
        """Metrics, float32 [k, 4] as in METRICS, of the k steps up to `step`, just dispatched.

        Steps count from 1. asked, got: time.monotonic() before and after the loop drew its batch.

        Of several processes all raise Diverged at the same step. Each finds it one to three steps
        after the one at fault. A step that only some of them had begun would never end. All
        therefore run on to the same step, then raise.
        """
        self._ahead.acquire()
        error = self._error
        last = step
        if isinstance(error, Diverged) and jax.process_count() > 1:
            last = error.step + STEPS_AHEAD + 1
        if error is not None and step >= last:
            raise error
        self._queue.put((step, metrics, asked, got))

    def flush(self) -> None:
        """Waits for every step so far and checks it: before an evaluation or a checkpoint."""
        self._queue.join()
        if self._error is not None:
            raise self._error
        while self._written:
            self._written.popleft().result()

    def evaluation(self, step: int, values: dict[str, float]) -> None:
        """Figures of an evaluation after `step`, which was flushed; its time is no step's."""
        text = "  ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in values.items())
        self._publish(step, values, text)
        self._last = time.monotonic()

    def recent(self) -> list[dict[str, float]]:
        """Metrics of the last `every` steps, all flushed; a checkpoint keeps them for `Log`."""
        return list(self._recent)

    def recent_loss(self) -> float:
        """Mean training loss of the last `every` steps, all flushed."""
        return statistics.fmean(one["loss"] for one in self._recent)

    def say(self, text: str) -> None:
        if self._main:
            print(text, flush=True)

    def _follow(self) -> None:
        while (entry := self._queue.get()) is not None:
            try:
                if self._error is None:
                    self._add(*entry)
            except Exception as error:  # of the device or of a full disk: the loop raises it
                self._error = error
                self._ahead.release()
            finally:
                self._queue.task_done()

    def _add(self, last: int, metrics: jax.Array, asked: float, got: float) -> None:
        rows = np.asarray(metrics).tolist()
        now = time.monotonic()
        self._ahead.release()
        before, self._last = self._last, now
        if before is not None:
            self._data_wait += max(0.0, got - max(asked, before))
        for step, row in enumerate(rows, last - len(rows) + 1):
            values = dict(zip(METRICS, row, strict=True))
            _check_finite(step, values)
            self._recent.append(values)
            if before is not None:
                self._step_times.append((now - before) / len(rows))
            if step % self._every == 0 or step == self._steps:
                self._end_interval(step)

    def _end_interval(self, step: int) -> None:
        interval = list(self._recent)[-((step - 1) % self._every + 1) :]

        def mean(name: str) -> float:
            return statistics.fmean(one[name] for one in interval)

        values = {
            "train_loss": mean("loss"),
            "train_accuracy": mean("accuracy"),
            "learning_rate": interval[-1]["learning_rate"],
            "gradient_norm": mean("gradient_norm"),
        }
        text = f"loss {values['train_loss']:.3f}  accuracy {values['train_accuracy']:.3f}"
        if self._step_times:
            median, high = np.percentile(self._step_times, (50, 95)).tolist()
            count, seconds = len(self._step_times), sum(self._step_times)
            self._timed_steps += count
            self._timed_seconds += seconds
            speed = count * self._batch_size / seconds
            values |= {
                "images_per_second": speed,
                "step_seconds_median": median,
                "step_seconds_95th_percentile": high,
                "data_wait_share": self._data_wait / seconds,
            }
            left = self._timed_seconds / self._timed_steps * (self._steps - step)
            text += (
                f"  {speed:.0f} images/s  step {_milliseconds(median)} (95 %: "
                f"{_milliseconds(high)})  data wait {100 * self._data_wait / seconds:.0f} %  "
                f"{_duration(left)} left"
            )
        self._step_times, self._data_wait = [], 0.0
        while self._written and self._written[0].done():
            self._written.popleft().result()
        self._written.append(self._writer.submit(self._publish, step, values, text))

    def _publish(self, step: int, values: dict[str, float], text: str) -> None:
        self.say(f"step {step}/{self._steps}  epoch {step / self._per_epoch:.1f}  {text}")
        if not self._main:
            return
        line = {"step": step, "epoch": round(step / self._per_epoch, 4), **values}
        with open(self._path, "a") as file:
            file.write(json.dumps(line) + "\n")
        if self._board is None:
            # Imports PyTorch where that is installed: the first step need not wait for it.
            from tensorboardX import SummaryWriter

            folder = str(self._workdir / "tensorboard")
            # Its own thread dies on a full disk: with a bounded queue the next lines would wait for
            # it for ever.
            self._board = SummaryWriter(folder, purge_step=self._start, max_queue=0)
            for again in self._again:
                self._draw(self._start, again)
        self._draw(step, values)

    def _draw(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._board.add_scalar(name, value, step)


class Diverged(FloatingPointError):
    """A step whose loss or gradient is not finite; `batch` says what it was computed of."""

    def __init__(self, step: int, values: Mapping[str, float], batch: str = ""):
        super().__init__(
            f"step {step}: loss is {values['loss']}, gradient norm {values['gradient_norm']}, "
            f"{batch}the last checkpoint is from before it. In a new --workdir lower "
            "optim.learning_rate or lengthen optim.warmup_epochs"
        )
        self.step, self.values = step, values


def _check_finite(step: int, values: Mapping[str, float]) -> None:
    if not (math.isfinite(values["loss"]) and math.isfinite(values["gradient_norm"])):
        raise Diverged(step, values)


def diagnose(
    error: Diverged, batch: Mapping[str, jax.Array], site_ids: np.ndarray, workdir: Path
) -> Diverged:
    """Writes WORKDIR/diverged.json and returns the error with the batch in its message.

    The file holds step, loss, gradient_norm, site_ids of the whole batch and, of these, not_finite:
    whose prepared image has values that are not. To be called by every process.

    Args:
      batch: that of the step at fault, made again.
      site_ids: of all sites, by site_index.
    """
    image = batch["image"]
    finite = jnp.all(jnp.isfinite(image), axis=tuple(range(1, image.ndim)))
    rows = (batch["site_index"], finite)  # [N] each
    index, finite = multihost_utils.process_allgather(rows, tiled=True)
    ids = site_ids[index]
    bad = ids[~finite].tolist()
    path = workdir / "diverged.json"
    if jax.process_index() == 0:
        # As text where JSON has no number for it.
        found = {name: str(error.values[name]) for name in ("loss", "gradient_norm")}
        report = {"step": error.step, **found, "site_ids": ids.tolist(), "not_finite": bad}
        run_dir.write_json(path, report)
    shown = ", ".join(ids[:SHOWN]) + (f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else "")
    pixels = f"{len(bad)} of them with pixels that are not finite" if bad else "all pixels finite"
    return Diverged(error.step, error.values, f"of sites {shown} ({path}), {pixels}; ")


def _drop_after(path: Path, step: int) -> list[dict[str, float]]:
    """Removes what comes again after the checkpoint of `step`, and a line that a kill cut short.

    A step's own line was written before its checkpoint, the line of an evaluation after it. Returns
    the figures of the former, if the file has it.
    """
    if not path.exists():
        return []
    kept, own = [], []
    for text in path.read_text().splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if line["step"] == step and "train_loss" in line:
            own.append({name: x for name, x in line.items() if name not in ("step", "epoch")})
        elif line["step"] >= step:
            continue
        kept.append(text + "\n")
    write_text(path, "".join(kept))
    return own


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
