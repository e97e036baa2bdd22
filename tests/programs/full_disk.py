"""Saves a checkpoint, fills the file system of the workdir (the argument), saves another one.

Prints JSON: what the second save was refused with, and the steps that can be read afterwards.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
from small_state import CLASSES, make_state

from rxrx1_jax.training import checkpoint

workdir = Path(sys.argv[1])
_, state = make_state()
refused = ""
with checkpoint.manager(workdir, keep=1) as checkpoints:
    checkpoint.save(checkpoints, 1, state, CLASSES)
    checkpoint.wait(checkpoints)
    free = shutil.disk_usage(workdir).free
    (workdir / "filler").write_bytes(np.random.default_rng(0).bytes(max(free - 65536, 0)))
    try:
        checkpoint.save(checkpoints, 2, state, CLASSES)
        checkpoint.wait(checkpoints)
    except checkpoint.CheckpointError as error:
        refused = str(error)
(workdir / "filler").unlink()
with checkpoint.manager(workdir, keep=1) as checkpoints:
    steps = [int(step) for step in checkpoints.all_steps(read=True)]
    checkpoint.restore(checkpoints, state, CLASSES)
print(json.dumps({"refused": refused, "steps": steps}))
