"""The arithmetic and the tables of the leaderboard on made-up runs, against pandas and scipy."""

import numpy as np
import pandas as pd
import pytest
from outcomes import SHARED, UNITS, made_up, of_rows, outcome
from scipy import stats
from screens import tiny_images

from rxrx1_jax import config
from rxrx1_jax.data.splits import make_split
from rxrx1_jax.leaderboard import figures, scores, tables
from rxrx1_jax.leaderboard import methods as methods_lib
from rxrx1_jax.leaderboard.scores import Job, Row
from rxrx1_jax.methods.lda12 import lda12
from rxrx1_jax.methods.statistics import Unit
from rxrx1_jax.training.predictions import accuracies


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


def interval(folds):
    """Of three folds of one world, with the correction of Nadeau and Bengio."""
    half = stats.t.ppf(0.975, 2) * folds.std() * np.sqrt(1 / 3 + SHARED)
    return f"{folds.mean():+.1f} ({folds.mean() - half:+.1f} to {folds.mean() + half:+.1f})"


def p_value(folds):
    return 2 * stats.t.sf(abs(folds.mean()) / (folds.std() * np.sqrt(1 / 3 + SHARED)), 2)


def test_accuracy_table_against_pandas(methods, outcomes):
    rows = scores.make_rows(methods, outcomes)
    table, spread = tables.accuracy_table(methods, rows, runs=6), tables.spread_table(methods, rows)
    data = frame(outcomes).query("protocol == 'batch'")
    assert [str(row[0]).partition(":")[0] for row in table.rows] == [  # by budget
        *("inductive", "base", "other (n = 5)", "design", "wide")
    ]
    assert spread.head[1:] == ["over seeds", "fold 0", "fold 1", "fold 2"]
    base = data.query("trained == 'base'").set_index(["fold", "seed"])["site"]
    p_values, parts = [], of_rows(spread)
    for name, row in of_rows(table).items():
        mine = data[data.trained == name.split()[0]]
        folds = 100 * mine.groupby("fold")[["site", "well", "top5", "macro", "worst"]].mean()
        expected = [f"{m:.1f} ± {sd:.1f}" for m, sd in zip(folds.mean(), folds.std(), strict=True)]
        over_seeds, *of_folds = parts[name.split()[0]]
        assert row.pop(1) == "75.0 ± 0.0"  # training
        assert [row[0], *row[3:7]] == expected
        units = [f"{fold}.{seed}" for fold, seed in zip(mine.fold, mine.seed, strict=True)]
        assert row[7].split() == units
        centred = mine.site - mine.groupby("fold")["site"].transform("mean")
        pooled = np.sqrt((centred**2).sum() / (len(mine) - 3))
        assert over_seeds == f"{100 * pooled:.1f}"
        if name == "base":
            assert row[1:3] == ["–"] * 2 and of_folds == ["–"] * 3
            continue
        pairs = 100 * (mine.set_index(["fold", "seed"])["site"] - base).dropna()
        folds = pairs.groupby("fold").mean()
        assert row[1] == interval(folds)
        p_values.append((p_value(folds), row[2]))
        assert of_folds == [f"{value:+.1f}" for value in folds]
    (low, one), (high, two) = sorted(p_values)
    assert [one, two] == [f"{min(1, 2 * low):.3f}", f"{min(1, max(2 * low, high)):.3f}"]


@pytest.mark.parametrize(
    "field, value, budget",
    [
        ("dataset.external", True, "external data"),  # it began with a file of weights
        ("data.pseudo_labels", "p.parquet", "unlabelled test images"),
        ("data.control_classes", "all", "test controls"),
        ("data.control_classes", "train", "inductive"),
        ("dataset.uses", ["test_images"], "unlabelled test images"),  # it began with such a run
    ],
)
def test_a_row_has_the_budget_that_its_training_used(methods, outcomes, field, value, budget):
    for one in outcomes:
        if one.job.trained in ("other", "wide"):
            one.run.config[field] = value
    found = {row.trained: row.budget for row in scores.make_rows(methods, outcomes)}
    widest = "external data" if budget == "external data" else "design"
    assert found == {"base": "inductive", "other": budget, "wide": widest}


