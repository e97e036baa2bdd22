"""One training step of ResNet-50 with six channels: ours, plain Flax Linen and PyTorch.

    python -m benchmarks.train_step                                     # 64, 128, 224 and 512 px
    python -m benchmarks.train_step --sizes 128 --dtype bfloat16
    python -m benchmarks.train_step --keep-memory --rounds 9
    python -m benchmarks.train_step --sizes 128 --breakdown             # where our step's time goes
    python -m benchmarks.train_step --peak-tflops 312                   # on an accelerator

A step is forward, backward and SGD with momentum, BatchNorm in training mode, cross-entropy over
1,108 classes, on a batch in memory. On a CPU every implementation runs in an interpreter of its own
on the first `--threads` cores, in turns; the figures are images per CPU-second. On an accelerator
they are images per second and model FLOPs utilisation: the FLOPs of the network's convolutions and
products (three times the forward pass, less the input gradient of the stem), over the peak.
"""

import argparse
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.profile_step import print_breakdown
from benchmarks.timing import compare, describe, remote

CLASSES = 1108
BATCHES = {64: 32, 128: 16, 224: 8, 512: 2}  # of each size in pixels
MATRIX = 2048  # rows and columns of the products that stand for the machine's peak
# Peak TFLOP/s by JAX's device_kind, dense: bfloat16, and float32 at JAX's default precision
# (TF32 on NVIDIA GPUs, one bfloat16 pass on TPUs). From the vendors' data sheets.
PEAK_TFLOPS = {
    "NVIDIA A100-SXM4-40GB": (312.0, 156.0),
    "NVIDIA A100-SXM4-80GB": (312.0, 156.0),
    "NVIDIA H100 80GB HBM3": (989.0, 494.5),
    "NVIDIA H200": (989.0, 494.5),
    "TPU v4": (275.0, 275.0),
    "TPU v5 lite": (197.0, 197.0),
}


