"""A run whose evaluations take time, so that JAX, which looks for a signal every second, hears one.

Each process says when the second batch is due, and what ended it. Orbax has a question of its own
then, as when a save of its threads ends in an evaluation.
Arguments: the settings as JSON, workdir, the prefix of the file that says it.
"""

import contextlib
import json
import sys
import time
from pathlib import Path

from ml_collections import ConfigDict
from screens import tiny_images

from rxrx1_jax.training import checkpoint, processes, setup, train

processes.join()

import jax  # noqa: E402

said = Path(sys.argv[3] + str(jax.process_index()))
original, make, managers = setup.Setup.evaluation_draws, checkpoint.manager, []


@contextlib.contextmanager
def manager(*arguments):
    with make(*arguments) as made:
        managers.append(made)
        yield made


def slowly(draws):
    for i, draw in enumerate(draws):
        if i == 1:
            managers[0].reached_preemption(3)
            said.touch()
        time.sleep(2)
        yield draw


def evaluation(self, rows):
    store, draws = original(self, rows)
    return store, slowly(draws)


setup.Setup.evaluation_draws, checkpoint.manager = evaluation, manager
try:
    config = ConfigDict(json.loads(sys.argv[1]))
    train.train_and_evaluate(config, Path(sys.argv[2]), tiny_images())
except processes.Preempted as stop:
    print(stop, file=sys.stderr)
    processes.leave()
