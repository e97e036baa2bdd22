"""A trace of a few training steps: what the host and the devices did, and when."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax

from rxrx1_jax.training.progress import Log


@dataclass
class Trace:
    """The trace of the steps `first` to `last`, in the folder profile of the run; 0, 0: none.

    Of a training that begins or ends among them it has the steps that were done. A context manager:
    leaving it ends the trace.
    """

    workdir: Path
    log: Log
    first: int
    last: int
    _on: bool = False

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, *_: object) -> None:
        if self._on:
            self._end()

    @property
    def cuts(self) -> set[int]:
        """Steps that a call of several must not run past."""
        return {self.first - 1, self.last} - {-1, 0}

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Inside of it the call that ends with the step is dispatched."""
        if self.first <= step <= self.last and not self._on:
            self.log.flush()  # the steps before are done
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # each call of Python slows the step and fills the file
            jax.profiler.start_trace(self.workdir / "profile", profiler_options=options)
            self._on = True
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield
        if self._on and step == self.last:
            self.log.flush()
            self._end()

    def _end(self) -> None:
        self._on = False
        jax.profiler.stop_trace()
        files = (self.workdir / "profile").rglob("*.trace.json.gz")
        file = max(files, key=lambda path: path.stat().st_mtime_ns)
        self.log.say(
            f"trace of steps {self.first} to {self.last}: open {file} at https://ui.perfetto.dev,"
            f" or `pip install xprof` and `xprof {self.workdir}/profile`"
        )
