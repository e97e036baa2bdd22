"""Rows of a report: what differs, what is paired with what, and what must not be compared."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import run_command
from finished_runs import all_right, cells, edited, make_run, one_screen
from scipy import stats

from rxrx1_jax.config import VERSION, upgrade
from rxrx1_jax.report import comparison, figures
from rxrx1_jax.report.files import ReportError
from rxrx1_jax.report.runs import group, load_runs


def test_methods_are_grouped_by_what_differs_and_paired(methods):
    groups = group(one_screen(methods)[1])
    labels = [of.label for of in groups]
    assert [sorted(of.settings) for of in groups] == [["data.augmentation", "optim.loss"]] * 3
    assert [len(of.runs) for of in groups] == [3, 3, 4] and "no data.augmentation" in labels[0]
    assert "optim.loss=coral" in labels[1]
    table = comparison.tables(groups, groups[0])["comparison"]
    rows = {str(row[0]): row for row in table.rows}
    base, coral, cutmix = (rows[label] for label in labels)
    assert (base[3], str(base[1])) == ("baseline", "45.0 ± 5.0")
    assert str(base[2]) == "91.0 ± 0.0"  # training: 95 % x (1 - 0.9^30)
    # Gains 10, 15, 15: Nadeau and Bengio's interval of three folds, 80 test of 640 training sites.
    mean, half = 40 / 3, 4.302653 * np.std([10, 15, 15], ddof=1) * np.sqrt(1 / 3 + 80 / 640)
    assert coral[3][:1] + coral[3][3:5] == pytest.approx((mean, mean - half, mean + half), rel=1e-5)
    # Fold 0 is the mean of its seeds, and the second seed has no partner: gains 5, -5, 10.
    assert str(cutmix[1]) == "50.0 ± 5.0" and cutmix[3].value == pytest.approx(10 / 3)
    assert str(cutmix[-1]) == "0.0 0.1 1.0 2.0"
    p = 2 * stats.t.sf(mean / (half / 4.302653), 2)
    assert coral[4].value == pytest.approx(2 * p, rel=1e-5) and cutmix[4].value > 2 * p  # Holm
    # The test set chooses none: both rows are named, or neither.
    said = comparison.headline(groups, groups[0])
    assert "1 of 2 rows" in said and "0 worse" in said and labels[1] in said.rpartition(": ")[2]
    assert labels[2] not in said
    assert "13.3 points above" in comparison.headline(groups[:2], groups[0])
    few = [of._replace(runs=of.runs[:2]) for of in groups]
    assert "three folds" in comparison.headline(few, few[0])
    assert [one.label for one in figures.by_cell_type(groups, paper=False)] == labels
    # The other way round.
    swapped = cells(comparison.tables(groups, groups[1])["comparison"])
    assert swapped[labels[0]][2].startswith("-13.3 (")


def test_only_the_same_split_is_paired(methods, tmp_path):
    other = {"protocol": "random_site", "optim__loss": "coral"}
    run = make_run(tmp_path / "other", all_right(19, 9), **other)
    groups = group(one_screen([*methods[:6], run])[1])
    rows = comparison.tables(groups, groups[0])["comparison"].rows
    assert [str(row[3])[:5] for row in rows] == ["basel", "+13.3", "–"]


def test_a_row_whose_training_saw_test_images_has_its_budget(demo, tmp_path):
    runs = [*demo[:1], make_run(
        tmp_path / "taught", all_right(19, 9), data__pseudo_labels="p.parquet",
        data__control_classes="all",
    )]  # fmt: skip
    groups = group(one_screen(runs)[1])
    notes = comparison.tables(groups, groups[0])["comparison"].notes
    assert f"{groups[1].label}: unlabelled test images; others: inductive" in notes[-1]
    notes = comparison.tables(groups[:1], groups[0])["comparison"].notes
    assert not any("inductive" in note for note in notes)


def test_a_baseline_that_is_named_makes_the_comparison(demo, methods, tmp_path):
    done = run_command("report", *demo[:3], "--baseline", demo[-1], f"--out={tmp_path}")
    assert done.code == 0, done.err
    rows = list(csv.DictReader(open(tmp_path / "comparison.csv")))
    assert [row["settings"] for row in rows] == [
        "data.normalisation=plate_control", "data.normalisation=none"
    ]  # fmt: skip
    assert rows[1][comparison.GAIN] == "baseline"
    assert float(rows[0][comparison.GAIN]) == pytest.approx(30)
    native = make_run(tmp_path / "native", all_right(4, 2), "release", name="rxrx1/native")
    done = run_command("report", *demo[:3], "--baseline", native, f"--out={tmp_path}")
    assert done.code == 1 and str(native) in done.last


def test_other_data_are_another_section(demo, tmp_path):
    native = make_run(tmp_path / "native", all_right(4, 2), "release", name="rxrx1/native")
    screens = load_runs([*demo, native, native.parent / "." / native.name])  # each run once
    assert [(s.name, len(runs)) for s, runs in screens.items()] == [
        *(("rxrx1/synthetic", 7), ("rxrx1/native", 1))
    ]


def test_runs_that_must_not_be_compared(demo, tmp_path):
    again = make_run(tmp_path / "again", all_right(3, 3), fold=1)
    with pytest.raises(ReportError, match="again and .*batch1 "):
        group(one_screen([*demo, again])[1])
    with edited(again / "config.json") as config:
        config["dataset"]["data_fingerprint"] = "0ff"
    with pytest.raises(ReportError, match="batch0 .*data_fingerprint .*0ff"):
        load_runs([*demo, again])
    other = make_run(tmp_path / "other", {"RPE": (3, 3)}, fold=1, train__seed=1)
    with pytest.raises(ReportError, match="other .*batch1 .*test sites"):
        load_runs([*demo, other])
    for folder in (other / "checkpoints", other.parent):
        with pytest.raises(ReportError, match=f"expected .*{other}"):
            load_runs([folder])


def test_a_run_of_version_0_2_is_a_repetition_of_one_of_today(tmp_path):
    """Today's says more of the settings, and describes the data by another fingerprint."""
    old = Path(__file__).parents[1] / "data_0_2" / "run"
    new = shutil.copytree(old, tmp_path / "new")
    with edited(new / "config.json") as config:
        settings = upgrade(config).to_dict()
        settings["train"]["seed"] = 1
        config |= settings | {"dataset": {"data": "0ff"}, "made_with": {"settings": VERSION}}
    with edited(new / "results.json") as results:
        results["seed"] = 1
    (of,) = group(one_screen([old, new])[1])
    assert [run.unit.seed for run in of.runs] == [0, 1]
    stated = json.loads((old / "results.json").read_text())["accuracy"]
    assert all(run.accuracy == stated for run in of.runs)


def test_a_run_evaluated_over_orientations_is_another_row(tmp_path):
    """Evaluated so, whatever its settings say."""
    runs = [make_run(tmp_path / name, all_right(sites, 5)) for name, sites in (("a", 8), ("b", 9))]
    with edited(runs[1] / "results.json") as results:
        results["orientations"] = True
    found = {of.label: of.by_site for of in group(one_screen(runs)[1])}
    assert [*found] == ["eval.orientations=False", "eval.orientations=True"]
    assert [*found["eval.orientations=True"].values()] == [0.45]
