"""The training step on 1, 2, 4 and 8 simulated devices: what each of them computes and holds.

    python -m benchmarks.scaling [--model resnet_demo] [--size 64] [--batch-size 32]

Simulated devices share the cores of one machine, so their speed says nothing about scaling; the
work of one device does. FLOPs and bytes are XLA's own account of the compiled program of a device;
the loss of the first three steps shows that the numbers stay the same. Expected of each device:
FLOPs of the whole batch divided by the devices, plus the update of the parameters, which every
device makes for itself.
"""

import argparse
import os
import subprocess
import sys

DEVICES = (1, 2, 4, 8)


def measure(model_name: str, size: int, batch_size: int, parallelism: str) -> str:
    """A row of the table, on all devices that this process sees."""
    import jax
    import numpy as np

    from benchmarks.given import OnDevices
    from configs import demo
    from rxrx1_jax.data.images import Vocabulary
    from rxrx1_jax.data.stream import Store
    from rxrx1_jax.model.networks import create_model
    from rxrx1_jax.training import optimizers, parallel, steps

    config = demo.get_config()
    config.optim.learning_rate = 0.02
    axis = parallel.AXIS if parallelism == "pmap" else None
    spec = steps.StepSpec(
        create_model(model_name, bn_axis_name=axis),
        *optimizers.create_optimizer(config.optim, 100),
        Vocabulary((), (), np.arange(32)),
        100,
    )
    wrapped = OnDevices(parallelism, spec)
    state = wrapped.put(steps.create_state(spec, jax.random.key(0), (size, size, 6)))
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.standard_normal((batch_size, size, size, 6), np.float32),
        "label": rng.integers(0, 32, batch_size).astype(np.int32),
        "mask": np.ones(batch_size, bool),
    }
    store, draw = Store({}, None), wrapped.draw(batch)
    share = sum(array.addressable_shards[0].data.nbytes for array in draw.planes.values())
    held = sum(array.addressable_shards[0].data.nbytes for array in jax.tree.leaves(state))
    cells = ["–", "–"]  # pmap's wrapper has no account of its program
    if parallelism == "jit":
        compiled = wrapped.train.lower(state, store, draw).compile()
        cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
        cells = [f"{cost['flops'] / 1e9:.3f}", f"{memory.temp_size_in_bytes / 1e6:.1f}"]
    losses = []
    for _ in range(3):
        state, step_metrics = wrapped.train(state, store, draw)
        losses.append(float(np.asarray(step_metrics)[0, 0]))
    numbers = " ".join(f"{loss:.6f}" for loss in losses)
    row = [f"{parallelism}, {jax.device_count()}", *cells]
    row += [f"{held / 1e6:.2f}", f"{share / 1e6:.2f}", numbers]
    return "| " + " | ".join(row) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet_demo")
    parser.add_argument("--size", type=int, default=64, help="px")
    parser.add_argument("--batch-size", type=int, default=32, help="over all devices")
    parser.add_argument("--measure", choices=("jit", "pmap"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(measure(options.model, options.size, options.batch_size, options.measure))
        return
    from benchmarks.timing import describe

    settings = {"model": options.model, "px": options.size, "batch": options.batch_size}
    print(describe(("jax", "flax", "optax"), **settings))
    print("| devices | GFLOP a step | temporary MB | state MB | batch MB | loss of three steps |")
    print("|---|---|---|---|---|---|", flush=True)
    for parallelism in ("jit", "pmap"):
        for devices in DEVICES:
            # The number of devices is fixed when JAX starts.
            environment = {
                **os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices),
            }  # fmt: skip
            command = [sys.executable, "-m", "benchmarks.scaling", *sys.argv[1:]]
            subprocess.run([*command, f"--measure={parallelism}"], env=environment, check=True)


if __name__ == "__main__":
    main()
