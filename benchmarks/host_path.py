"""What the host does for each site of a training under Python's lock, which no core can share.

    python -m benchmarks.host_path --data=DIR    # a dataset of `tfds build`, any size

Inflating and copying hold no lock, so threads share them out over cores. The rest is Python: the
order, a site's reading but for its inflating, and what the main thread does for a step of ResNet-50
on several devices (simulated ones, of 16 px, so that little but the calls is left). Each figure is
CPU time of a thread, system calls included, which also hold no lock: at most so much is under it.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.parts import Part, find_images
from benchmarks.timing import describe
from rxrx1_jax.data import reading, records, samplers
from rxrx1_jax.data.splits import Split

SITES = 73_068  # training sites of an epoch of RxRx1
BATCH = 256
RATE = 1_200  # sites per second of one H100 at 512 px; 1,108 were measured


def order_seconds(sites: int, batch: int) -> float:
    """Of a site in an epoch: the sampler, and the rows of what a run keeps."""
    none = np.zeros(0, np.int64)
    rows = np.arange(sites)
    order = samplers.shuffled()(np.zeros(sites), Split(rows, none, none, none, {}), batch, 0)
    calls = reading.calls(0, sites // batch, 1, ())
    begun = time.thread_time()
    for _ in reading.choices(order, rows, calls, (1, batch, 0)):
        pass
    return (time.thread_time() - begun) / sites


def read_seconds(images: records.Records, rounds: int) -> float:
    """Of a site: all of its reading but the inflating, which gives the same bytes each time."""
    plain, inflate = images[0].tobytes(), records.deflate.zlib_decompress
    memory = np.empty((len(images), *images.image_shape), np.uint8)
    memory[:] = 0  # its pages are there
    seconds = []
    records.deflate.zlib_decompress = lambda *_: plain
    try:
        for _ in range(rounds):
            begun = time.thread_time()
            for row in range(len(images)):
                memory[row] = images[row]
            seconds.append((time.thread_time() - begun) / len(images))
    finally:
        records.deflate.zlib_decompress = inflate
    return statistics.median(seconds)


def call_seconds(network: str, batch: int, calls: int) -> float:
    """Of a step in the main thread: its batch is put on the devices, the step is begun."""
    import jax

    from rxrx1_jax import config as config_lib
    from rxrx1_jax.training import setup

    config = config_lib.default()
    config_lib.change(config, {
        "data.protocol": "official", "data.cache": "none", "model.name": network, "model.width": 4,
        "optim.batch_size": batch, "eval.batch_size": batch, "train.max_steps": calls + 3,
    })  # fmt: skip
    ready = setup.prepare(config, find_images(Part("run", px=16, sites=batch * 8 // 7 + 8), None))
    state, store, step = ready.init(), ready.train_store(), ready.train_step
    seconds = []
    draws: Iterator[Any] = ready.train_draws(0)
    for _ in range(calls):
        begun = time.thread_time()
        state, metrics = step(state, store, next(draws))
        seconds.append(time.thread_time() - begun)
        jax.block_until_ready(metrics)
    return statistics.median(seconds[2:])  # the first ones compile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="--data_dir of `tfds build`")
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(options.devices)}
    path = next(iter(sorted(options.data.glob("*/*/*.*.*"))))
    print(describe(("jax", "deflate"), network=options.network, devices=options.devices, data=path))
    parts: dict[str, Callable[[], float]] = {
        "order of the sites": lambda: order_seconds(SITES, BATCH),
        "reading, without inflating": lambda: read_seconds(records.Records(path), options.rounds),
        "a step, by its sites":
            lambda: call_seconds(options.network, BATCH, options.rounds) / BATCH,
    }  # fmt: skip
    rate = options.devices * RATE
    print(f"| at most under Python's lock | us per site | of one core at {rate:,} sites/s |")
    print("|---|---|---|", flush=True)
    together = 0.0
    for name, part in parts.items():
        together += (us := 1e6 * part())
        print(f"| {name} | {us:.2f} | {us * rate / 1e6:.1%} |", flush=True)
    print(f"| together | {together:.2f} | {together * rate / 1e6:.1%} |")


if __name__ == "__main__":
    main()
