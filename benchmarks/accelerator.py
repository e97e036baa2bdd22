"""What an accelerator gives: step, loop, evaluation, memory, compile times, the same bits twice.

    python -m benchmarks.accelerator --out=DIR               # 9 minutes
    python -m benchmarks.accelerator --out=DIR --data=DIR    # datasets, of the sizes that are there
    python -m benchmarks.accelerator --out=DIR --small       # a miniature, on a CPU too

Each part runs in a process of its own, so that it has the device's memory to itself. "Step" is the
compiled step of a run, which makes its batch and trains on it, again on the same sites. "Loop" is
`python -m rxrx1_jax.main` at work: its own log says how fast. Plain Flax Linen and PyTorch, where
it is installed, train ResNet-50 on a batch that is ready. So does ours with another form of the
first convolution, to see whether it is worth having. The parts go on until the time is up, the most
important first. DIR gets accelerator.json and accelerator.md, written again after each part.
"""

import argparse
import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.implementations import STEM, TORCH
from benchmarks.parts import DETERMINISM, RUN, Part, measure
from benchmarks.timing import describe
from rxrx1_jax.data.files import write_text

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
LEAST_SECONDS = 30  # left, to begin another part


def parts(small: bool) -> list[Part]:
    if small:
        tiny: dict[str, Any] = dict(px=16, rows=8, dtype="float32", sites=32, images=64,
                                    seconds=0.1, blocks=(1,))  # fmt: skip
        networks = {RUN: "resnet_demo", "linen": "resnet50", "torch": "resnet50"}
        networks |= {DETERMINISM: "resnet_demo", "ours": "resnet18", STEM: "resnet18"}
        return [Part(kind, network, **tiny) for kind, network in networks.items()]
    sizes = {64: (256, 8192, 100_000), 128: (256, 4096, 80_000), 224: (256, 2048, 30_000),
             512: (64, 1024, 6_000)}  # fmt: skip
    part = {
        px: Part(RUN, "resnet50", px, rows, sites=sites, images=images)
        for px, (rows, sites, images) in sizes.items()
    }
    # All of RxRx1 fits on no device at 512 px.
    part[512] = dataclasses.replace(part[512], cache="none")
    demo = dataclasses.replace(part[64], network="resnet_demo", rows=32, images=300_000)
    order = [part[224], part[512], demo, part[128], part[64], Part(DETERMINISM, "resnet18")]
    for px in (224, 512, 128, 64):
        kinds = (*reversed(TORCH), *(["linen"] if px in (224, 128) else []))
        order += [dataclasses.replace(part[px], kind=kind) for kind in kinds]
    return [*order, *(dataclasses.replace(part[224], kind=kind) for kind in ("ours", STEM))]


