"""The arithmetic and the tables of the leaderboard on made-up runs, against pandas and scipy."""

import re
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rxrx1_jax.leaderboard import figures, scores, tables
from rxrx1_jax.leaderboard import methods as methods_lib
from rxrx1_jax.leaderboard.scores import Job, Outcome, Row
from rxrx1_jax.methods.statistics import Unit
from rxrx1_jax.report.runs import FinishedRun

# Three folds and two seeds.
UNITS = [Unit("rxrx1/x", fold, seed) for fold, seed in product(range(3), range(2))]


def made_up(rng, low=0.2, high=0.9):
    """Accuracies of one run, as predictions.accuracies gives them."""
    cell_types = {name: rng.uniform(low, high) for name in ("HUVEC", "RPE")}
    experiments = {f"{name}-0{k}": rng.uniform(low, high) for name in cell_types for k in (1, 2)}
    kinds = {"cell_type": cell_types, "experiment": experiments}
    return {
        "site": {"all": rng.uniform(low, high), **kinds},
        "well": {"all": rng.uniform(low, high), **kinds},
        "top5": rng.uniform(low, high),
    }


def outcome(accuracy, unit, trained="base", protocol="batch", control=""):
    results = {
        "data": {"name": unit.world, "version": "1", "source": "synthetic", "classes": 4,
                 "image_size": 16},
        "model": "m",
    }  # fmt: skip
    run = FinishedRun(Path("nowhere"), {}, results, [], accuracy)
    return Outcome(Job(control, trained, protocol, unit), run, "")


@pytest.fixture
def methods():
    return methods_lib.Methods(
        {"base": {}, "other": {}, "wide": {}},
        {"base": (), "other": (), "wide": ()},
        ("base", "other"),
        {"base": "inductive", "other": "inductive", "wide": "design"},
        {"zero": methods_lib.Control({}, {"base": "no gap", "other": "gap"})},
    )


@pytest.fixture
def outcomes():
    rng = np.random.default_rng(0)
    names = ("wide", "base", "other")
    found = [outcome(made_up(rng), unit, name) for name in names for unit in UNITS]
    for protocol in ("random_site", "random_well"):
        found += [outcome(made_up(rng), unit, "base", protocol) for unit in UNITS]
    # A run less than the others: what is paired with it must be left out, too.
    return [o for o in found if (o.job.trained, o.job.unit) != ("other", UNITS[-1])]


def frame(outcomes):
    return pd.DataFrame(
        {
            "trained": o.job.trained, "protocol": o.job.protocol,
            "fold": o.job.unit.fold, "seed": o.job.unit.seed,
            "site": o.run.accuracy["site"]["all"], "well": o.run.accuracy["well"]["all"],
            "top5": o.run.accuracy["top5"],
            "macro": pd.Series(o.run.accuracy["site"]["cell_type"]).mean(),
            "worst": pd.Series(o.run.accuracy["site"]["experiment"]).min(),
        }
        for o in outcomes
    )  # fmt: skip


def test_accuracy_table_against_pandas(methods, outcomes):
    table = tables.accuracy_table(methods, scores.make_rows(methods, outcomes), runs=6)
    data = frame(outcomes).query("protocol == 'batch'")
    rows = [[str(cell) for cell in row] for row in table.rows]
    assert [row[0].partition(":")[0] for row in rows] == [  # by budget
        *("inductive", "base", "other (n = 5)", "design", "wide")
    ]
    assert table.head[8:] == ["fold 0", "fold 1", "fold 2"]
    base = data.query("trained == 'base'").set_index(["fold", "seed"])["site"]
    for row in (row for row in rows if len(row) > 1):
        mine = data[data.trained == row[0].split()[0]]
        folds = 100 * mine.groupby("fold")[["site", "well", "top5", "macro", "worst"]].mean()
        expected = [f"{m:.1f} ± {sd:.1f}" for m, sd in zip(folds.mean(), folds.std(), strict=True)]
        assert [row[1], *row[3:7]] == expected
        centred = mine.site - mine.groupby("fold")["site"].transform("mean")
        pooled = np.sqrt((centred**2).sum() / (len(mine) - 3))
        assert row[2] == f"{100 * pooled:.1f}"
        if row[0] == "base":
            assert row[7:] == ["–"] * 4
            continue
        pairs = 100 * (mine.set_index(["fold", "seed"])["site"] - base).dropna()
        low, high = stats.ttest_1samp(pairs, 0).confidence_interval()
        assert row[7] == f"{pairs.mean():+.1f} ({low:+.1f} to {high:+.1f})"
        assert row[8:] == [f"{value:+.1f}" for value in pairs.groupby("fold").mean()]
    assert re.search(r"\d of 2 ", table.notes[-1])