def test_a_read_out_is_paired_with_that_of_the_baseline(methods, outcomes, monkeypatch):
    """Of all corrections; a row whose partner is missing has no gain."""
    values = {"centroids": 0.3, "tvn_plate": 0.45, "adabn_plate": 0.5}
    monkeypatch.setattr(
        scores, "load_correction", lambda path, name: {"site": {"all": values[name]}}
    )
    methods = methods._replace(corrections={
        "base": tuple(values), "other": ("tvn_plate",), "wide": (),
    })  # fmt: skip
    rows = scores.make_rows(methods, outcomes)
    found = scores.gains(methods, rows)
    base = next(row.by_site for row in rows if row.name == "base")
    assert found["base + tvn_plate"][0] == found["other + tvn_plate"][0] | dict.fromkeys(
        UNITS, pytest.approx(0.15)
    )
    assert found["base + adabn_plate"][0] == {unit: 0.5 - base[unit] for unit in UNITS}
    assert found["base"][1].n == 0
    alone = [row for row in rows if row.correction != "centroids"]
    assert scores.gains(methods, alone)["base + tvn_plate"][1].n == 0


def test_lda12_is_the_first_row_on_the_data_of_the_baseline(methods, outcomes, monkeypatch):
    images, data = tiny_images(), config.default().data.to_dict()
    asked = []
    monkeypatch.setattr(
        scores.records, "open_images", lambda *names: asked.append(names) or images
    )
    data |= {"protocol": "official", "name": "rxrx1/tiny", "dir": "moved"}
    settings = {f"data.{name}": value for name, value in data.items()}
    outcomes = [o._replace(run=o.run._replace(config=settings)) for o in outcomes]
    more, found = scores.with_lda12(methods, outcomes, "here")
    assert set(asked) == {("here", "rxrx1/tiny")}
    rows = scores.make_rows(more, found)
    split = make_split(images.sites, "official")
    expected = accuracies(lda12(images.sites, 16 * 16, split, "official"))
    assert rows[0].name == "LDA-12" and rows[0].accuracy == dict.fromkeys(UNITS, expected)
    assert [row.name for row in rows[1:]] == [r.name for r in scores.make_rows(methods, outcomes)]
    assert more.baseline == "base" and list(scores.gap_scores(more, found)) == ["LDA-12", "base"]
    said = " ".join(tables.claims(more, rows))
    mean = np.mean([o.run.accuracy["site"]["all"] for o in outcomes
                    if (o.job.trained, o.job.protocol) == ("base", "batch")])  # fmt: skip
    assert f"is {100 * (expected['site']['all'] - mean):+.1f} (" in said
    compared = scores.gains(more, rows)["LDA-12"][1]
    assert ("more than intensities" in said) == (compared.high >= 0)
    for base, below, sure in ((0.1, "1 of 3", False), (0.9, "0 of 3", True)):
        level = {"base": base, "LDA-12": 0.5}
        told = []
        for row in rows:
            mean, step = level.get(row.trained, 0.95), 0.01 * (row.trained == "base")
            accuracy = {u: {"site": {"all": mean + step * u.fold}} for u in row.accuracy}
            told.append(row._replace(accuracy=accuracy))
        said = " ".join(tables.claims(more, told))
        assert f"above {below} " in said and ("more than intensities" in said) != sure


@pytest.mark.parametrize(
    ("folds", "values", "named"),
    [
        (2, [0.5, 0.6], ["No row", "three folds"]),
        (3, [0.5, 0.503, 0.498], ["1 of 1 rows", "0 worse", ": other.", "1 of 1 intervals"]),
        (3, [0.1, 0.103, 0.098], ["0 of 1 rows", "1 worse", "Worse: other.", "1 of 1 intervals"]),
        (3, [0.5, 0.1, 0.3], ["0 of 1 rows", "0 worse", "0 of 1 intervals", "below about"]),
    ],
)
def test_what_a_leaderboard_can_say(methods, folds, values, named):
    units = [Unit("w", fold, 0) for fold in range(folds)]
    rows = [
        Row(
            name, "none", "inductive",
            {u: {"site": {"all": x}} for u, x in zip(units, of, strict=True)}, {}, 0.5,
        )
        for name, of in (("base", [0.3] * folds), ("other", values))
    ]  # fmt: skip
    said = " ".join([tables.headline(methods, rows), *tables.claims(methods, rows)])
    assert all(part in said for part in [*named, "real images"])


def test_two_worlds_can_stand_in_one_table(methods):
    rng = np.random.default_rng(0)
    units = [Unit(world, 0, 0) for world in ("a", "b")]
    found = [outcome(made_up(rng), unit, name) for name in ("base", "wide") for unit in units]
    rows = scores.make_rows(methods, found)
    values = {o.job: 100 * o.run.accuracy["site"]["all"] for o in found}
    gains = [values[Job("", "wide", "batch", u)] - values[Job("", "base", "batch", u)]
             for u in units]  # fmt: skip
    spread = tables.spread_table(methods, rows)
    assert spread.head[2:] == ["a", "b"]
    assert of_rows(spread)["wide"][1:] == [f"{gain:+.1f}" for gain in gains]
    of_wide = of_rows(tables.accuracy_table(methods, rows, runs=2))["wide"]
    assert of_wide[2] == f"{np.mean(gains):+.1f} (–)"  # of two worlds no interval


