"""Stored corrections of a made-up run: no dataset, no network; the commands around them."""

import dataclasses
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from arrays import small_evidence
from commands import run_command
from corrected_runs import make_run, save
from finished_runs import edited
from scipy import stats

from rxrx1_jax import correct
from rxrx1_jax.data import embeddings as lib
from rxrx1_jax.data.embeddings import Embeddings
from rxrx1_jax.methods import corrections
from rxrx1_jax.methods.catalogue import METHODS
from rxrx1_jax.methods.evidence import Method, scores
from rxrx1_jax.methods.statistics import Unit
from rxrx1_jax.training.predictions import accuracies
from rxrx1_jax.training.run import EMBEDDINGS, Run

SHARED = 0.5
NAMES = ["none", "centroids", "centre_scale_plate", "assign_once"]


def predictions_of(path, *arguments, **options):
    return corrections.predictions_of(Run.open(path), *arguments, **options)


def stored(path, name):
    return corrections.stored(Run.open(path), name, path)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "images", property(lambda _: pytest.fail("the data were read")))
    return make_run(tmp_path / "run")


def test_predictions_are_those_of_the_methods(run):
    tables, evidence = predictions_of(run, NAMES), small_evidence()
    test = evidence.role == "test"
    for name in NAMES:
        expected = evidence.classes[scores(METHODS[name], evidence).argmax(axis=1)]
        assert tables[name]["prediction"].to_pylist() == expected.tolist()
        assert tables[name]["label"].to_pylist() == evidence.sites["sirna_id"][test].tolist()
        assert tables[name]["site_id"].to_pylist() == evidence.sites["site_id"][test].tolist()
    loss = -evidence.log_probs[test, evidence.sites["sirna_id"][test]]
    np.testing.assert_allclose(tables["none"]["loss"], loss, rtol=1e-6)


def stamps(run):
    return {path.stem: path.stat().st_mtime_ns for path in (run / "corrections").iterdir()}


def test_what_is_stored_is_computed_again_only_for_another_version_step_or_weights(
    run, monkeypatch
):
    first = predictions_of(run, NAMES)
    before = stamps(run)
    assert set(before) == set(NAMES)
    again = predictions_of(run, NAMES)
    assert all(again[name].equals(first[name]) for name in NAMES) and stamps(run) == before
    newer = dataclasses.replace(METHODS["centroids"], version=2)
    monkeypatch.setitem(METHODS, "centroids", newer)
    assert stored(run, "centroids") is None
    predictions_of(run, NAMES)
    changed = {name for name, stamp in stamps(run).items() if stamp != before[name]}
    assert changed == {"centroids"}
    save(run, 7, 124)
    assert all(stored(run, name) is None for name in NAMES)
    save(run, 7, 123)
    assert stored(run, "none") is not None
    save(run, 10, 123)
    assert stored(run, "none") is None


@pytest.mark.parametrize("change", ["no rows", "null", "ragged", "twice", "no top5", "cut", "text"])
def test_a_table_that_was_edited_is_computed_again(run, change):
    first = predictions_of(run, ["centroids"])["centroids"]
    path, k = run / "corrections" / "centroids.parquet", first.column_names.index("top5")
    changed = {
        "no rows": lambda: first.slice(0, 0),
        "null": lambda: first.set_column(0, "site_id", [[None, *first["site_id"].to_pylist()[1:]]]),
        "ragged": lambda: first.set_column(k, "top5", [[[1], *first["top5"].to_pylist()[1:]]]),
        "twice": lambda: pa.concat_tables([first, first]),
        "no top5": lambda: first.drop_columns("top5"),
        "text": lambda: first.set_column(k, "top5", [["x"] * len(first)]),
    }
    if change == "cut":
        path.write_bytes(path.read_bytes()[:100])
    else:
        pq.write_table(changed[change]().replace_schema_metadata(first.schema.metadata), path)
    assert stored(run, "centroids") is None
    assert predictions_of(run, ["centroids"])["centroids"].equals(first)


def test_embeddings_are_computed_once_and_again_for_another_step(run, monkeypatch):
    made = Run.open(run).embeddings(log_probs=True)
    calls = []
    monkeypatch.setattr(Run, "embed", lambda self, *arguments: calls.append(arguments))
    lib.log_probs_path(run / EMBEDDINGS).unlink()
    assert Run.open(run).embeddings().x.shape == made.x.shape  # nothing needs log-probabilities
    Run.open(run).embeddings(log_probs=True)
    save(run, 8, 123)
    Run.open(run).embeddings()
    assert calls == [(run / EMBEDDINGS, True), (run / EMBEDDINGS, False)]


