"""The training step on a CPU: ours, XLA's own forms, plain Flax Linen and PyTorch.

    python -m benchmarks.train_step                       # ResNet-50 at 64, 128, 224 and 512 px
    python -m benchmarks.train_step --sizes 128 --dtype bfloat16
    python -m benchmarks.train_step --network resnet_demo --sizes 64 --implementations ours xla

Each implementation runs in an interpreter of its own on the first `--threads` cores, in turns. The
figures are images per CPU-second. For accelerators there is `benchmarks.accelerator`.
"""

import argparse
import os
from collections.abc import Callable
from functools import partial

import numpy as np

from benchmarks.implementations import IMPLEMENTATIONS, Case, make, model_flops
from benchmarks.timing import Task, compare, describe, remote

BATCHES = {64: 32, 128: 16, 224: 8, 512: 2}  # of each size in pixels
MATRIX = 2048  # rows and columns of the products that stand for the machine's peak
CALLS = 5  # per turn: one is hardly longer than the clock's tick


def make_product(name: str, threads: int) -> Task:
    """CALLS float32 products of square matrices, for the peak."""
    values = np.random.default_rng(0).standard_normal((2, MATRIX, MATRIX), np.float32)
    if name == "torch.mm":
        import torch

        torch.set_num_threads(threads)
        x, y = torch.from_numpy(values)
        return partial(repeat, lambda: torch.mm(x, y))
    import jax

    a, b = jax.device_put(list(values))
    dot = jax.jit(jax.numpy.dot)
    return partial(repeat, lambda: dot(a, b).block_until_ready())


def repeat(task: Callable[[], object]) -> None:
    for _ in range(CALLS):
        task()


def make_steps(name: str, case: Case, threads: int) -> Task:
    return partial(make(name, case, threads), CALLS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="resnet50", help="of ours and xla")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(BATCHES), help="in pixels")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=1, help="cores")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--implementations", nargs="+", choices=IMPLEMENTATIONS,
                        default=list(IMPLEMENTATIONS))  # fmt: skip
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[: options.threads]
    os.sched_setaffinity(0, cores)  # XLA starts as many threads as it is given cores
    os.environ |= {"OMP_NUM_THREADS": str(options.threads), "JAX_PLATFORMS": "cpu"}
    print(describe(("jax", "flax", "torch"), dtype=options.dtype, threads=options.threads))
    products = {n: remote(make_product, n, options.threads) for n in ("jnp.dot", "torch.mm")}
    flops = 2 * MATRIX**3
    peak = {
        t.name: flops / t.cpu_ms / 1e6
        for t in compare(products, CALLS, "torch.mm", options.rounds)
    }
    text = ", ".join(f"{name} {value:.0f}" for name, value in peak.items())
    print(f"Product of {MATRIX} x {MATRIX} float32, GFLOP per CPU-second: {text}\n", flush=True)
    names = options.implementations
    baseline = "torch" if "torch" in names else names[0]
    table = [
        f"| network, px, batch | implementation | images/CPU-s | / {baseline} (least to largest)"
        " | of jnp.dot's peak |",
        "|---|---|---|---|---|",
    ]
    for px in options.sizes:
        case = Case(options.network, px, BATCHES.get(px, 8), options.dtype)
        tasks = {name: remote(make_steps, name, case, options.threads) for name in names}
        gflop = model_flops("ours", case) / 1e9
        for t in compare(tasks, CALLS * case.rows, baseline, options.rounds):
            least, largest = t.spread
            share = 1000 * gflop / t.cpu_ms / peak["jnp.dot"]
            table.append(
                f"| {case.network}, {px}, {case.rows} | {t.name} | {1000 / t.cpu_ms:.2f}"
                f" | {t.ratio:.2f} ({least:.2f} to {largest:.2f}) | {share:.0%} |"
            )
    print("\n".join(table))


if __name__ == "__main__":
    main()