def test_gap_table_against_pandas(methods, outcomes):
    table = tables.gap_table(methods, outcomes)
    ([*row],) = table.rows  # `other` has no random runs
    row = list(map(str, row))
    data = frame(outcomes).query("trained == 'base'")
    wide = data.pivot(index=["fold", "seed"], columns="protocol", values="site")
    for protocol, part in (("random_site", row[4:6]), ("random_well", row[6:8])):
        pairs = 100 * (wide[protocol] - wide["batch"])
        ratio = wide[protocol].mean() / wide["batch"].mean()
        assert part == [interval(pairs.groupby("fold").mean()), f"{ratio:.2f}"]


def test_figures_draw_the_means_over_folds(methods, outcomes):
    data = frame(outcomes).query("trained == 'base'")
    means = 100 * data.groupby(["protocol", "fold"])["site"].mean().groupby("protocol").mean()
    series = figures.gap_series(scores.gap_scores(methods, outcomes))
    assert [one.of["base"].mean for one in series] == pytest.approx(list(means))
    rows = scores.make_rows(methods, outcomes)
    gains = scores.gains(methods, rows)
    axis = figures.gains(methods, rows).axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["other", "wide"]
    drawn = {round(float(x), 6) for line in axis.lines for x in np.ravel(line.get_xdata())}
    assert {round(100 * gains[name][1].mean, 6) for name in ("other", "wide")} <= drawn


@pytest.mark.parametrize(
    ("claim", "batch", "random", "held"),
    [
        ("no gap", [0.500, 0.504, 0.500], [0.502, 0.500, 0.503], "holds"),
        ("no gap", [0.50, 0.54, 0.49], [0.53, 0.50, 0.51], "cannot say"),  # 0 is in a wide interval
        ("no gap", [0.50, 0.52, 0.49], [0.60, 0.61, 0.59], "DOES NOT HOLD"),
        ("no gap", [0.60, 0.61, 0.59], [0.50, 0.52, 0.49], "DOES NOT HOLD"),  # the other way round
        ("gap", [0.50, 0.52, 0.49], [0.60, 0.61, 0.59], "holds"),
        ("gap", [0.50, 0.52, 0.49], [0.60, 0.51, 0.49], "cannot say"),
        ("gap", [0.60, 0.61, 0.59], [0.50, 0.52, 0.49], "DOES NOT HOLD"),
        ("chance", [0.252, 0.250, 0.247], [0.250, 0.247, 0.251], "holds"),
        ("chance", [0.252, 0.250, 0.247], [0.40, 0.41, 0.42], "DOES NOT HOLD"),
        ("chance", [0.10, 0.11, 0.12], [0.252, 0.250, 0.247], "DOES NOT HOLD"),
        ("chance", [0.20, 0.28, 0.27], [0.252, 0.250, 0.247], "cannot say"),
        ("gap", [0.5, 0.51], [0.6, 0.61], "cannot say"),
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
    assert row[4] == tables.MUST[claim] and row[6] == held
    if claim != "chance" and len(batch) > 2:
        assert row[5] == f"gap {interval(pd.Series(100 * (np.array(random) - batch)))}"


def test_the_wider_budget_of_training_and_correction_counts(methods, outcomes, monkeypatch):
    monkeypatch.setattr(scores, "load_correction", lambda path, name: {})
    corrections = methods.corrections | {"base": ("centre_scale_plate", "assign_once")}
    budgets = methods.budgets | {"base": "unlabelled test images"}
    methods = methods._replace(corrections=corrections, budgets=budgets)
    found = {row.correction: row.budget for row in scores.make_rows(methods, outcomes)
             if row.trained == "base"}  # fmt: skip
    wide = "unlabelled test images"
    assert found == {"none": wide, "centre_scale_plate": wide, "assign_once": "design"}


def test_the_first_of_each_budget_is_shown_whatever_it_scored():
    def row(name, budget, value):
        return Row(name, "none", budget, {UNITS[0]: {"site": {"all": value}}}, {}, SHARED)

    rows = [row("a", "inductive", 0.1), row("base", "inductive", 0.9), row("b", "inductive", 0.2),
            row("c", "design", 0.3)]  # fmt: skip
    assert [r.name for r in figures.choose_rows(rows, "base")] == ["base", "a", "c"]
