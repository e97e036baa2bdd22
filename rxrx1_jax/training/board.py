"""Points for TensorBoard, each in the file when `draw` returns: a kill loses none."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Board:
    """One file of events, which takes the place of what other files have from `start` on.

    tensorboardX has a thread that writes: it dies on a full disk, and a clock that runs backwards
    lets it wait. Here its records are written by whoever draws.
    """

    def __init__(self, folder: Path, start: int):
        # Imports PyTorch where that is installed: nobody waits for it before the first point.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        folder.mkdir(exist_ok=True)
        self._file = EventsWriter(str(folder / "events"), f".{os.getpid()}.{start}")
        if start:
            self._write(start, session_log=SessionLog(status=SessionLog.START))

    def draw(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboardX.proto.summary_pb2 import Summary

        points = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(step, summary=Summary(value=points))

    def _write(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._file.write_event(Event(step=step, wall_time=time.time(), **content))
        self._file.flush()