def test_a_table_names_the_step_of_its_evidence(run, monkeypatch):
    """Also where the run was trained meanwhile."""
    made = Run.open(run).embeddings(log_probs=True)
    newer = dataclasses.replace(made, source={**made.source, "step": "4711"})
    monkeypatch.setattr(Run, "embeddings", lambda *_, **__: newer)
    assert predictions_of(run, ["none"])["none"].schema.metadata[b"step"] == b"4711"


def test_a_method_that_refuses_the_data_is_left_out(run, monkeypatch, capsys):
    def refuse(evidence):
        raise ValueError("no controls of this cell type")

    monkeypatch.setitem(METHODS, "refusing", Method(decide=refuse))
    refused = {}
    tables = predictions_of(run, ["none", "refusing"], refused=refused)
    assert set(tables) == {"none"} and set(refused) == {"refusing"}
    assert "refusing" in capsys.readouterr().err
    assert "refusing" not in correct.summary({Unit("", 0, 0): tables}, SHARED).markdown()


def test_what_validation_chose_is_said_and_stored(run, monkeypatch, capsys):
    """Of two decisions the second is right on every validation site."""
    evidence = small_evidence()
    named = dict(zip(evidence.sites["site_id"], evidence.sites["sirna_id"], strict=True))

    def right(given):
        return np.equal.outer([named[site] for site in given.sites["site_id"]], given.classes)

    methods = Method(about="unsure"), Method(decide=lambda e: right(e) * 1.0, about="right")
    monkeypatch.setitem(METHODS, "tuned", Method(grid=methods))
    refused = {}
    assert "tuned" not in predictions_of(run, ["tuned"], refused=refused)
    assert "val_experiments" in str(refused["tuned"]) and "tuned" in capsys.readouterr().err
    made = Run.open(run).embeddings(log_probs=True)
    val = np.where(evidence.sites["experiment"] == "RPE-01", "val", made.role)
    role = np.where(made.role == "test", val, made.role)
    lib.write(dataclasses.replace(made, role=role), run / EMBEDDINGS, log_probs=True)
    table = predictions_of(run, ["tuned"])["tuned"]
    assert table["prediction"].to_pylist() == table["label"].to_pylist()
    assert table["site_id"].to_pylist() == evidence.sites["site_id"][role == "test"].tolist()
    said = capsys.readouterr().err
    assert "tuned" in said and "2 of 2" in said and "right" in said
    assert stored(run, "tuned").equals(table)


def test_budgets_say_that_a_network_began_with_weights_of_elsewhere(run):
    told = run_command("correct", run, "--methods", "centroids").out
    assert "inductive" in told and "external" not in told
    with edited(run / "config.json") as config:
        config["dataset"]["external"] = True
    told = run_command("correct", run, "--methods", "centroids").out
    assert "external data, inductive" in told


def test_several_runs_are_averaged_and_paired(run):
    tables = predictions_of(run, ["none", "centroids"])
    swapped = {"none": tables["centroids"], "centroids": tables["none"]}
    units = [Unit("", fold, 0) for fold in range(3)]
    two = dict(zip(units, (tables, swapped), strict=False))
    rows = {row[0]: row[1:] for row in correct.summary(two, SHARED).rows}
    found = [100 * accuracies(table)["site"]["all"] for table in tables.values()]
    for name in tables:
        assert str(rows[name][0]) == f"{np.mean(found):.1f} ± {np.std(found, ddof=1):.1f}"
    assert np.isnan(rows["centroids"][-2].low) and rows["none"][-2:] == ["", ""]
    rows = correct.summary(two | {units[2]: tables}, SHARED).rows
    gain, p = next(row[-2:] for row in rows if row[0] == "centroids")
    difference = np.array([1, -1, 1]) * (found[1] - found[0])
    error = difference.std(ddof=1) * np.sqrt(1 / 3 + SHARED)
    half = stats.t.ppf(0.975, 2) * error
    assert (gain.value, gain.high - gain.value) == pytest.approx((difference.mean(), half))
    assert p.value == pytest.approx(2 * stats.t.sf(abs(difference.mean()) / error, 2))