def model_flops(px: int) -> float:
    """FLOPs of one training image: a multiplication and an addition are two."""

    def conv(size: int, kernel: int, inputs: int, features: int) -> float:
        return 2.0 * size**2 * kernel**2 * inputs * features

    size = -(-px // 2)
    stem = conv(size, 7, 6, 64)
    size, inputs, total = -(-size // 2), 64, stem + 2.0 * 2048 * CLASSES
    for stage, blocks in enumerate((3, 4, 6, 3)):
        features = 64 * 2**stage
        for i in range(blocks):
            before = size
            size = -(-size // 2) if stage and not i else size
            total += conv(before, 1, inputs, features) + conv(size, 3, features, features)
            total += conv(size, 1, features, 4 * features)
            total += 0 if i else conv(size, 1, inputs, 4 * features)
            inputs = 4 * features
    return 3 * total - stem


def batch_of(px: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.standard_normal((rows, px, px, 6), np.float32)
    return images, rng.integers(0, CLASSES, rows).astype(np.int32)


def make_jax(name: str, px: int, rows: int, dtype: str, threads: int) -> Callable[[], None]:
    """The step of `rxrx1_jax` ("ours") or of the plain Linen network, donating the state."""
    compiled, state, batch = compile_jax(name, px, rows, dtype)

    def run() -> None:
        nonlocal state
        state, metrics = compiled(state, batch)
        metrics.block_until_ready()

    return run


def jax_step(name: str, px: int, rows: int, dtype: str) -> tuple[Any, Any, Any]:
    """The jitted step with the state and the batch that it takes."""
    import jax
    import jax.numpy as jnp
    import optax

    from benchmarks.plain_linen import PlainResNet50
    from rxrx1_jax.data.images import Vocabulary
    from rxrx1_jax.model import networks, resnet
    from rxrx1_jax.training import parallel, steps

    kind = jnp.dtype(dtype)
    ours = name == "ours"
    model = networks.create_model("resnet50", dtype=kind) if ours else PlainResNet50(dtype=kind)
    spec = steps.StepSpec(
        model, optax.sgd(0.01, momentum=0.9), lambda step: jnp.float32(0.01),
        Vocabulary((), (), np.arange(CLASSES)), total_steps=1,
    )  # fmt: skip
    state = steps.create_state(spec, jax.random.key(0), (px, px, 6))
    images, labels = batch_of(px, rows)
    batch = {"image": jnp.asarray(images, kind), "label": labels, "mask": np.ones(rows, bool)}
    batch = jax.device_put(batch)
    step = partial(steps.train_step, spec)
    options = parallel.COMPILER_OPTIONS if ours and resnet.on_cpu() else None
    return jax.jit(step, donate_argnums=0, compiler_options=options), state, batch


def compile_jax(name: str, px: int, rows: int, dtype: str) -> tuple[Any, Any, Any]:
    step, state, batch = jax_step(name, px, rows, dtype)
    return step.lower(state, batch).compile(), state, batch


def make_torch(name: str, px: int, rows: int, dtype: str, threads: int) -> Callable[[], None]:
    """PyTorch, channels_last: eager, or through torch.compile; autocast for bfloat16."""
    import torch

    from benchmarks.plain_torch import plain_resnet50

    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = plain_resnet50(CLASSES).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    forward = torch.compile(network) if name == "torch.compile" else network
    images, labels = batch_of(px, rows)
    images = torch.from_numpy(images).to(device).permute(0, 3, 1, 2)
    targets = torch.from_numpy(labels).long().to(device)

    def run() -> None:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = torch.nn.functional.cross_entropy(forward(images).float(), targets)
        loss.backward()
        optimizer.step()
        loss.item()

    return run


MAKERS = {"ours": make_jax, "linen": make_jax, "torch": make_torch, "torch.compile": make_torch}


def make_product(name: str, threads: int) -> Callable[[], None]:
    """A float32 product of square matrices, for the peak."""
    values = np.random.default_rng(0).standard_normal((2, MATRIX, MATRIX), np.float32)
    if name == "torch.mm":
        import torch

        torch.set_num_threads(threads)
        x, y = torch.from_numpy(values)
        return lambda: torch.mm(x, y)
    import jax

    a, b = jax.device_put(list(values))
    dot = jax.jit(jax.numpy.dot)
    return lambda: dot(a, b).block_until_ready()


def measure_peak(threads: int, rounds: int) -> dict[str, float]:
    """GFLOP per CPU-second of each library's product."""
    tasks = {name: remote(make_product, name, threads) for name in ("jnp.dot", "torch.mm")}
    # Ten calls a turn: one is hardly longer than the clock's tick.
    tasks = {name: partial(_repeat, task, 10) for name, task in tasks.items()}
    timings = compare(tasks, items=10, baseline="torch.mm", rounds=rounds)
    return {t.name: 2 * MATRIX**3 / t.cpu_ms / 1e6 for t in timings}


def _repeat(task: Callable[[], object], times: int) -> None:
    for _ in range(times):
        task()


def peak_memory(name: str, *arguments) -> tuple[float, float, float]:
    """MB of a fresh process: the most resident before the first step and after three, and what
    XLA's program needs for temporary values."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_run_and_tell, args=(there, name, *arguments))
    process.start()
    there.close()
    before, most, temporary = here.recv()
    process.join()
    return before, most, temporary


def _run_and_tell(connection: Any, name: str, px: int, rows: int, dtype: str, threads: int) -> None:
    temporary = float("nan")
    if MAKERS[name] is make_jax:
        compiled, state, batch = compile_jax(name, px, rows, dtype)
        temporary = compiled.memory_analysis().temp_size_in_bytes / 1e6
        before = _most_resident()
        for _ in range(3):
            state, metrics = compiled(state, batch)
            metrics.block_until_ready()
    else:
        task = make_torch(name, px, rows, dtype, threads)
        before = _most_resident()
        _repeat(task, 3)
    connection.send((before, _most_resident(), temporary))


def _most_resident() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


KEPT = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=68719476736:glibc.malloc.arena_max=1"


def on_cpu(options: argparse.Namespace) -> None:
    cores = sorted(os.sched_getaffinity(0))[: options.threads]
    os.sched_setaffinity(0, cores)  # XLA starts as many threads as it is given cores
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    if options.keep_memory:  # read by the C library when an interpreter starts
        os.environ["GLIBC_TUNABLES"] = f"{KEPT}:glibc.malloc.hugetlb=1"
    peak = measure_peak(options.threads, options.rounds)
    text = ", ".join(f"{name} {value:.0f}" for name, value in peak.items())
    print(f"Product of {MATRIX} x {MATRIX} float32, GFLOP per CPU-second: {text}\n")
    print(
        "| px, batch | implementation | images/CPU-s | / torch (least to largest) | / linen |"
        " GFLOP/CPU-s | of jnp.dot's | peak RSS, MB | before the steps | temporary, MB |"
    )
    print("|" + "---|" * 10)
    for px in options.sizes:
        rows = BATCHES.get(px, 8)
        settings = (px, rows, options.dtype, options.threads)
        tasks = {n: remote(MAKERS[n], n, *settings) for n in options.implementations}
        baseline = "torch" if "torch" in tasks else options.implementations[0]
        timings = compare(tasks, items=rows, baseline=baseline, rounds=options.rounds)
        linen = next((t.cpu_ms for t in timings if t.name == "linen"), float("nan"))
        for t in timings:
            before, most, temporary = peak_memory(t.name, *settings)
            gflops = model_flops(px) / t.cpu_ms / 1e6
            print(
                f"| {px}, {rows} | {t.name} | {1000 / t.cpu_ms:.2f} | {t.cpu_ratio:.2f}"
                f" ({t.cpu_spread[0]:.2f} to {t.cpu_spread[1]:.2f}) | {linen / t.cpu_ms:.2f}"
                f" | {gflops:.0f} | {gflops / peak['jnp.dot']:.0%} | {most:.0f} | {before:.0f}"
                f" | {temporary:.0f} |",
                flush=True,
            )


def on_accelerator(options: argparse.Namespace, kind: str, platform: str) -> None:
    peak = options.peak_tflops
    if peak is None and kind in PEAK_TFLOPS:
        peak = PEAK_TFLOPS[kind][options.dtype != "bfloat16"]
    if peak is None:
        print(f"{kind} is not among the known devices: name its peak with --peak-tflops\n")
        peak = float("nan")
    print("| px, batch | implementation | images/s | model FLOPs utilisation |\n|---|---|---|---|")
    # PyTorch sees NVIDIA GPUs only.
    names = [n for n in options.implementations if platform == "gpu" or MAKERS[n] is make_jax]
    for px in options.sizes:
        rows = options.batch or 16 * BATCHES.get(px, 8)
        for name in names:
            task = MAKERS[name](name, px, rows, options.dtype, options.threads)
            _repeat(task, 3)
            seconds = []
            for _ in range(options.rounds):
                started = time.perf_counter()
                _repeat(task, 10)
                seconds.append((time.perf_counter() - started) / 10)
            rate = rows / statistics.median(seconds)
            used = rate * model_flops(px) / (peak * 1e12)
            print(f"| {px}, {rows} | {name} | {rate:.0f} | {used:.1%} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=list(BATCHES), help="in pixels")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=1, help="cores of the CPU")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--keep-memory", action="store_true",
        help="freed memory stays with every process, in huge pages (Linux, glibc)",
    )  # fmt: skip
    parser.add_argument("--batch", type=int, help="on an accelerator; default 16 times the CPU's")
    parser.add_argument("--peak-tflops", type=float, help="of the accelerator, at --dtype")
    parser.add_argument("--implementations", nargs="+", choices=MAKERS, default=list(MAKERS))
    parser.add_argument("--breakdown", action="store_true", help="profile our step instead")
    options = parser.parse_args()
    if options.breakdown:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    # In a child, so that this process starts no XLA threads before it chooses its cores.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        kind, platform = pool.apply(_device)
    print(
        describe(
            ("jax", "flax", "torch"),
            device=kind,
            dtype=options.dtype,
            threads=options.threads,
            memory_kept=options.keep_memory,
        )
    )
    if options.breakdown:
        for px in options.sizes:
            rows = BATCHES.get(px, 8)
            print(f"\nours, {px} px, batch {rows}")
            print_breakdown(*compile_jax("ours", px, rows, options.dtype))
    elif platform == "cpu":
        on_cpu(options)
    else:
        on_accelerator(options, kind, platform)


def _device() -> tuple[str, str]:
    import jax

    return jax.devices()[0].device_kind, jax.default_backend()


if __name__ == "__main__":
    main()
