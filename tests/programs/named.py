"""Stands in for the interpreter that runs `rxrx1_jax.main`: does what the name of the run says."""

import json
import os
import signal
import sys
from pathlib import Path

workdir = Path(next(a for a in sys.argv if a.startswith("--workdir=")).partition("=")[2])
name = workdir.name
if "refused" in name:
    sys.exit("error: optim.momentum=2: expected a value in [0, 1)")
workdir.mkdir(parents=True, exist_ok=True)
if "complete" in name or ("twice" in name and (workdir / "begun").exists()):
    (workdir / "results.json").write_text(json.dumps({"step": 3, "total_steps": 3}))
elif "crash" in name:
    sys.exit("Traceback ...\nRuntimeError: out of memory\nRuntimeWarning: enable tracemalloc")
elif "killed" in name or "twice" in name:
    (workdir / "begun").touch()
    os.kill(os.getpid(), signal.SIGKILL)
