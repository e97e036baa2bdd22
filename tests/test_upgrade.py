"""A run that version 0.2 finished is evaluated, embedded and reported as 0.2 did.

tests/data_0_2/run: the demo network, width 8, 30 epochs on the screen in tests/data_0_2/data. Its
embeddings.parquet and predictions.parquet are what 0.2 wrote.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from rxrx1_jax import main
from rxrx1_jax.data import records, splits
from rxrx1_jax.report import __main__ as report
from rxrx1_jax.training import run_dir
from rxrx1_jax.training.fingerprints import describe_data

RUN = Path(__file__).parent / "data_0_2" / "run"
DATA = RUN.parent / "data"  # the run's screen, as the builder of that time drew it


@pytest.fixture
def run(tmp_path) -> Path:
    return shutil.copytree(RUN, tmp_path / "run")


def columns(path: Path, names: list[str]) -> dict[str, list]:
    return pq.read_table(path).sort_by("site_id").select(names).to_pydict()


def test_predictions_are_those_of_version_0_2(run, capsys):
    for file in ("results.json", "predictions.parquet", "embeddings.parquet"):
        (run / file).unlink()
    for mode in ("evaluate", "embed"):
        command = [f"--workdir={run}", f"--mode={mode}", f"--config.data.dir={DATA}"]
        assert main.main(command) == 0
    names = ["site_id", "label", "prediction", "well_prediction"]
    old, new = (columns(path / "predictions.parquet", names) for path in (RUN, run))
    assert new == old and len(old["site_id"]) == 16
    for file, kind in (("predictions", "loss"), ("embeddings", "feature_")):
        was = pq.read_table(RUN / f"{file}.parquet").sort_by("site_id")
        found = pq.read_table(run / f"{file}.parquet").sort_by("site_id")
        for name in (name for name in was.column_names if name.startswith(kind)):
            np.testing.assert_allclose(found[name].to_numpy(), was[name].to_numpy(), rtol=1e-4,
                                       atol=1e-5, err_msg=name)  # fmt: skip
    old, new = (json.loads((path / "results.json").read_text()) for path in (RUN, run))
    assert new["accuracy"] == old["accuracy"] and new["step"] == old["step"]
    assert new["loss"] == pytest.approx(old["loss"], rel=1e-5)


def test_it_is_reported_beside_a_run_of_today(run, tmp_path, capsys):
    assert report.main([str(run), f"--out={tmp_path / 'page'}"]) == 0
    by_site = json.loads((RUN / "results.json").read_text())["accuracy"]["site"]["all"]
    assert f"{100 * by_site:.1f}" in capsys.readouterr().out


def test_other_data_are_refused(run):
    """The same sites and split; a label differs, or the controls of a plate do."""
    dataset = records.Records(records.find_dataset(DATA, "rxrx1/few"))
    config = run_dir.read_settings(run)
    split = splits.make_split(dataset.sites, "batch")
    classes = splits.classes_of(dataset.sites, "batch")
    for field in ("", "sirna_id", "control_std"):
        sites = dataset.sites.copy()
        if field:
            sites[field][split.train[0]] += 1
        dataset.sites = sites
        described = describe_data(dataset, split, classes)
        if field:
            with pytest.raises(run_dir.RunError, match="dataset.data_fingerprint"):
                run_dir.open_run(run, config, described)
        else:
            run_dir.open_run(run, config, described)


def test_another_split_is_another_run(run):
    command = [f"--workdir={run}", "--mode=evaluate", f"--config.data.dir={DATA}"]
    with pytest.raises(SystemExit, match="data.fold=0"):
        main.main([*command, "--config.data.fold=1"])
    config = json.loads((run / "config.json").read_text())
    config["dataset"]["split_fingerprint"] = "0"
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit, match="dataset.split_fingerprint"):
        main.main(command)


def test_finished_it_is_complete_and_unfinished_it_is_refused(run, capsys):
    command = [f"--workdir={run}", f"--config.data.dir={DATA}"]
    assert main.main(command) == 0 and "complete" in capsys.readouterr().out
    child = [f"--config={run}/config.json", f"--config.train.parent={run}", f"--workdir={run}-2"]
    with pytest.raises(SystemExit, match=r"version 0\.2"):
        main.main([*child, f"--config.data.dir={DATA}", "--config.optim.epochs=40"])
    assert not Path(f"{run}-2").exists()
    (run / "results.json").unlink()
    with pytest.raises(SystemExit, match=r"rxrx1_jax 0\.2"):
        main.main(command)
    assert run_dir.read_settings(run).optim.schedule == "cosine"
