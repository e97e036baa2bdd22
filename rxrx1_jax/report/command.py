"""What the commands share: paths, faults in one line, lines for any terminal."""

import argparse
import codecs
import io
import os
import select
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rxrx1_jax.config import user_path
from rxrx1_jax.training import compilation, faults

if TYPE_CHECKING:
    from rxrx1_jax.training.run import Run

PLAIN = {"±": "+-", "–": "-", "×": "x", "…": "..."}  # where the locale's letters have no others


class Plain(argparse.ArgumentParser):
    """Of `python -m rxrx1_jax.NAME`; wrong usage is one line and status 2."""

    def __init__(self, name: str, about: str, **options: Any) -> None:
        super().__init__(
            prog=f"python -m rxrx1_jax.{name}", description=about, allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter, **options,
        )  # fmt: skip

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; --help says more\n")


class Parser(Plain):
    """Of `python -m rxrx1_jax.NAME RUN...`; runs: how many, as `nargs`."""

    def __init__(self, name: str, about: str, runs: str = "+", **options: Any) -> None:
        super().__init__(name, about, **options)
        self.add_argument("runs", nargs=runs, type=user_path, metavar="RUN", help="folder of a run")
        self.add_argument("--data_dir", type=user_path, metavar="DIR",
                          help="where the data are now; else where the run found them")  # fmt: skip


def open_run(path: Path, data_dir: Path | None, changes: Mapping[str, Any] | None = None) -> "Run":
    """A trained run, on its data or on the same data elsewhere; changes: as `Run.open` has them."""
    from rxrx1_jax.training.run import Run  # here: --help needs no JAX

    return Run.open(path, {**(changes or {}), **({"data.dir": str(data_dir)} if data_dir else {})})


def places(runs: Sequence[Path], out: Path | None) -> list[Path]:
    """Where what is made of each run is written: into the run, or into its folder in `out`.

    Raises OSError where that cannot be written.
    """
    if out is None:
        for path in runs:
            if path.is_dir() and not os.access(path, os.W_OK | os.X_OK):
                raise OSError(f"{path}: cannot be written; choose a folder with --out")
        return list(runs)
    check_writable("--out", out)
    names = [path.resolve().name for path in runs]
    found = [out / (name if names.count(name) == 1 else f"{k}-{name}")
             for k, name in enumerate(names)]  # fmt: skip
    for place in found:
        place.mkdir(parents=True, exist_ok=True)
    return found


def run(
    work: Callable[[], int | None], where: Path | None = None,
    told: tuple[type[Exception], ...] = (ValueError, ImportError),
) -> int:  # fmt: skip
    """Does the work of a command and returns its status; faults end it with one line and 1.

    Args:
      where: as in `faults.one_line`.
      told: further errors that are told in one line: of anybody's method.
    """
    compilation.use_cache()
    codecs.register_error("plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain")
    try:
        status = work() or 0
        sys.stdout.flush()
        return status
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _is_unread():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        line = faults.one_line(error, where or "")
        if not line and isinstance(error, told):
            line = " ".join(str(error).split())
        if not line:
            raise
        sys.exit(f"error: {line}")
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return os.EX_TEMPFAIL


def _is_unread() -> bool:
    """Whether the reader of stdout has gone, as `head -1` does: then it is the pipe that broke."""
    watch = select.poll()
    watch.register(sys.stdout, 0)  # errors are told unasked
    return bool(watch.poll(0))


def check_writable(option: str, path: Path) -> None:
    """Raises OSError unless a folder can be written at `path`."""
    place = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    if not place.is_dir():
        raise OSError(f"{option}={path}: {place} is no folder to write")
    if not os.access(place, os.W_OK | os.X_OK):
        raise OSError(f"{option}={path}: {place} cannot be written; choose another place")


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(PLAIN.get(letter, "?") for letter in letters), error.end
