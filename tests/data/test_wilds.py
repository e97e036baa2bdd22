"""A run as WILDS has it: three channels, controls as classes, accuracies of three sets."""

import contextlib
import importlib
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
import wilds_screen
from ml_collections import ConfigDict

from configs import wilds
from rxrx1_jax import config as config_lib
from rxrx1_jax.data import splits
from rxrx1_jax.data.images import InMemory
from rxrx1_jax.report import __main__ as report
from rxrx1_jax.training import optimizers, train
from rxrx1_jax.training.fingerprints import describe_data
from rxrx1_jax.training.run import Run

FILES = {"test": "predictions", "id_test": "predictions_id_test", "val": "predictions_val"}


class Finished(NamedTuple):
    config: ConfigDict
    workdir: Path
    results: dict[str, Any]
    said: str
    images: InMemory
    rows: dict[str, dict[str, str]]  # the release's metadata.csv by site_id


def expected_role(row: dict[str, str]) -> str:
    """WILDS's set of a row of metadata.csv, written out for the tiny release."""
    if row["sirna_id"] == "-1":
        return "other"
    if row["experiment"] == "HUVEC-01":
        return {"1": "train", "2": "id_test"}[row["site"]]
    return {"HUVEC-17": "val", "U2OS-05": "test"}[row["experiment"]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Finished:
    rows, images = wilds_screen.rows(), wilds_screen.images()
    config = wilds.get_config()
    config.model.name, config.model.width = "resnet_demo", 8
    config.optim.batch_size, config.eval.batch_size = 8, 8
    config.optim.epochs, config.optim.warmup_epochs = 1, 0.0
    config.optim.name = "sgd"  # Optax's Adam wants JAX's standard promotion
    workdir = tmp_path_factory.mktemp("runs") / "wilds"
    with contextlib.redirect_stdout(io.StringIO()) as said:
        results = train.train_and_evaluate(config, workdir, images)
    return Finished(
        config, workdir, results, said.getvalue(), images, {row["site_id"]: row for row in rows}
    )


def test_three_accuracies_follow_from_the_predictions(finished):
    results = json.loads((finished.workdir / "results.json").read_text())
    assert results == finished.results and results["protocol"] == "wilds"
    assert set(results["other_sets"]) == {"id_test", "val"}
    scored = {"test": results, **results["other_sets"]}
    for name, file in FILES.items():
        table = pq.read_table(finished.workdir / f"{file}.parquet").to_pydict()
        ids = [s for s, row in finished.rows.items() if expected_role(row) == name]
        assert sorted(table["site_id"]) == sorted(ids)
        label = np.array([int(finished.rows[s]["sirna_id"]) for s in table["site_id"]])
        right = np.array(table["prediction"]) == label
        assert scored[name]["accuracy"]["site"]["all"] == right.mean()
        assert scored[name]["loss"] == pytest.approx(np.mean(table["loss"]), rel=1e-6)
        if name != "test":
            assert scored[name]["sites"] == len(ids)
            accuracy = scored[name]["accuracy"]["site"]["all"]
            assert f"{name}: accuracy by site {100 * accuracy:.1f} %" in finished.said
    assert results["data"]["test_sites"] == 18 and results["data"]["train_sites"] == 10
    assert results["data"]["classes"] == 6  # three siRNAs, two positive controls, untreated


def test_the_first_lines_count_every_set(finished):
    for part in ("train 10 sites", "test 18 sites", "id_test 11 sites", "val 20 sites",
                 "6 siRNA classes; 2 sites"):  # fmt: skip
        assert part in finished.said


def test_evaluating_again_gives_the_same(finished):
    before = {f: pq.read_table(finished.workdir / f"{f}.parquet") for f in FILES.values()}
    for file in FILES.values():
        (finished.workdir / f"{file}.parquet").unlink()
    run = Run.open(finished.workdir, images=finished.images)
    assert run.evaluate(finished.workdir) == finished.results
    for file, table in before.items():
        assert pq.read_table(finished.workdir / f"{file}.parquet").equals(table)


def test_every_site_is_predicted_with_its_role(finished):
    path = finished.workdir / "predictions_all.parquet"
    Run.open(finished.workdir, images=finished.images).predict_all(path)
    table = pq.read_table(path).to_pydict()
    roles = dict(zip(table["site_id"], table["role"], strict=True))
    assert roles == {site_id: expected_role(row) for site_id, row in finished.rows.items()}


def test_the_other_sets_belong_to_the_fingerprint(finished):
    sites = finished.images.sites
    split = splits.make_split(sites, "wilds")
    changed, classes = split._replace(val=split.val[1:]), splits.classes_of(sites, "wilds")
    described = (describe_data(finished.images, s, classes) for s in (split, changed))
    one, two = (data["split"] for data in described)
    assert one != two
    recorded = json.loads((finished.workdir / "config.json").read_text())["dataset"]
    assert recorded["split"] == one


def test_the_run_is_reported_without_the_papers_table(finished, tmp_path, capsys):
    assert report.main([str(finished.workdir), f"--out={tmp_path / 'page'}"]) == 0
    out, by_site = capsys.readouterr().out, finished.results["accuracy"]["site"]["all"]
    assert "WILDS" in out and f"{100 * by_site:.1f}" in out and "52.8" not in out


def test_the_shipped_config_has_the_settings_of_wilds():
    config = wilds.get_config()
    config_lib.check(config, 8)
    total = round(40_612 / config.optim.batch_size * config.optim.epochs)
    _, schedule = optimizers.create_optimizer(config.optim, total)
    rates = [float(schedule(step)) for step in (5_413, 5_414, 5_415, 6_000)]
    assert rates[0] < rates[1] == pytest.approx(1e-3) and rates[3] < rates[1]
    assert (config.optim.batch_size, config.optim.epochs) == (72, 90)
    assert (config.optim.name, config.optim.weight_decay) == ("adam", 1e-5)
    assert (config.data.name, config.data.normalisation) == ("rxrx1/wilds", "site")


def test_builder_and_splits_name_the_same_validation_experiments():
    pytest.importorskip("tensorflow_datasets", reason="needs the extra `build`")
    builder = importlib.import_module("tfds_builder.rxrx1.rxrx1_dataset_builder")
    assert set(builder.WILDS_VALIDATION) == set(splits.WILDS_VALIDATION)
