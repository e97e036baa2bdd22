"""The log of a training: console with time left, metrics.jsonl, loggers, and the NaN stop."""

import contextlib
import json
import queue
import statistics
import threading
import time
from collections import deque
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import jax
import numpy as np

from rxrx1_jax.data.files import parse_json, write_text
from rxrx1_jax.training import diverged, run_dir
from rxrx1_jax.training.loggers import Loggers, Start
from rxrx1_jax.training.steps import METRICS

# Calls of the training step that are not yet complete, beyond which the loop is held back: enough
# for the device never to wait for the loop, few enough for only as many batches to lie in memory.
STEPS_AHEAD = 2
TYPICAL = 200  # steps whose median time is that of a step to come


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
    time. The lines that come again are dropped. The loggers get them again, after the line of the
    step that training starts from, where it has one.
    """

    def __init__(self, start: Start, *, steps_per_epoch: float, batch_size: int, every: int,
                 recent: Sequence[dict[str, float]] = (), evaluations: Collection[int] = ()):
        """start: of the run, for its loggers. recent: what `recent` was at start.step before.
        evaluations: the steps after which there is one."""
        self._start, self._steps = start, start.steps
        self._per_epoch, self._batch_size = steps_per_epoch, batch_size
        self._every, self._evaluations = every, sorted(evaluations)
        self._recent = deque(recent, maxlen=every)  # of the last steps, on the host
        self._step_times: list[float] = []
        self._data_wait = 0.0
        # Of the last steps and evaluations, for the time left.
        self._typical: tuple[deque[float], deque[float]] = deque(maxlen=TYPICAL), deque(maxlen=9)
        self._begun = time.monotonic()
        self._last: float | None = None  # when the call before was complete
        self._seen, self._calls, self._complete = start.step, 0, 0  # last step; calls: begun, seen
        self._main = jax.process_index() == 0
        self._path = start.workdir / "metrics.jsonl"
        self._again = _drop_after(self._path, start.step) if self._main else []
        self._ahead = threading.Semaphore(STEPS_AHEAD)
        self._queue: queue.Queue[tuple[int, jax.Array, float, float] | None] = queue.Queue()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._follow, name="log", daemon=True)
        # A slow disk must not make the thread see the end of a step late.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="log writer")
        self._written: deque[Future[None]] = deque()

        self._loggers = Loggers(start)  # called in the writer's thread alone

    def __enter__(self) -> "Log":
        if self._main:
            self._writer.submit(self._loggers.open).result()
            for values in self._again:
                again = self._writer.submit(self._loggers, self._start.step, values)
                self._written.append(again)
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._queue.put(None)
        self._thread.join()
        with contextlib.suppress(*([Exception] if error else [])):  # it says more
            self._writer.submit(self._loggers.close, kind, error, trace).result()
        self._writer.shutdown()

    def train(self, step: int, metrics: jax.Array, asked: float, got: float) -> None:
        """Metrics, float32 [k, 4] as in METRICS, of a call just dispatched. Its last step: `step`.

        Steps count from 1. asked, got: time.monotonic() before and after the loop drew its batches.

        Of several processes all raise Diverged at the same call. Each finds it one to three calls
        after the one at fault. A call that only some of them had begun would never end. All
        therefore run on to the same call, then raise.
        """
        self._ahead.acquire()
        self._calls += 1
        error, last = self._error, self._calls
        if isinstance(error, diverged.Diverged) and jax.process_count() > 1:
            last = self._complete + 1 + STEPS_AHEAD + 1
        if error is not None and self._calls >= last:
            raise error
        self._queue.put((step, metrics, asked, got))

    def step_seconds(self) -> float:
        """Median time of the last steps, all flushed; at least two calls."""
        return statistics.median([*self._typical[0], *self._step_times])

    def flush(self) -> None:
        """Waits for every step so far and checks it: before an evaluation or a checkpoint."""
        self._queue.join()
        if self._error is not None:
            raise self._error
        while self._written:
            self._written.popleft().result()

    def evaluation(self, step: int, values: dict[str, float]) -> None:
        """Figures of an evaluation after `step`, which was flushed; its time is no step's."""
        text = "  ".join(f"{n.replace('_', ' ')} {_figure(n, x)}" for n, x in values.items()
                         if "_of_" not in n)  # fmt: skip
        self._writer.submit(self._publish, step, values, text).result()
        before, self._last = self._last, time.monotonic()
        if before is not None:
            self._typical[1].append(self._last - before)

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
        rows = np.asarray(metrics)[: last - self._seen].tolist()
        now = time.monotonic()
        self._ahead.release()
        before, self._last = self._last, now
        if before is None:
            self.say(f"step {last} after {_seconds(now - self._begun)}, compilation included")
        else:
            self._data_wait += max(0.0, got - max(asked, before))
        for step, row in enumerate(rows, last - len(rows) + 1):
            values = dict(zip(METRICS, row, strict=True))
            diverged.check_finite(step, values)
            self._recent.append(values)
            if before is not None:
                self._step_times.append((now - before) / len(rows))
            if step % self._every == 0 or step == self._steps:
                self._end_interval(step)
        self._seen, self._complete = last, self._complete + 1

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
        names = ("train_loss", "train_accuracy", "learning_rate")
        text = "  ".join(f"{name.replace('train_', 'training_').replace('_', ' ')}"
                         f" {_figure(name, values[name])}"
                         for name in names)  # fmt: skip
        if self._step_times:
            median, high = np.percentile(self._step_times, (50, 95)).tolist()
            count, seconds = len(self._step_times), sum(self._step_times)
            self._typical[0].extend(self._step_times)
            speed = count * self._batch_size / seconds
            values |= {
                "images_per_second": speed,
                "step_seconds_median": median,
                "step_seconds_95th_percentile": high,
                "data_wait_share": self._data_wait / seconds,
            }
            left = timedelta(seconds=round(self._left(step)))
            text += (
                f"  {speed:.0f} images/s  step {_seconds(median)} (95 %: {_seconds(high)})  data"
                f" wait {100 * self._data_wait / seconds:.0f} %  {left} left"
            )
        self._step_times, self._data_wait = [], 0.0
        while self._written and self._written[0].done():
            self._written.popleft().result()
        self._written.append(self._writer.submit(self._publish, step, values, text))

    def _left(self, step: int) -> float:
        """Seconds to the end: one stall is not taken for the rule, evaluations are counted."""
        steps, evaluations = self._typical
        ahead = sum(at >= step for at in self._evaluations)
        each = statistics.median(evaluations) if evaluations else 0.0
        return (self._steps - step) * statistics.median(steps) + ahead * each

    def _publish(self, step: int, values: dict[str, float], text: str) -> None:
        self.say(f"step {step}/{self._steps}  epoch {step / self._per_epoch:.1f}  {text}")
        if not self._main:
            return
        line = {"step": step, "epoch": round(step / self._per_epoch, 4), **values}
        with open(self._path, "a") as file:
            file.write(json.dumps(line) + "\n")
        self._loggers(step, values)