def test_three_worlds_stand_in_one_table(tmp_path, monkeypatch):
    """Their interval is the plain one of t."""
    rng, names = np.random.default_rng(3), ["a", "b", "c"]
    runs = [make_run(tmp_path / name, name=f"rxrx1/{name}") for name in names]
    tables = predictions_of(runs[0], ["none", "centroids"])
    found = {}
    for run in runs:
        for name in tables:
            right = rng.random(len(tables[name])) < rng.uniform(0.2, 0.8)
            column = np.where(right, tables[name]["label"], -1)
            k = tables[name].column_names.index("prediction")
            changed = tables[name].set_column(k, "prediction", [column])
            found.setdefault(run, {})[name] = changed
    monkeypatch.setattr(corrections, "predictions_of", lambda run, *_: found[run.path])
    done = run_command("correct", *runs, "--methods", "centroids")
    assert "over worlds rxrx1/a, rxrx1/b, rxrx1/c" in done.out.splitlines()[0]
    none, centroids = (
        [100 * accuracies(found[run][name])["site"]["all"] for run in runs] for name in tables
    )
    test = stats.ttest_rel(centroids, none)
    low, high = test.confidence_interval()
    gain = np.subtract(centroids, none).mean()
    assert f"{gain:+.1f} ({low:+.1f} to {high:+.1f}) | {test.pvalue:8.3f}" in done.out


def test_where_controls_are_classes_methods_that_need_them_are_left_out(tmp_path, capsys):
    run, names = make_run(tmp_path / "wilds", protocol="wilds"), ["centroids", "adabn_experiment"]
    assert list(predictions_of(run, ["none", *names, "assign_once"])) == ["none"]
    said = capsys.readouterr().err
    assert all(f"{name} is left out" in said for name in names) and "wilds" in said


def test_the_table_groups_methods_by_budget(run, tmp_path):
    done = run_command("correct", run, "--methods", *NAMES, f"--out={tmp_path}")
    text = (tmp_path / "corrections.md").read_text()
    assert text.strip() == done.out.strip()
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    assert rows[2:] == [
        "**inductive**", "none", "centroids", "**test controls**", "centre_scale_plate",
        "**design**", "assign_once",
    ]  # fmt: skip


def test_help_explains_each_method():
    said = run_command("correct", "--help").out
    assert all(f"  {name} " in said and method.about in said for name, method in METHODS.items())


@pytest.fixture
def begun(monkeypatch):
    """The runs whose correction was begun; each gives no predictions."""
    runs = []
    monkeypatch.setattr(corrections, "predictions_of", lambda run, *_: runs.append(run.path) or {})
    return runs


def test_a_read_only_run_is_corrected_elsewhere(run, tmp_path, monkeypatch):
    """All that is computed lies in --out, and is read from there."""
    lib.log_probs_path(run / EMBEDDINGS).unlink()
    sites, role, x, log_probs, classes = small_evidence()
    made = Embeddings(sites, x, log_probs, classes, source=Run.open(run).source, role=role)

    def embed(_, path, with_log_probs):
        lib.write(made, path, with_log_probs)
        return made

    monkeypatch.setattr(Run, "embed", embed)
    before = sorted(run.rglob("*"))
    out = tmp_path / "out"
    first = run_command("correct", run, "--methods", "centroids", f"--out={out}")
    assert first.code == 0 and sorted(run.rglob("*")) == before
    assert {path.name for path in (out / "run" / "corrections").iterdir()} == {
        "none.parquet", "centroids.parquet"
    }  # fmt: skip
    monkeypatch.setattr(Run, "embed", lambda *_: pytest.fail("computed again"))
    assert run_command("correct", run, "--methods", "centroids", f"--out={out}").out == first.out


def test_runs_of_one_kind_share_a_table(tmp_path, begun):
    changes = {"a": {}, "b": {"fold": 1, "seed": 2}, "c": {"protocol": "random_well"}}
    runs = [make_run(tmp_path / name, **change) for name, change in changes.items()]
    done = run_command("correct", *runs)
    assert done.code == 0 and begun == runs
    captions = [line for line in done.out.splitlines() if line.endswith(":")]
    assert ["data.protocol=batch" in captions[0], "random_well" in captions[1]] == [True, True]
    again = shutil.copytree(runs[0], tmp_path / "again")
    done = run_command("correct", *runs, again)
    assert done.code == 1 and str(again) in done.last and len(begun) == len(runs)


def test_data_that_have_moved(run, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(
        corrections, "predictions_of", lambda run, *_: opened.append(run.config.data.dir) or {}
    )
    assert run_command("correct", run, f"--data_dir={tmp_path}/moved").code == 0
    assert opened == [f"{tmp_path}/moved"]
