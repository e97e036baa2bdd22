"""A run of two processes, the second of which notices late that a step was not finite.

It has begun further steps when the first stops. At fault is a site of the second's share of step 2.
Arguments: the settings as JSON, workdir.
"""

import json
import sys
import time
from pathlib import Path

from ml_collections import ConfigDict

from rxrx1_jax.training import processes, progress, train

processes.join()

import jax  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental import multihost_utils  # noqa: E402

prepare, draw, check = train.prepare, train.train_batches, progress._check_finite


def poisoned(config):
    task = prepare(config)
    batches = draw(config, task, 1)
    row = multihost_utils.process_allgather(next(batches)["site_index"], tiled=True)[6]
    batches.close()
    task.records.sites["control_mean"][row] = np.nan
    return task


def slow(*arguments):
    for batch in draw(*arguments):
        time.sleep(0.2)
        yield batch


def late(step, values):
    time.sleep(0.5 * jax.process_index())
    check(step, values)


train.prepare, train.train_batches, progress._check_finite = poisoned, slow, late
try:
    train.train_and_evaluate(ConfigDict(json.loads(sys.argv[1])), Path(sys.argv[2]))
except progress.Diverged as error:
    sys.exit(f"error: {error}")