def test_two_worlds_can_stand_in_one_table(methods):
    rng = np.random.default_rng(0)
    units = [Unit(world, 0, 0) for world in ("a", "b")]
    found = [outcome(made_up(rng), unit, name) for name in ("base", "wide") for unit in units]
    table = tables.accuracy_table(methods, scores.make_rows(methods, found), runs=2)
    values = {o.job: 100 * o.run.accuracy["site"]["all"] for o in found}
    gains = [values[Job("", "wide", "batch", u)] - values[Job("", "base", "batch", u)]
             for u in units]  # fmt: skip
    assert table.head[8:] == ["a, 0", "b, 0"]
    assert [str(cell) for cell in table.rows[-1][8:]] == [f"{gain:+.1f}" for gain in gains]


def test_gap_table_against_pandas(methods, outcomes):
    table = tables.gap_table(methods, outcomes)
    ([*row],) = table.rows  # `other` has no random runs
    row = list(map(str, row))
    data = frame(outcomes).query("trained == 'base'")
    wide = data.pivot(index=["fold", "seed"], columns="protocol", values="site")
    for protocol, part in (("random_site", row[4:6]), ("random_well", row[6:8])):
        pairs = 100 * (wide[protocol] - wide["batch"])
        low, high = stats.ttest_1samp(pairs, 0).confidence_interval()
        ratio = wide[protocol].mean() / wide["batch"].mean()
        assert part == [f"{pairs.mean():+.1f} ({low:+.1f} to {high:+.1f})", f"{ratio:.2f}"]


def test_gap_bars_are_the_means_over_folds(methods, outcomes):
    axis = figures.gap_bars(scores.gap_scores(methods, outcomes), 25.0).axes[0]
    data = frame(outcomes).query("trained == 'base'")
    means = 100 * data.groupby(["protocol", "fold"])["site"].mean().groupby("protocol").mean()
    heights = sorted(bar.get_height() for bar in axis.patches if bar.get_height())
    assert heights == pytest.approx(sorted(means))
    assert len(axis.texts) == 2  # above each random split
    assert "chance" in axis.figure.legends[0].get_texts()[-1].get_text()


@pytest.mark.parametrize(
    ("claim", "batch", "random", "held"),
    [
        ("no gap", [0.50, 0.52, 0.49], [0.51, 0.50, 0.50], True),
        ("no gap", [0.50, 0.52, 0.49], [0.60, 0.61, 0.59], False),
        ("no gap", [0.60, 0.61, 0.59], [0.50, 0.52, 0.49], False),  # nor the other way round
        ("gap", [0.50, 0.52, 0.49], [0.60, 0.61, 0.59], True),
        ("gap", [0.60, 0.61, 0.59], [0.50, 0.52, 0.49], False),
        ("chance", [0.24, 0.26, 0.25], [0.25, 0.23, 0.26], True),
        ("chance", [0.24, 0.26, 0.25], [0.40, 0.41, 0.42], False),
        ("chance", [0.10, 0.11, 0.12], [0.25, 0.23, 0.26], False),
        ("gap", [0.5, 0.51], [0.6, 0.61], None),
    ],
)
def test_verdicts_on_controls(methods, claim, batch, random, held):
    controls = {"zero": methods_lib.Control({}, {"base": claim})}
    runs = []
    for protocol, values in (("batch", batch), ("random_site", random)):
        for fold, value in enumerate(values):
            accuracy = {"site": {"all": value}}
            runs.append(outcome(accuracy, Unit("w", fold, 0), "base", protocol, "zero"))
    table = tables.control_table(methods._replace(controls=controls), runs)
    (row,) = table.rows
    assert row[4] == tables.MUST[claim]
    assert row[6] == {True: "holds", False: "DOES NOT HOLD", None: "–"}[held]
    pairs = 100 * (np.array(random) - batch)
    if held is None:
        assert row[5] == "too few runs"
    elif claim != "chance":
        low, high = stats.ttest_1samp(pairs, 0).confidence_interval()
        assert row[5] == f"gap {pairs.mean():+.1f} ({low:+.1f} to {high:+.1f})"


def test_the_wider_budget_of_training_and_correction_counts(methods, outcomes, monkeypatch):
    monkeypatch.setattr(scores, "load_correction", lambda path, name: {})
    corrections = methods.corrections | {"base": ("centre_scale_plate", "assign_once")}
    budgets = methods.budgets | {"base": "unlabelled test images"}
    methods = methods._replace(corrections=corrections, budgets=budgets)
    found = {row.correction: row.budget for row in scores.make_rows(methods, outcomes)
             if row.trained == "base"}  # fmt: skip
    wide = "unlabelled test images"
    assert found == {"none": wide, "centre_scale_plate": wide, "assign_once": "design"}


def test_the_best_of_each_budget_is_shown():
    def row(name, budget, value):
        return Row(name, "none", budget, {UNITS[0]: {"site": {"all": value}}})

    rows = [row("base", "inductive", 0.9), row("a", "inductive", 0.1), row("b", "inductive", 0.2),
            row("c", "design", 0.3)]  # fmt: skip
    assert [r.name for r in figures.choose_rows(rows, "base")] == ["base", "b", "c"]
