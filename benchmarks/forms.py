"""What our forms of operations save on a CPU: the training step as it is, and with XLA's own forms.

    python -m benchmarks.forms --rounds 5

"Ours" writes some convolutions as matrix products and keeps the place of each maximum in pooling
(rxrx1_jax/model/resnet.py), and asks the compiler for a schedule that saves memory. "Plain" is the
same network and step without the three. Each runs in an interpreter of its own on one core, in
turns.
"""

import argparse
import os
from collections.abc import Callable
from functools import partial

import numpy as np

from benchmarks.timing import compare, describe, remote

CASES = (("resnet_demo", 64, 32, 32), ("resnet18", 64, 32, 1108), ("resnet50", 128, 16, 1108))
STEPS = 5  # per turn: one of the demo is hardly longer than the clock's tick


def make(form: str, name: str, px: int, rows: int, classes: int) -> Callable[[], None]:
    """STEPS steps of the network `name`, compiled; prints what they need in memory."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import optax

    from rxrx1_jax.data.images import Vocabulary
    from rxrx1_jax.model import networks, resnet
    from rxrx1_jax.training import parallel, steps

    options = parallel.COMPILER_OPTIONS if resnet.on_cpu() else None
    if form == "plain":
        resnet.on_cpu, options = lambda: False, None
        window = dict(window_shape=(3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        resnet.max_pool = partial(nn.max_pool, **window)
    spec = steps.StepSpec(
        networks.create_model(name), optax.sgd(0.01, momentum=0.9), lambda step: jnp.float32(0.01),
        Vocabulary((), (), np.arange(classes)), total_steps=1,
    )  # fmt: skip
    state = steps.create_state(spec, jax.random.key(0), (px, px, 6))
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.standard_normal((rows, px, px, 6), np.float32),
        "label": rng.integers(0, classes, rows).astype(np.int32),
        "mask": np.ones(rows, bool),
    }
    batch = jax.device_put(batch)
    step = partial(steps.train_step, spec)
    jitted = jax.jit(step, donate_argnums=0, compiler_options=options)
    compiled = jitted.lower(state, batch).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes / 1e6
    print(f"{name}, {form}: {temporary:.0f} MB of temporary memory", flush=True)

    def run() -> None:
        nonlocal state
        for _ in range(STEPS):
            state, metrics = compiled(state, batch)
        metrics.block_until_ready()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    print(describe(("jax", "flax"), steps=STEPS, rounds=options.rounds))
    lines = ["| network, px, batch | forms | CPU ms per step | times faster |", "|---|---|---|---|"]
    for case in CASES:
        tasks = {form: remote(make, form, *case) for form in ("ours", "plain")}
        for t in compare(tasks, items=STEPS, baseline="plain", rounds=options.rounds):
            spread = f"{t.cpu_spread[0]:.2f} to {t.cpu_spread[1]:.2f}"
            name = ", ".join(map(str, case[:3]))
            lines.append(f"| {name} | {t.name} | {t.cpu_ms:.0f} | {t.cpu_ratio:.2f} ({spread}) |")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
