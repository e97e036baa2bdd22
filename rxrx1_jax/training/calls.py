"""How many steps one call of the training program runs: the setting train.steps_per_call.

A small network on a fast device waits for the host between its steps. One call of several steps
does not. The program counts its steps while it runs, so its numbers are the same bits wherever the
calls are cut: at checkpoints, at evaluations, at the end.
"""

from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from rxrx1_jax.data.reading import calls
from rxrx1_jax.data.stream import Draw
from rxrx1_jax.training.progress import Log
from rxrx1_jax.training.setup import Setup

ROOM = 64  # steps that a program has room for where the number is not set: 12 bytes per row
SECONDS = 0.25  # that a call shall take then: how late a notice to end is obeyed
TRIAL = 4  # calls of one step, whose times say how many a call takes


def room(setup: Setup) -> int:
    """Steps that a call may have, the same in all calls of a training."""
    if asked := setup.config.train.steps_per_call:
        return asked
    return ROOM if setup.stream.cache == "device" and jax.default_backend() != "cpu" else 1


def train_calls(
    setup: Setup, start: int, cuts: Iterable[int], log: Log, decided: Callable[[int], None]
) -> Iterator[tuple[int, Draw]]:
    """(step that is reached, what the call takes) from step `start` on; no call runs past a cut.

    Where the setting is 0 the first calls are timed: the caller gives each to `log`.
    decided: is told the number of steps per call.
    """
    k, stop, cuts = room(setup), setup.spec.total_steps, set(cuts)
    count = k
    if k > 1 and not setup.config.train.steps_per_call:
        trial, count = min(start + TRIAL, stop), 1
        yield from _some(setup, start, trial, k, range(start, trial))
        if trial < stop:  # else there may be a single step, which has no time
            log.flush()
            count = _together(log.step_seconds(), k)
            cuts.update(range(trial, stop, count))
        start = trial
    decided(count)
    yield from _some(setup, start, stop, k, cuts)


def _some(
    setup: Setup, start: int, stop: int, k: int, cuts: Iterable[int]
) -> Iterator[tuple[int, Draw]]:
    draws = setup.train_draws(start, stop, k, cuts)
    return zip((steps.stop for steps in calls(start, stop, k, cuts)), draws, strict=True)


def _together(seconds: float, k: int) -> int:
    """Steps that take SECONDS, from 1 to k: the same in all processes."""
    count = np.clip(SECONDS / max(seconds, 1e-6), 1, k).astype(np.int32)
    if jax.process_count() > 1:
        count = multihost_utils.process_allgather(count).min()
    return int(count)
