"""Start-up: how long `--help` takes, and the command until its first training step is complete.

    python -m benchmarks.startup [--work DIR] [--rounds 5] [--model resnet_demo]

Every round starts fresh processes. The compilation cache lies in a temporary folder; the first run,
which fills it, is the cold one. The stages of a warm start are CPU and wall seconds in a process
that walks through the same calls as `train.train_and_evaluate`.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.screens import use_screen
from benchmarks.timing import describe
from configs import demo

STAGES = """
import sys, time
stages, last = [], (time.perf_counter(), time.process_time())
def stage(name):
    global last
    now = time.perf_counter(), time.process_time()
    print(f"{name}|{now[0] - last[0]}|{now[1] - last[1]}")
    last = now
import jax, jax.numpy
stage("import jax")
import flax.linen, optax
stage("import flax, optax")
import orbax.checkpoint
stage("import orbax")
from rxrx1_jax.training import train
stage("import the rest")
from configs import demo
config = demo.get_config()
config.data.dir, config.data.name, config.model.name = sys.argv[1:4]
setup = train.prepare(config)
stage("sites, split, trace")
state = jax.block_until_ready(setup.init())
stage("initial state")
store, draws = setup.train_store(), setup.train_draws(0)
arguments = state, store, next(draws)
jax.block_until_ready(arguments)
stage("first planes")
lowered = setup.train_step.lower(*arguments)
stage("step: lower")
compiled = lowered.compile()
stage("step: from the cache")
jax.block_until_ready(compiled(*arguments))
stage("step: run")
"""


def until_first_step(arguments: list[str], workdir: Path) -> float:
    """Seconds from the command to the line of step 1; the rest of the run is not waited for."""
    command = [
        sys.executable, "-m", "rxrx1_jax.main", *arguments, f"--workdir={workdir}",
        "--config.train.log_every=1",
    ]  # fmt: skip
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step 1/"):
                took = time.perf_counter() - began
                process.kill()
                return took
    raise SystemExit("the command ended before its first step")


def stages(arguments: list[str]) -> list[tuple[str, float, float]]:
    """(name, wall s, CPU s) of each stage."""
    command = [sys.executable, "-c", STAGES, *arguments]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows = [line.split("|") for line in out.splitlines() if line.count("|") == 2]
    return [(name, float(wall), float(cpu)) for name, wall, cpu in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("data"), help="where the screen is kept")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="resnet_demo")
    options = parser.parse_args()
    config = demo.get_config()
    use_screen(config, options.work, 64)
    print(describe(("jax", "flax", "orbax-checkpoint"), rounds=options.rounds, model=options.model))
    helps = []
    for module in ("main", "report"):
        for _ in range(options.rounds):
            began = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", f"rxrx1_jax.{module}", "--help"],
                capture_output=True, check=False,
            )  # fmt: skip
            helps.append((module, time.perf_counter() - began))
    print("| | median s | min to max |\n|---|---|---|")
    for module in ("main", "report"):
        _row(f"rxrx1_jax.{module} --help", [took for name, took in helps if name == module])
    with tempfile.TemporaryDirectory() as folder:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/cache"
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        arguments = [
            "--config=configs/demo.py", f"--config.data.dir={config.data.dir}",
            f"--config.data.name={config.data.name}", f"--config.model.name={options.model}",
        ]  # fmt: skip
        _row("command to first step, cold", [until_first_step(arguments, Path(folder) / "cold")])
        warm = [
            until_first_step(arguments, Path(folder) / f"warm{i}") for i in range(options.rounds)
        ]
        _row("command to first step, warm cache", warm)
        walk = [config.data.dir, config.data.name, options.model]
        stages(walk)  # it may differ from the command by some small program
        rounds = [stages(walk) for _ in range(options.rounds)]
    print("\n| stage of a warm start | wall s | CPU s |\n|---|---|---|")
    for rows in zip(*rounds, strict=True):
        wall, cpu = (statistics.median(row[i] for row in rows) for i in (1, 2))
        print(f"| {rows[0][0]} | {wall:.2f} | {cpu:.2f} |")


def _row(name: str, seconds: list[float]) -> None:
    low, high = min(seconds), max(seconds)
    print(f"| {name} | {statistics.median(seconds):.2f} | {low:.2f} to {high:.2f} |", flush=True)


if __name__ == "__main__":
    main()
