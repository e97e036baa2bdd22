"""Kills a training ten times at random moments and compares it with one that was left alone.

    python -m benchmarks.kill_training --work=DIR [--config=configs/demo.py --kills=10 --seed=0 ...]

Whatever else is given goes to rxrx1_jax.main, so that any config and dataset can be tried; without
a dataset (--config.data.dir=DIR) a synthetic screen of 16 px is built. Prints what each kill found;
fails unless parameters, learning curves, results and predictions are the same bits in the end.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet as pq

from rxrx1_jax.training import run_dir
from rxrx1_jax.training.run import Run

ROOT = Path(__file__).parent.parent
# What an interruption may change in metrics.jsonl: the fields that are times.
TIMES = {
    "images_per_second", "step_seconds_median", "step_seconds_95th_percentile", "data_wait_share"
}  # fmt: skip

SMALL = {
    "model.width": 8, "optim.batch_size": 8, "optim.epochs": 40, "optim.warmup_epochs": 1.0,
    "train.log_every": 7, "train.eval_every": 1, "train.checkpoint_every": 1, "train.keep": 1,
    "eval.batch_size": 8,
}  # fmt: skip


def curves(workdir: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: x for name, x in line.items() if name not in TIMES} for line in lines]


def assert_same_run(a: Path, b: Path) -> None:
    """Parameters, learning curves, predictions and results, bit for bit."""
    states = (Run.open(path).load() for path in (a, b))
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert curves(a) == curves(b), "metrics.jsonl differs"
    assert run_dir.read_results(a) == run_dir.read_results(b), "results.json differs"
    for name in (path.name for path in a.glob("predictions*.parquet")):
        assert pq.read_table(a / name).equals(pq.read_table(b / name)), f"{name} differs"
    assert (a / "split.csv").read_bytes() == (b / "split.csv").read_bytes(), "split.csv differs"


def build_screen(data: Path) -> list[str]:
    from tfds_builder.rxrx1 import Builder, Rxrx1Config

    sizes = {"huvec": 3, "rpe": 2, "hepg2": 0, "u2os": 0, "treatments": 6, "positive_controls": 2}
    Builder(
        config=Rxrx1Config(name="small", size=16, screen={**sizes, "plates": 1}), data_dir=data
    ).download_and_prepare()
    fields = {"data.dir": data, "data.name": "rxrx1/small", **SMALL}
    return [f"--config.{field}={value}" for field, value in fields.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/demo.py:fold=0")
    parser.add_argument("--work", type=Path, required=True, help="an empty or new directory")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args, fields = parser.parse_known_args()
    draw = random.Random(args.seed)
    args.work.mkdir(parents=True, exist_ok=True)
    if not any(field.startswith("--config.data.dir") for field in fields):
        fields = build_screen(args.work / "data") + fields

    def start(workdir: Path) -> subprocess.Popen:
        command = [sys.executable, "-m", "rxrx1_jax.main", f"--config={args.config}", *fields]
        command.append(f"--workdir={workdir}")
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)

    def progress() -> str:
        names = sorted(path.name for path in (killed / "checkpoints").glob("*"))
        log = killed / "metrics.jsonl"
        lines = log.read_text().count("\n") if log.exists() else 0
        return f"checkpoints {names}, {lines} lines of metrics"

    def newest(workdir: Path) -> int:
        steps = [p.name for p in (workdir / "checkpoints").glob("*") if p.name.isdecimal()]
        return max(map(int, steps), default=0)

    def wait_for_checkpoint(process: subprocess.Popen, workdir: Path) -> None:
        before = newest(workdir)
        while process.poll() is None and newest(workdir) == before:
            time.sleep(0.005)

    once, killed = args.work / "once", args.work / "killed"
    process = start(once)
    wait_for_checkpoint(process, once)
    began = time.monotonic()
    if process.wait():
        sys.exit("the training that was left alone failed")
    seconds = time.monotonic() - began
    for kill in range(1, args.kills + 1):
        process = start(killed)
        wait_for_checkpoint(process, killed)  # else a run may be killed for ever and get nowhere
        wait = draw.uniform(0, 1.5 * seconds / args.kills)
        try:
            sys.exit(f"it ended with status {process.wait(wait)} before kill {kill}")
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        print(f"kill {kill}, {wait:.2f} s after a checkpoint: {progress()}", flush=True)
    status = start(killed).wait()
    if status:
        sys.exit(f"the killed training ended with status {status}")
    assert_same_run(once, killed)
    print(f"{args.kills} kills: parameters, curves, results and predictions are the same bits")


if __name__ == "__main__":
    main()
