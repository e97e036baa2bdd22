"""Who gets the curves of a training: TensorBoard, and loggers of a user's own (docs/train.md).

A factory of the setting train.loggers gives a logger, (start: Start) -> context manager whose value
is called as (step, values). Entered when a training starts or resumes, left when it ends: with the
exception where it was told to end or failed. All of it happens in one thread of process 0.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rxrx1_jax.config import described, load_all
from rxrx1_jax.training.run_dir import RunError

Values = Mapping[str, float]  # "group/name" -> value
Draw = Callable[[int, Values], object]

SETS = ("train", "test", "val")
OF_STEPS = ("learning_rate", "gradient_norm")
CHARTS = {
    "loss": "(train|test|val)/loss$", "accuracy": "(train|test|val)/accuracy$",
    "test accuracy by cell type": "test/accuracy_of_",
}  # fmt: skip


class Start(NamedTuple):
    """What a logger is told of the run.

    step: where training starts: 0, or where it resumes. An earlier process may have logged values
      of this step and of later ones. All of them come again.
    steps: of the whole training.
    picture: gives uint8 [H, W, 3], sites as the network sees them (`picture.draw_sites`).
    """

    workdir: Path
    settings: Mapping[str, Any]
    step: int
    steps: int
    picture: Callable[[], np.ndarray]


class Loggers:
    """Those that the setting names. An error of a user's own is a RunError."""

    def __init__(self, start: Start):
        self._start, self._names = start, start.settings["train.loggers"]
        self._draw: list[Draw] = []
        self._stack = contextlib.ExitStack()

    def open(self) -> None:
        with contextlib.ExitStack() as stack, self._told():
            for logger in load_all("train.loggers", self._names):
                self._draw.append(stack.enter_context(logger(self._start)))
            self._stack = stack.pop_all()

    def close(self, *error: Any) -> None:
        """error: kind, exception and traceback of what ends the training, or three times None."""
        with self._told():
            self._stack.__exit__(*error)

    def __call__(self, step: int, values: Values) -> None:
        """values: by their names in metrics.jsonl."""
        with self._told():
            for draw in self._draw:
                draw(step, {_tag(name): value for name, value in values.items()})

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RunError):
            raise
        except Exception as error:  # it is anybody's
            raise RunError(f"train.loggers={self._names!r}: {described(error)}") from error


def _tag(name: str) -> str:
    """train_loss -> train/loss; learning_rate -> train/learning_rate; times -> time/..."""
    group, _, rest = name.partition("_")
    if group in SETS:
        return f"{group}/{rest}"
    return f"{'train' if name in OF_STEPS else 'time'}/{name}"


def tensorboard() -> Callable[[Start], contextlib.AbstractContextManager[Draw]]:
    """Charts in groups, settings, and a picture of the input, in the run's folder."""

    @contextlib.contextmanager
    def logger(start: Start) -> Iterator[Draw]:
        with contextlib.closing(Board(start)) as board:
            yield board.draw

    return logger


class Board:
    """One file of events, which takes the place of what other files have from its start on.

    tensorboardX has a thread that writes: it dies on a full disk, and a clock that runs backwards
    lets it wait. Here its records are written by whoever draws, and are in the file when `draw`
    returns: a kill loses none.
    """

    def __init__(self, start: Start):
        self._start = start
        self._file: Any = None

    def draw(self, step: int, values: Values) -> None:
        from tensorboardX.proto.summary_pb2 import Summary

        if self._file is None:
            self._open()
        points = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(step, summary=Summary(value=points))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _open(self) -> None:
        # Imports PyTorch where that is installed: nobody waits for it before the first point.
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        # In the run's own folder, by which TensorBoard names it.
        step, path = self._start.step, self._start.workdir / "events"
        self._file = EventsWriter(str(path), f".{os.getpid()}.{step}")
        self._write(step, session_log=SessionLog(status=SessionLog.START))
        if step:
            return
        charts = {name: ("Multiline", [tags]) for name, tags in CHARTS.items()}
        settings = {
            name: value if isinstance(value, bool | float | int) else str(value)
            for name, value in self._start.settings.items()
        }
        metrics = dict.fromkeys(("test/accuracy", "test/accuracy_by_well", "test/loss"))
        made = [summary.custom_scalars({"curves": charts}), *summary.hparams(settings, metrics)]
        try:
            made.append(summary.image("input/sites", self._start.picture(), dataformats="HWC"))
        except Exception as error:  # an augmentation of anybody's may need a whole batch
            print(f"tensorboard: no picture of the input: {described(error)}", flush=True)
        for one in made:
            self._write(step, summary=one)

    def _write(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._file.write_event(Event(step=step, wall_time=time.time(), **content))
        self._file.flush()
