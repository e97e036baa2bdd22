"""Joins the others and says so. Arguments: seconds to wait, a file for each that must be there."""

import sys
from pathlib import Path

from rxrx1_jax.training import processes

processes.START_SECONDS, processes.LOST_SECONDS = int(sys.argv[1]), 5
try:
    joined = processes.join()
    import jax

    print(joined, jax.process_index(), jax.process_count(), file=sys.__stdout__, flush=True)
    if len(sys.argv) > 2:
        processes.check_shared(Path(sys.argv[2 + jax.process_index()]))
except processes.LaunchError as error:
    sys.exit(f"error: {error}")
processes.leave()
