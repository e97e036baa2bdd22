"""The commands in this process: a hundred faults take seconds, where child processes take minutes.

What ends a process for good (signals, lost hosts) needs a child: children.py.
"""

import contextlib
import importlib
import io
import os
import signal
import sys
from typing import NamedTuple
from unittest import mock

MODULES = {
    name: f"rxrx1_jax.{name}{'.__main__' if name in ('report', 'leaderboard', 'search') else ''}"
    for name in (
        "main", "table1", "report", "leaderboard", "search", "correct", "diagnose", "lda12",
        "download", "ensemble", "export", "variance",
    )
}


class Outcome(NamedTuple):
    code: int
    last: str  # line of stderr; of stdout where nothing was said there
    out: str
    err: str


def run_command(name: str, *arguments: object) -> Outcome:
    """`python -m rxrx1_jax.NAME ARGUMENTS`, as far as one process can tell."""
    command = importlib.import_module(MODULES[name]).main
    argv = list(map(str, arguments))
    out, err = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    with (
        mock.patch.object(sys, "argv", [name, *argv]), mock.patch.dict(os.environ),
        contextlib.redirect_stdout(out), contextlib.redirect_stderr(err),
    ):  # fmt: skip
        try:
            code = command(argv) if command.__code__.co_argcount else command()
        except SystemExit as end:
            code = end.code
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    if isinstance(code, str):  # as the interpreter does with what `sys.exit` was given
        err.write(f"{code}\n")
        code = 1
    lines = (err.getvalue().strip() or out.getvalue().strip()).splitlines()
    return Outcome(code or 0, lines[-1] if lines else "", out.getvalue(), err.getvalue())
