"""Several datasets as worlds: which are refused, where their runs lie, what one table says."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from outcomes import made_up, of_rows, outcome
from scipy import stats

from rxrx1_jax.leaderboard import figures, jobs, scores, tables, worlds
from rxrx1_jax.leaderboard.methods import Control, Methods
from rxrx1_jax.methods.statistics import Unit
from rxrx1_jax.report import table1

WORLDS = ["rxrx1/a", "rxrx1/b", "rxrx1/c"]
METHODS = Methods(
    {"base": {}, "other": {}},
    {"base": ("centroids",), "other": ()},
    ("base",),
    dict.fromkeys(("base", "other"), "inductive"),
    {
        "elsewhere": Control({"data.name": "rxrx1/none"}, {"base": "no gap"}),
        "here": Control({}, {"base": "chance"}),
    },
)


def screen(first, classes=4, size=16, source="synthetic"):
    """A dataset of 40 sites, whose images' checksums are first, first + 1 ..."""
    sites = np.zeros(40, [("adler32", "u4"), ("sirna_id", "i4"), ("well_type", "U20"),
                          ("dataset", "U5"), ("experiment", "U8")])  # fmt: skip
    sites["adler32"], sites["sirna_id"] = first + np.arange(40), np.arange(40) % classes
    sites["well_type"], sites["dataset"], sites["experiment"] = "treatment", "train", "HUVEC-01"
    return SimpleNamespace(sites=sites, image_shape=(6, size, size), about={"source": source})


@pytest.mark.parametrize(
    ("b", "said"),
    [
        (screen(100), None),
        (screen(20), None),  # half of the images
        (screen(19), "same images"),
        (screen(100, classes=5), "5 classes"),
        (screen(100, size=32), "32, 32"),
        (screen(100, source="release"), "release"),
    ],
)
def test_worlds_that_must_not_be_averaged(monkeypatch, b, said):
    built = {"rxrx1/a": screen(0), "rxrx1/b": b}
    monkeypatch.setattr(worlds.records, "find_dataset", lambda folder, name: name)
    monkeypatch.setattr(worlds.records, "Records", built.__getitem__)
    if said is None:
        assert worlds.check_worlds("rxrx1/a, rxrx1/b", "data") == ["rxrx1/a", "rxrx1/b"]
        return
    with pytest.raises(ValueError, match=f"--worlds: rxrx1/a .*{said}"):
        worlds.check_worlds("rxrx1/a,rxrx1/b", "data")


def test_a_world_without_a_name_is_refused():
    with pytest.raises(ValueError, match="--worlds=rxrx1/a,: .*NAME,NAME"):
        worlds.check_worlds("rxrx1/a,", "data")


def test_one_world_is_not_named_in_paths_and_further_ones_are():
    alone, more = (
        jobs.make_jobs(METHODS, names, [0, 1], [0, 1], "rxrx1/b")
        for names in (["rxrx1/b"], WORLDS)
    )
    paths = {job.path(Path("w")): job for job in more}
    assert len(paths) == len(more) and {*alone} < {*more}  # nothing is trained again
    assert {job.unit.world for job in alone} == {"rxrx1/b", "rxrx1/none"}
    assert paths[Path("w/base/batch-0-0")].unit == Unit("rxrx1/b", 0, 0)
    assert paths[Path("w/base/rxrx1/a/batch-1-1")].unit == Unit("rxrx1/a", 1, 1)
    assert paths[Path("w/controls/here/base/rxrx1/c/batch-0-0")].unit == Unit("rxrx1/c", 0, 0)
    fixed = [job for job in more if job.control == "elsewhere"]
    assert {job.unit for job in fixed} == {Unit("rxrx1/none", fold, 0) for fold in (0, 1)}
    assert [job.unit.world for job in more if job.trained == "other"][:3] == WORLDS


def test_intervals_over_three_worlds_are_plain():
    rng = np.random.default_rng(0)
    units = [Unit(world, fold, 0) for world in WORLDS for fold in (0, 1)]
    found = [outcome(made_up(rng), unit, name) for name in METHODS.trained for unit in units]
    methods = METHODS._replace(corrections={"base": (), "other": ()})
    rows = scores.make_rows(methods, found)
    base, other = (
        np.reshape([100 * o.run.accuracy["site"]["all"] for o in found if o.job.trained == name],
                   (3, 2)).mean(1) for name in ("base", "other")
    )  # fmt: skip
    low, high = stats.ttest_rel(other, base).confidence_interval()
    table = tables.accuracy_table(methods, rows, len(units))
    row = of_rows(table)["other"]
    assert row[0] == f"{other.mean():.1f} ± {other.std(ddof=1):.1f}"
    assert row[2] == f"{(other - base).mean():+.1f} ({low:+.1f} to {high:+.1f})"
    assert row[3] == f"{stats.ttest_rel(other, base).pvalue:.3f}"
    assert str(table.rows[1][-1]).split()[:2] == ["rxrx1/a:0.0", "rxrx1/a:1.0"]
    assert "over worlds" in table.notes[0] and "worlds" in tables.claims(methods, rows)[2]
    spread = tables.spread_table(methods, rows)
    assert spread.head[2:] == list(WORLDS[:3])
    assert [f"{x:+.1f}" for x in other - base] == of_rows(spread)["other"][1:]


def test_an_experiment_of_each_world_is_drawn_for_itself():
    rng = np.random.default_rng(1)
    units = [Unit(world, 0, 0) for world in WORLDS[:2]]
    found = [outcome(made_up(rng), unit) for unit in units]
    rows = scores.make_rows(METHODS._replace(corrections={"base": (), "other": ()}), found)
    (series,) = figures.experiments(rows)
    values = {f"HUVEC-01 of {unit.world}": 100 * o.run.accuracy["site"]["experiment"]["HUVEC-01"]
              for unit, o in zip(units, found, strict=True)}  # fmt: skip
    assert len(series.of) == 8 and values == {n: series.of[n].mean for n in values}
    said = table1.describe(found[0].run.screen, [
        o.run._replace(config={"data.name": o.job.unit.world, "data.fold": 0, "data.seed": 0,
                               "train.seed": 0, "model.name": "m", "optim.epochs": 1})
        for o in found
    ])  # fmt: skip
    assert "rxrx1/a 1, rxrx1/b 1" in said
