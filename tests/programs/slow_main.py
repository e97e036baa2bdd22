"""`rxrx1_jax.main` with WAIT seconds added to each step, so that there is time to end it."""

import os
import runpy
import sys
import time

from rxrx1_jax.training import progress

train, wait = progress.Log.train, float(os.environ.get("WAIT", "0"))


def slow(*arguments):
    time.sleep(wait)
    train(*arguments)


progress.Log.train = slow
sys.argv[0] = "main"
runpy.run_module("rxrx1_jax.main", run_name="__main__", alter_sys=True)
