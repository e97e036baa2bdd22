"""Made-up finished runs whose every accuracy is chosen, and JSON files changed in place."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from rxrx1_jax.config import change, default
from rxrx1_jax.report.runs import load_runs
from rxrx1_jax.training.predictions import accuracies, write_predictions

EXPERIMENTS = {"HUVEC": "HUVEC-05", "RPE": "RPE-03", "HEPG2": "HEPG2-02", "U2OS": "U2OS-01"}


def make_predictions(right: dict[str, tuple[int, int]], wells: int = 10) -> pa.Table:
    """`wells` wells of two sites a cell type; right: cell type -> (sites, wells) predicted well."""
    rows = []
    for cell_type, (right_sites, right_wells) in right.items():
        for i in range(2 * wells):
            well = i // 2
            rows.append(
                {
                    "site_id": f"{EXPERIMENTS[cell_type]}_1_W{well}_{i % 2 + 1}",
                    "well_id": f"{EXPERIMENTS[cell_type]}_1_W{well}",
                    "cell_type": cell_type,
                    "experiment": EXPERIMENTS[cell_type],
                    "label": 3,
                    "prediction": 3 if i < right_sites else 4,
                    "top5": [3 if i < right_sites else 5, 4],
                    "well_prediction": 3 if well < right_wells else 4,
                }
            )
    return pa.Table.from_pylist(rows)


def make_run(
    path: Path, right: dict[str, tuple[int, int]] | pa.Table, source: str = "synthetic",
    **changes: Any,
) -> Path:  # fmt: skip
    """right: as `make_predictions` takes it, or predictions; changes: section__name=value of its
    settings; protocol, fold ... are those of `data`."""
    path.mkdir(parents=True)
    table = right if isinstance(right, pa.Table) else make_predictions(right)
    write_predictions(path / "predictions.parquet", table)
    config = default()
    settings = {
        "data.name": "rxrx1/synthetic", "model.name": "resnet_demo", "optim.batch_size": 32,
        "optim.learning_rate": 0.004, "optim.epochs": 30,
        "data.dir": str(path / "nowhere"),  # differs from run to run, as it may
    }  # fmt: skip
    for field, value in changes.items():
        settings[field.replace("__", ".") if "__" in field else f"data.{field}"] = value
    change(config, settings)
    data = config.data
    results = {
        "data": {
            "name": data.name, "version": "1.0.0", "source": source, "classes": 32,
            "image_size": 64, "train_sites": 640, "test_sites": len(table),
        },
        "protocol": data.protocol, "fold": data.fold, "cell_type": data.cell_type,
        "normalisation": data.normalisation, "model": config.model.name,
        "epochs": config.optim.epochs, "seed": config.train.seed, "step": 600, "total_steps": 600,
        "accuracy": accuracies(table), "loss": 1.25,
    }  # fmt: skip
    saved = config.to_dict() | {
        "dataset": {"version": "1.0.0", "data_fingerprint": "5ca1ab1e"},
    }
    environment = {"commit": "abc1234", "python": "3.11", "devices": ["cpu:cpu"],
                   "packages": {"jax": "0.10.2"}}  # fmt: skip
    for name, content in (("results", results), ("config", saved), ("environment", environment)):
        (path / f"{name}.json").write_text(json.dumps(content))
    lines = []
    for epoch in range(1, 31):
        step = {"step": 20 * epoch, "epoch": float(epoch)}
        fit = 1 - 0.9**epoch
        lines.append(step | {"train_loss": 3.4 * (1 - fit) + 0.1, "train_accuracy": 0.95 * fit})
        if epoch % 5 == 0:
            lines.append(step | {"test_loss": 3.4 - 2 * fit, "test_accuracy": 0.6 * fit})
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def all_right(sites: int, wells: int) -> dict[str, tuple[int, int]]:
    return dict.fromkeys(EXPERIMENTS, (sites, wells))


def change_settings(run: Path, **changes: Any) -> None:
    """section__name=value, in the settings of a run and in those of its checkpoint of step 8."""
    for field, value in changes.items():
        section, name = field.split("__")
        with edited(run / "config.json") as config:
            config[section][name] = value
        with edited(run / "checkpoints" / "8" / "about" / "metadata") as about:
            about["settings"][f"{section}.{name}"] = value


@contextmanager
def edited(path: Path) -> Iterator[Any]:
    """The content of a JSON file, written back with what was changed in it."""
    content = json.loads(path.read_text())
    yield content
    path.write_text(json.dumps(content))


def one_screen(paths):
    ((screen, runs),) = load_runs(paths).items()
    return screen, runs


def cells(table) -> dict[str, list[str]]:
    """{first cell: the others}; headings have no others."""
    return {str(first): [str(cell) for cell in rest] for first, *rest in table.rows}
