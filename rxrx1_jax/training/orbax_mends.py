"""What orbax and etils do wrong for us, mended in this process."""

import inspect
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils.epath import gpath


def apply() -> None:
    """Before checkpoints are written or read.

    Where an array cannot be read or written orbax does not wait for the others, and each would tell
    of itself: hundreds of lines before the one that says it all.
    """
    gpath.PosixGPath.glob = _glob

    def hook(fault: Any) -> None:
        orbax = inspect.iscoroutine(fault.object) and "orbax" in fault.object.cr_code.co_filename
        if not orbax and str(fault.exc_value) != "Event loop is closed":
            sys.__unraisablehook__(fault)

    sys.unraisablehook = hook
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)


def _glob(self: gpath.PosixGPath, pattern: str) -> Iterator[gpath.PosixGPath]:
    """That of etils takes `[`, `*` and `?` in the folder for a pattern, too. Orbax, which looks for
    the parts of a checkpoint by it, then finds none, and leaves the arrays out without a word."""
    return map(gpath.PosixGPath, Path(self).glob(pattern))
