"""Accuracy of the demo trained in float32 and in bfloat16, over seeds.

    python -m benchmarks.precision --data DIR [--seeds 3] [--epochs 40] [--work DIR]

DIR holds the demo's dataset (`make demo` builds it). The runs differ in nothing but model.dtype and
train.seed: batch split, fold 0. The last line is the paired difference, bfloat16 - float32.
"""

import argparse
import statistics
import tempfile
from contextlib import nullcontext
from pathlib import Path

from benchmarks.timing import describe
from configs import demo

DTYPES = ("float32", "bfloat16")


def accuracy(data: str, dtype: str, seed: int, epochs: int | None, workdir: Path) -> float:
    """Share of the test sites that a run into `workdir` gets right."""
    from rxrx1_jax import train

    config = demo.get_config("protocol=batch,fold=0")
    config.data.dir, config.model.dtype, config.train.seed = data, dtype, seed
    config.optim.epochs = epochs or config.optim.epochs
    config.optim.warmup_epochs = min(config.optim.warmup_epochs, config.optim.epochs / 2)
    return train.train_and_evaluate(config, workdir)["accuracy"]["site"]["all"]


def mean_and_deviation(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):+.4f} | {deviation:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data", help="data.dir of the demo")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="default: the demo's")
    parser.add_argument("--work", type=Path, help="folder of the runs; default: temporary")
    options = parser.parse_args()
    print(describe(("jax", "flax"), seeds=options.seeds, epochs=options.epochs or "the demo's"))
    found: dict[str, list[float]] = {dtype: [] for dtype in DTYPES}
    with nullcontext(options.work) if options.work else tempfile.TemporaryDirectory() as work:
        for seed in range(options.seeds):
            for dtype in DTYPES:
                workdir = Path(work) / f"{dtype}_{seed}"
                found[dtype].append(
                    accuracy(options.data, dtype, seed, options.epochs, workdir)
                )  # fmt: skip
    print("\n| | accuracy by site, of each seed | mean | standard deviation |\n|---|---|---|---|")
    pairs = zip(*found.values(), strict=True)
    found["difference, paired"] = [second - first for first, second in pairs]
    for name, values in found.items():
        each = ", ".join(f"{value:+.4f}" for value in values)
        print(f"| {name} | {each} | {mean_and_deviation(values)} |")


if __name__ == "__main__":
    main()
