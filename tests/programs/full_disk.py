"""Saves a checkpoint, fills the file system of the workdir (the argument), saves another one.

Prints JSON: what the second save was refused with, and the steps that can be read afterwards.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
from small_state import make_state, restore, save

from rxrx1_jax.training import checkpoint

workdir = Path(sys.argv[1])
_, state = make_state()
refused = ""
with checkpoint.manager(workdir, keep=1) as checkpoints:
    save(checkpoints, 1, state)
    checkpoint.wait(checkpoints)
    free = shutil.disk_usage(workdir).free
    (workdir / "filler").write_bytes(np.random.default_rng(0).bytes(max(free - 65536, 0)))
    try:
        save(checkpoints, 2, state)
        checkpoint.wait(checkpoints)
    except checkpoint.CheckpointError as error:
        refused = str(error)
(workdir / "filler").unlink()
with checkpoint.manager(workdir, keep=1) as checkpoints:
    steps = [int(step) for step in checkpoints.all_steps(read=True)]
restore(workdir, state)
print(json.dumps({"refused": refused, "steps": steps}))
