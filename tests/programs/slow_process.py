"""Stands in for the interpreter in launch/local.sh: `rxrx1_jax.main`, slow before a checkpoint.

A signal then arrives between two steps (JAX looks for one every second). Process 1 writes its
number and step to a file.
Arguments: this file, the workdir, those of the interpreter.
"""

import os
import runpy
import sys
import time
from pathlib import Path

said, workdir, arguments = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
if arguments[0] == "-c":
    exec(arguments[1])
    sys.exit()

from rxrx1_jax.training import processes  # noqa: E402

given, fresh = processes.Notice.given, not (workdir / "checkpoints").exists()
steps = iter(range(1000))


def slowly(self):
    if fresh and os.environ["JAX_PROCESS_ID"] == "1":
        temporary = said.with_suffix(".tmp")
        temporary.write_text(f"{os.getpid()} {next(steps)}")
        temporary.rename(said)
        time.sleep(1)
    return given(self)


processes.Notice.given = slowly
sys.argv = ["main", *arguments[2:]]
runpy.run_module("rxrx1_jax.main", run_name="__main__", alter_sys=True)
