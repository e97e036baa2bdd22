"""One process of a run: trains, embeds, and writes down which sites it read for what.

Arguments: the settings as JSON, workdir, the prefix of its report, what to do.
"""

import collections
import json
import sys
from pathlib import Path

from ml_collections import ConfigDict
from screens import tiny_images

from rxrx1_jax.data.images import InMemory
from rxrx1_jax.training import processes, train
from rxrx1_jax.training.run import EMBEDDINGS, Run

joined = processes.join()

import jax  # noqa: E402

read: collections.Counter[int] = collections.Counter()
original = InMemory.__getitem__


def counting(self, i):
    read[int(i)] += 1
    return original(self, i)


InMemory.__getitem__ = counting
images = tiny_images()
config, workdir = ConfigDict(json.loads(sys.argv[1])), Path(sys.argv[2])
works = {
    "train": lambda: train.train_and_evaluate(config, workdir, images),
    "embed": lambda: Run.open(workdir, images=images).embed(workdir / EMBEDDINGS),
}
counts = {}
for name in sys.argv[4:]:
    read.clear()
    works[name]()
    counts[name] = dict(read)
print("said by process", jax.process_index())
report = [joined, jax.process_count(), jax.local_device_count(), counts]
Path(sys.argv[3] + str(jax.process_index())).write_text(json.dumps(report))
processes.leave()
