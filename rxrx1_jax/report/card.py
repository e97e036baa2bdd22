"""The model card of an exported run: what it was trained on, how, how well, and what is allowed."""

from collections.abc import Mapping
from typing import Any

from rxrx1_jax.config import FREE, default, flat
from rxrx1_jax.methods.evidence import SEEN, budget_of
from rxrx1_jax.methods.statistics import worst_experiment
from rxrx1_jax.report.tables import Cell, Table, Value
from rxrx1_jax.training.run import Run

LICENCES = {  # beginning of the data's source -> what is said of their licence
    "release": "The images are RxRx1, of Recursion (https://www.rxrx.ai/rxrx1), under CC BY-NC-SA"
    " 4.0: name the source, no commercial use, share alike. Ask its owner, or a lawyer, what that"
    " means for weights that were trained on them.",
    "synthetic": "The images are drawn by rxrx1_jax: no image of RxRx1 is among them.",
}
OWN = "The images are not those of a dataset of rxrx1_jax: their owner's licence counts."


def card(run: Run, results: Mapping[str, Any], use: str) -> str:
    """Markdown. results: of the checkpoint that is exported. use: the part on how to use it."""
    data, config = results["data"], flat(run.config)
    normal = flat(default())
    settings = ", ".join(
        f"{field}={value}" for field, value in config.items()
        if value != normal[field] and field not in FREE
    )  # fmt: skip
    budget = budget_of(run.uses)
    init = config["model.init"]
    begun = f"{init} ({run.fingerprint.get('init', '')})" if init else "random weights"
    about: list[list[Cell]] = [
        ["data", f"{data['name']} {data['version']}, {data['source']}"],
        ["classes", f"{data['classes']} siRNAs, in the order of `classes` in vocabulary.json"],
        ["split", f"{config['data.protocol']}, fold {config['data.fold']}, cell type"
         f" {config['data.cell_type']}: {data['train_sites']:,} training and"
         f" {data['test_sites']:,} test sites"],
        ["budget", f"{budget}: {SEEN[budget]}"],
        ["began with", begun],
        ["trained", f"{results['step']:,} of {results['total_steps']:,} steps"],
        ["normalisation", config["data.normalisation"]],
    ]  # fmt: skip
    licence = next((x for name, x in LICENCES.items() if data["source"].startswith(name)), OWN)
    return "\n".join(
        [
            f"# {config['model.name']} trained on {data['name']}", "",
            Table("What it is", ["", ""], about, [f"Not by default: {settings}."]).markdown(),
            _accuracy(results["accuracy"]).markdown(),
            "## How to use it", "", use, "", "## Licence of the data", "", licence, "",
        ]
    )  # fmt: skip


def _accuracy(found: Mapping[str, Any]) -> Table:
    def row(name: str, of: Any) -> list[Cell]:
        return [name, *(Value(100 * of(found[unit])) for unit in ("site", "well"))]

    rows = [row("all", lambda a: a["all"])]
    for name in found["site"]["cell_type"]:
        rows.append(row(name, lambda a, name=name: a["cell_type"][name]))
    rows.append(row("worst experiment", lambda a: worst_experiment(a["experiment"])[1]))
    head = ["test accuracy, %", "by site", "by well"]
    return Table("Accuracy on the test sites", head, rows)
