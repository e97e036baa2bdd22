"""benchmarks/acceptance.py: made-up runs with known answers, SciPy, and closed forms."""

import itertools
import math
import re

import numpy as np
import pytest
from commands import run_command
from dataset_fixture import build_screen
from made_boards import ABOVE, BASE, SITES, WORLDS, make_boards, world
from PIL import Image
from scipy import stats

from benchmarks import acceptance, dose
from benchmarks.acceptance import CRITERIA, Criterion
from rxrx1_jax.data import records, splits
from rxrx1_jax.methods.lda12 import lda12
from rxrx1_jax.methods.statistics import Comparison, Unit
from rxrx1_jax.training.predictions import accuracies

VERDICTS = ["holds", "holds", "holds", None, "cannot say", "does not hold", "holds"]


@pytest.fixture(scope="module")
def boards(tmp_path_factory):
    effects, without = map(tmp_path_factory.mktemp, ("effects", "without"))
    make_boards(effects, without)
    return effects, without


def rows_of(markdown):
    lines = (line for line in markdown.splitlines() if line.startswith("| "))
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_criteria_of_made_up_runs(boards, capsys):
    effects, without = boards
    assert acceptance.main([str(effects), f"--without={without}"]) == 0
    rows = rows_of(capsys.readouterr().out)
    first, second = rows[1:8], rows[9:]
    order = "random_well", "without", "adabn", None, "norm_site", "gain_jitter", "cutmix_80"
    for row, name, verdict in zip(first, order, VERDICTS, strict=True):
        assert row[3] == f"{WORLDS}, {WORLDS}"
        if name:
            base = ABOVE["baseline_80" if name.endswith("_80") else "baseline"]
            points = np.subtract(ABOVE[name], base) * 100 / SITES
            low, high = stats.ttest_1samp(points, 0).confidence_interval()
            printed = [float(number) for number in re.findall(r"[+-][\d.]+", row[2])]
            assert printed == pytest.approx([points.mean(), low, high], abs=0.051)
            assert row[4] == verdict
    sd = {row[0]: row[2] for row in second}
    points = np.array(ABOVE["random_well"]) * 100 / SITES
    assert sd["random by well - batch"] == f"{points.std(ddof=1):.1f}"


def test_lda12_is_of_the_data_of_the_runs(boards):
    """On the smoke screen; `lda12` has an oracle of its own."""
    effects, without = map(acceptance.finished, boards)
    found = acceptance.measured(effects, without)[acceptance.LDA]
    for k in range(WORLDS):
        images = records.open_images("", world(k))
        split = splits.make_split(images.sites, "batch")
        accuracy = accuracies(lda12(images.sites, 16 * 16, split, "batch"))["site"]["all"]
        assert found[Unit(world(k), 0, 0)] == pytest.approx(accuracy - BASE / SITES / 3)


def test_a_criterion_without_runs_cannot_be_judged(boards):
    effects, without = map(acceptance.finished, boards)
    few = [o for o in effects if o.job.trained != "cutmix_80"]
    found = acceptance.measured(few, without)
    table = acceptance.acceptance(found, 0.0)
    assert list(map(str, table.rows[-1]))[2:] == ["–", "0, 0", "cannot say"]
    assert len(acceptance.planning(found).rows) == len(CRITERIA)  # the others, and all


@pytest.mark.parametrize(
    ("mean", "low", "high", "expected"),  # of 4 worlds with an error of 1 point
    [
        (2.4, 0, math.inf, "holds"), (2.3, 0, math.inf, "cannot say"),
        (-3.2, 0, math.inf, "does not hold"), (-3.1, 0, math.inf, "cannot say"),
        (0.6, -3, 3, "holds"), (0.7, -3, 3, "cannot say"), (-6.2, -3, 3, "does not hold"),
    ],
)  # fmt: skip
def test_verdicts(mean, low, high, expected):
    """t of 3 degrees: 2.353 at 5 % of one side, 3.182 at 2.5 %."""
    half = 3.1824 / 100
    of = Comparison(mean / 100, 4, 0.01, mean / 100 - half, mean / 100 + half, 0.5)
    assert acceptance.judge(Criterion("x", low, high, 0), of) == expected


def test_spreads_are_those_of_the_analysis_of_variance():
    values = np.random.default_rng(0).normal(size=(5, 3)) + np.arange(5)[:, None]
    score = {Unit(f"w{k}", fold, 0): values[k, fold] for k in range(5) for fold in range(3)}
    within = values.var(1, ddof=1).mean()
    between = values.mean(1).var(ddof=1) - within / 3
    assert acceptance.spreads(score) == pytest.approx((math.sqrt(between), math.sqrt(within)))
    of_one = {unit: value for unit, value in score.items() if unit.world == "w2"}
    assert acceptance.spreads(of_one) == pytest.approx((0, values[2].std(ddof=1)))
    first = {unit: value for unit, value in score.items() if unit.fold == 0}
    assert acceptance.spreads(first) == pytest.approx((values[:, 0].std(ddof=1), 0))


