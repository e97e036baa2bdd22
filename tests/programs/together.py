"""Processes that work together for ever; the one of the given number fails instead.

Arguments: a file that says that they are at work, the number.
"""

import sys
from pathlib import Path

from rxrx1_jax.training import processes

processes.LOST_SECONDS = 5
processes.join()

import jax  # noqa: E402
from jax.experimental import multihost_utils  # noqa: E402

while True:
    multihost_utils.sync_global_devices("step")
    Path(sys.argv[1]).touch()
    if jax.process_index() == int(sys.argv[2]):
        sys.exit("error: disk full")