def start(part: Part, data: Path | None, seconds: float) -> dict[str, Any]:
    """`measure` in a process of its own; {"failed": why} where it gave nothing."""
    command = [sys.executable, "-m", "benchmarks.accelerator", "--out=.", "--part"]
    command += [json.dumps(dataclasses.asdict(part)), *([f"--data={data}"] if data else [])]
    pipe = subprocess.PIPE
    options: dict[str, Any] = dict(stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    with subprocess.Popen(command, **options) as process:
        try:
            out, said = process.communicate(timeout=seconds)
        except BaseException as error:  # its own children, too, would keep the device
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                return {"failed": "the time was up"}
            raise
    if process.returncode:
        return {"failed": (said.strip().splitlines() or ["killed"])[-1]}
    return json.loads(out.splitlines()[-1])


def markdown(results: dict[str, Any]) -> str:
    """The tables of the parts that were measured, and what the others failed of."""
    lines = [results["about"]]
    good = {name: r for name, r in results["parts"].items() if "failed" not in r["found"]}
    of_kind: dict[str, list[dict[str, Any]]] = {}
    for result in good.values():
        of_kind.setdefault(result["part"]["kind"], []).append(result)
    lines += list(_runs(of_kind.get(RUN, [])))
    lines += list(_rivals(of_kind))
    for ours, stem in zip(of_kind.get("ours", []), of_kind.get(STEM, []), strict=False):
        ratio = stem["found"]["step"] / ours["found"]["step"]
        said = f"{ratio:.3f} of ours"
        lines.append(f"\nThe first convolution as 4x4 over blocks of 2x2 pixels: {said}.")
    for result in of_kind.get(DETERMINISM, []):
        found = result["found"]
        said = "the same bits" if found["equal"] else f"not the same: {found['differs']}"
        lines.append(f"\nTwo cold runs of {result['part']['network']}: {said}.")
    for name, result in results["parts"].items():
        if name not in good:
            lines.append(f"\nNot measured, {name}: {result['found']['failed']}")
    return "\n".join(lines) + "\n"


def _runs(runs: list[dict[str, Any]]) -> Iterator[str]:
    yield (
        "| network, px, batch, data.cache | first step, s | step, images/s | loop | loop / step"
        " | evaluation | / forward pass | model FLOPs utilisation | memory planned, GB | used |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for run in runs:
        part, found = run["part"], run["found"]
        peak = PEAK_TFLOPS.get(found["device"], (math.nan, math.nan))[part["dtype"] != "bfloat16"]
        used = found["step"] * found["flops"] / (peak * 1e12)
        memory = "–" if found["peak_bytes"] is None else f"{found['peak_bytes'] / 1e9:.1f}"
        share = "–" if math.isnan(used) else f"{used:.1%}"
        cells = [
            f"{part['network']}, {part['px']}, {part['rows']}, {part['cache']}",
            f"{found['first_step_seconds']:.0f}", f"{found['step']:,.0f}", f"{found['loop']:,.0f}",
            f"{found['loop'] / found['step']:.3f}", f"{found['evaluation']:,.0f}",
            f"{found['evaluation'] / found['forward']:.2f}", share,
            f"{found['planned_bytes'] / 1e9:.1f}", memory,
        ]  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def _rivals(of_kind: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    names = [RUN, "linen", *TORCH]
    steps = {
        name: {r["part"]["px"]: r["found"]["step"] for r in of_kind.get(name, [])
               if name != RUN or r["part"]["network"] == "resnet50"}
        for name in names
    }  # fmt: skip
    yield "\n| ResNet-50, px | ours, images/s | Linen | torch | torch.compile | ours / best torch |"
    yield "|---|---|---|---|---|---|"
    for px in sorted({px for by_size in steps.values() for px in by_size}):
        rates = [steps[name].get(px) for name in names]
        torch = max((rate for rate in rates[2:] if rate), default=None)
        cells = ["–" if rate is None else f"{rate:,.0f}" for rate in rates]
        ratio = f"{rates[0] / torch:.3f}" if rates[0] and torch else "–"
        yield f"| {px} | {' | '.join(cells)} | {ratio} |"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of what is saved")
    parser.add_argument("--data", type=Path, help="--data_dir of `tfds build`")
    parser.add_argument("--minutes", type=float, default=9.0, help="no part begins later")
    parser.add_argument("--small", action="store_true", help="a miniature, which says nothing")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.part:
        print(json.dumps(measure(Part(**json.loads(options.part)), options.data)))
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    cache = options.out / "cache"  # for the second time that a part needs a program
    shutil.rmtree(cache, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache.absolute())
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    about = describe(("jax", "flax", "torch"), small=options.small, data=options.data)
    results: dict[str, Any] = {"about": about, "parts": {}}
    end = time.monotonic() + 60 * options.minutes
    for part in parts(options.small):
        left = end - time.monotonic()
        found = {"failed": "the time was up"}
        if left > LEAST_SECONDS:
            found = start(part, options.data, left)
        results["parts"][part.name] = {"part": dataclasses.asdict(part), "found": found}
        print(f"{part.name}: {found}", flush=True)
        write_text(options.out / "accelerator.json", json.dumps(results, indent=1))
        write_text(options.out / "accelerator.md", markdown(results))
    print(f"\n{markdown(results)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
