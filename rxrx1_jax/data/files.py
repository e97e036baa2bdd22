"""Files appear whole or not at all, also where several processes write the same one."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a path beside `path` to write to, which takes its place at the end of the block.

    The name is unique per call, on any host. If the block fails the file is removed and `path`
    stays as it was.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes the text in UTF-8, whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def parse_json(text: str | bytes) -> Any:
    """The content of JSON text. Raises ValueError, also for brackets in brackets without end."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(str(error)) from error