@pytest.mark.parametrize(("worlds", "folds"), [(4, 1), (8, 3)])
def test_how_often_a_right_screen_passes_is_the_power_of_the_t_test(worlds, folds):
    """One-sided, by SciPy's noncentral t."""
    one, spread = Criterion("x", 0, math.inf, 4.0), (0.03, 0.06)
    error = math.sqrt((spread[0] ** 2 + spread[1] ** 2 / folds) / worlds)
    expected = stats.nct.sf(stats.t.ppf(0.95, worlds - 1), worlds - 1, 0.04 / error)
    found = acceptance.share_passed(one, spread, worlds, folds)
    assert found == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 2000))


def test_a_difference_at_the_bound_passes_in_five_of_a_hundred():
    found = acceptance.share_passed(Criterion("x", -2, math.inf, -2), (0.03, 0.0), 8, 1)
    assert found == pytest.approx(0.05, abs=0.02)


def test_a_folder_without_runs_is_named(tmp_path, capsys):
    assert acceptance.main([str(tmp_path), f"--without={tmp_path}"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and str(tmp_path) in said[0]


def test_curves_over_dose_are_the_differences_of_each_board(boards, tmp_path, capsys):
    """Made-up boards have no centroids, so those curves have no points."""
    effects, without = boards
    picture = tmp_path / "dose.png"
    assert dose.main([f"1={effects}", f"0={without}", f"--out={picture}"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| g")]
    rows = {
        cells[0].strip(): cells[1:] for cells in (line.strip("| ").split("|") for line in lines)
    }
    for name, planted in (("gap: random by well - batch", ("without", "random_well")),
                          ("gain of adabn_experiment", (None, "adabn"))):  # fmt: skip
        for cell, of in zip(rows[name], planted, strict=True):
            if of:
                points = np.array(ABOVE[of]) * 100 / SITES
                assert float(cell.split()[0]) == pytest.approx(points.mean(), abs=0.051)
            else:
                assert cell.strip() == "–"
    assert Image.open(picture).size[0] > 500


def test_the_same_runs_cannot_be_those_without_batch_effects(boards, capsys):
    effects, _ = boards
    assert acceptance.main([str(effects), f"--without={effects}"]) == 1
    assert capsys.readouterr().err.startswith(f"error: --without={effects}")


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["half=x"], "half"), (["1=nowhere"], "nowhere"), (["1"], "'1'"), (["1="], "'1='"),
        (["nan=x"], "nan"), (["inf=x"], "inf"), (["0.5=x", ".5=y"], "dose .5"),
    ],
)  # fmt: skip
def test_a_dose_that_cannot_be_drawn_is_one_line(given, named, tmp_path, capsys):
    assert dose.main([*given, f"--out={tmp_path}/dose.png"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and named in said[0]


@pytest.mark.parametrize("place", ["", "none/dose.png"])
def test_a_picture_that_cannot_be_written_is_refused_first(place, tmp_path, capsys):
    assert dose.main(["1=nowhere", f"--out={tmp_path / place}"]) == 1
    assert capsys.readouterr().err.startswith(f"error: --out={tmp_path / place}: ")


@pytest.mark.long
def test_a_small_tier_is_drawn_trained_and_judged(tmp_path, capsys):
    """Worlds of 16 px and one epoch: no verdict is right, but each has its worlds and its runs."""
    for dose_of, k in itertools.product((1, 0), (0, 1)):
        screen = {"seed": k, "batch_effect": dose_of, "huvec": 5, "treatments": 4}
        build_screen(tmp_path, f"w{k}d{dose_of}", **screen)
    for dose_of, methods in ((1, "screening"), (0, "dose")):
        worlds = [f"rxrx1/w{k}d{dose_of}" for k in (0, 1)]
        done = run_command(
            "leaderboard", "--config=demo", f"--config.data.dir={tmp_path}", "--folds=0",
            f"--config.data.name={worlds[0]}", f"--worlds={','.join(worlds)}", "--seeds=0",
            "--config.model.width=8", "--config.optim.epochs=1", "--config.train.eval_every=0",
            "--config.optim.warmup_epochs=0.5", "--config.optim.batch_size=8",
            f"--methods={methods}", f"--workdir={tmp_path}/{dose_of}", "--workers=2",
        )  # fmt: skip
        assert done.code == 0, done
    capsys.readouterr()
    assert acceptance.main([f"{tmp_path}/1", f"--without={tmp_path}/0"]) == 0
    rows = rows_of(capsys.readouterr().out)[1:8]
    assert [row[0] for row in rows] == [one.name for one in CRITERIA]
    assert all(row[3] == "2, 2" and re.match(r"[+-]\d", row[2]) for row in rows), rows
