"""A run of two processes, the second of which notices late that a step was not finite.

It has begun further steps when the first stops. At fault is a site of the second's share of step 2.
Arguments: the settings as JSON, workdir.
"""

import json
import sys
import time
from pathlib import Path

from ml_collections import ConfigDict
from screens import tiny_images

from rxrx1_jax.data import normalisation
from rxrx1_jax.training import diverged, processes, setup, train

processes.join()

import jax  # noqa: E402
import numpy as np  # noqa: E402

images, config = tiny_images(), ConfigDict(json.loads(sys.argv[1]))
row = setup.prepare(config, images).order(1)[0][6]
images.sites["control_mean"][row] = np.inf
draw, check = setup.Setup.train_draws, diverged.check_finite


def unchecked(normalise, images, rows, training):
    return images.sites["control_mean"][rows], images.sites["control_std"][rows]


def slow(*arguments):
    for one in draw(*arguments):
        time.sleep(0.2)
        yield one


def late(step, values):
    time.sleep(0.5 * jax.process_index())
    check(step, values)


normalisation.statistics = unchecked
setup.Setup.train_draws, diverged.check_finite = slow, late
try:
    train.train_and_evaluate(config, Path(sys.argv[2]), images)
except diverged.Diverged as error:
    sys.exit(f"error: {error}")
