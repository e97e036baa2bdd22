"""Made-up leaderboards of several worlds, with batch effects and without: known answers."""

import json
from itertools import product
from pathlib import Path

import numpy as np
from finished_runs import EXPERIMENTS, make_predictions, make_run

from rxrx1_jax.methods.catalogue import find
from rxrx1_jax.training.predictions import write_predictions

# Of 80 sites: what each method has above the baseline's 48, in worlds 0 to 3.
WORLDS, BASE, SITES = 4, 48, 80
ABOVE = {
    "baseline": [0, 0, 0, 0], "norm_site": [-4, 0, 2, 6], "gain_jitter": [-12, -8, -10, -14],
    "baseline_80": [4, 2, 0, 6], "cutmix_80": [6, 2, 4, 8], "adabn": [8, 6, 10, 4],
    "random_well": [6, 12, 14, 8], "without": [0, 2, 0, -2],
}  # fmt: skip


def world(k):
    return f"rxrx1_jax.data.smoke.screen(size=16, seed={k})"


def right(above):
    """BASE + above of the SITES of four cell types."""
    counts = np.diff(np.linspace(0, BASE + above, 5).round().astype(int))
    return {name: (int(n), 5) for name, n in zip(EXPERIMENTS, counts, strict=True)}


def made(folder, method, protocol, k, above):
    path = folder / method / f"w{k}" / f"{protocol}-0-0"
    return make_run(path, right(above), name=world(k), protocol=protocol)


def make_boards(effects: Path, without: Path) -> None:
    """Leaderboards of WORLDS worlds on the smoke screen."""
    trained = "baseline", "norm_site", "gain_jitter", "baseline_80", "cutmix_80"
    for k, method in product(range(WORLDS), trained):
        run = made(effects, method, "batch", k, ABOVE[method][k])
        if method == "baseline":
            (run / "corrections").mkdir()
            table = make_predictions(right(ABOVE["adabn"][k]))
            write_predictions(run / "corrections/adabn_experiment.parquet", table)
            version = str(find("adabn_experiment").version)
            entry = {"step": "600", "version": version, "refused": ""}
            (run / "assessment.json").write_text(json.dumps({"adabn_experiment": entry}))
    for k in range(WORLDS):
        made(effects, "baseline", "random_well", k, ABOVE["random_well"][k])
        made(without, "baseline", "batch", k, 0)
        made(without, "baseline", "random_well", k, ABOVE["without"][k])
