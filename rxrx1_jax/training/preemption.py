"""Preemption: a run that is told to end saves the step it stands at, and its exit code says so.

SIGTERM (a cluster that takes the machine back) and the first Ctrl-C are such notices. A second
Ctrl-C ends the program at once, as it always does.
"""

import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, TypeVar

import jax
from jax.experimental import multihost_utils

# Of a run that was told to end and goes on when the same command is given again: EX_TEMPFAIL of
# sysexits.h. Any other code but 0 is a failure that starting again would repeat.
EXIT_CODE = 75

Item = TypeVar("Item")


class Preempted(Exception):
    """The run was told to end; `step` is saved."""

    def __init__(self, step: int):
        super().__init__(f"told to end at step {step:,}; the same command goes on from there")


class Notice:
    """Whether the run was told to end. A context manager: inside of it the signals are heard.

    Of several processes that `jax.distributed` joined JAX hears SIGTERM itself. As soon as one was
    told it makes all of them hear it at the same question, the first that none of them has asked:
    so they must ask the same ones, in the same order. Then Ctrl-C is what it always is.
    """

    def __init__(self) -> None:
        self._given = False
        self._batches = 0  # of evaluations, asked before so far
        self._alone = jax.process_count() == 1
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Notice":
        if self._alone and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._handlers[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _hear(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self._given = True

    def given(self, step: int) -> bool:
        """Whether to end at `step`; asked once after each step, in order, by every process.

        Costs less than a microsecond, of several processes too: JAX's threads do the talking.
        """
        if not (self._given or self._alone):
            # JAX wants its questions numbered without a gap.
            number = step + self._batches
            self._given = multihost_utils.reached_preemption_sync_point(number)
        return self._given

    def until_given(self, items: Iterable[Item], step: int) -> Iterator[Item]:
        """`items`; raises Preempted before the next one if the run was told to end at `step`.

        Every process must have equally many.
        """
        for item in items:
            self._batches += 1
            if self.given(step):
                raise Preempted(step)
            yield item
