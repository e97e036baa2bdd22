"""Calls an exported program (the first argument) with JAX alone: FOLDER/given.npz -> found.npz.

Neither this project nor what it is built on can be imported here.
"""

import sys
from pathlib import Path

for name in ("rxrx1_jax", "flax", "optax", "orbax", "tfds_builder", "benchmarks"):
    sys.modules[name] = None  # type: ignore[assignment]

import jax  # noqa: E402
import numpy as np  # noqa: E402

file, folder = Path(sys.argv[1]), Path(sys.argv[2])
program = jax.export.deserialize(bytearray(file.read_bytes()))
given = list(np.load(folder / "given.npz").values())
found = {}
for count in (len(given[0]), 3):
    log_probs, embedding = program.call(*(array[:count] for array in given))
    found |= {f"log_probs{count}": log_probs, f"embedding{count}": embedding}
np.savez(folder / "found.npz", **found)
print(*program.platforms)
