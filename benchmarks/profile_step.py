"""Where the time of a compiled training step goes, from JAX's profiler; for `train_step.py`."""

import collections
import glob
import gzip
import json
import re
import tempfile
from typing import Any


def print_breakdown(compiled: Any, state: Any, batch: Any) -> None:
    """Shares of the steps by class of operation, as a Markdown table.

    compiled: the compiled step, (state, batch) -> (state, metrics), with the state donated.
    """
    import jax  # not above: the interpreters that run PyTorch import this module too

    classes = classify(compiled.as_text())
    state, _ = compiled(state, batch)
    spent: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(3):
                state, metrics = compiled(state, batch)
                metrics.block_until_ready()
        (path,) = glob.glob(f"{folder}/**/*.trace.json.gz", recursive=True)
        with gzip.open(path) as file:
            events = json.load(file)["traceEvents"]
    for event in events:
        operation = event.get("args", {}).get("hlo_op")
        if event.get("ph") == "X" and operation:
            spent[classes.get(operation, "rest")] += event["dur"]
    total = sum(spent.values())
    print(f"{total / 3e3:.0f} ms a step in XLA's operations\n")
    print("| | share |\n|---|---|")
    for kind, microseconds in spent.most_common():
        print(f"| {kind} | {microseconds / total:.0%} |")


def classify(hlo: str) -> dict[str, str]:
    """{operation of the compiled module: its class}."""
    contents: dict[str, str] = {}  # of every computation
    lines: list[tuple[str, str]] = []
    current = ""
    for line in hlo.splitlines():
        if heading := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            current = heading[1]
            contents[current] = ""
        elif found := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)", line):
            contents[current] += line
            lines.append((found[1], found[2]))
    classes = {}
    for operation, text in lines:
        called = re.search(r"calls=%?([\w.\-]+)", text)
        body = text + (contents.get(called[1], "") if called else "")
        path = re.search(r'op_name="([^"]*)"', text)
        name = path[1] if path else ""
        multiplies = re.search(r"\b(convolution|dot)\(", body)
        if multiplies:
            forward = name and "transpose(" not in name
            part = f"products and convolutions, {'forward' if forward else 'gradients'}"
        elif re.search(r"bn\d|downsample_bn", name):
            part = "BatchNorm, shortcut, ReLU"
        else:
            part = "pooling, loss, optimizer, unnamed"
        classes[operation] = part
    return classes