def _drop_after(path: Path, step: int) -> list[dict[str, float]]:
    """Removes what comes again after the checkpoint of `step`, and a line that a kill cut short.

    A step's own line was written before its checkpoint, the line of an evaluation after it. Returns
    the figures of the former, if the file has it. Raises RunError: a line that is none of a run.
    """
    if not path.exists():
        return []
    kept, own = [], []
    lines = path.read_bytes().splitlines()
    for number, text in enumerate(lines, 1):
        try:
            line = parse_json(text)
            if not isinstance(line, dict) or not isinstance(line.get("step"), int):
                raise ValueError("no object with a step")
            if not all(isinstance(value, int | float) for value in line.values()):
                raise ValueError("values that are no numbers")
        except ValueError as error:
            if number == len(lines) and text[:1] == b"{" and text[-1:] != b"}":
                continue
            raise run_dir.RunError(
                f"{path}:{number}: {error}; expected a line of this run; remove the line"
            ) from error
        if line["step"] == step and "train_loss" in line:
            own.append({name: x for name, x in line.items() if name not in ("step", "epoch")})
        elif line["step"] >= step:
            continue
        kept.append(text.decode() + "\n")
    write_text(path, "".join(kept))
    return own


def _figure(name: str, value: float) -> str:
    if "accuracy" in name:
        return f"{100 * value:.1f} %"
    return f"{value:.3g}" if name == "learning_rate" else f"{value:.3f}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
