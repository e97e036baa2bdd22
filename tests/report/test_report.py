"""Reports of made-up runs whose every accuracy is chosen, against figures worked out by hand."""

import csv
import json
import re
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from arrays import make_sites
from browser import check_page, check_text, needs_chromium, texts
from commands import run_command
from finished_runs import EXPERIMENTS, all_right, cells, make_run, one_screen

from rxrx1_jax.report import figures, page, table1
from rxrx1_jax.report.runs import group, load_runs
from tfds_builder import faux_colours


def u2os_models(folder, protocol) -> list[Path]:
    """Of two folds: 90 and 80 % by site."""
    options = {"protocol": protocol, "cell_type": "U2OS"}
    return [make_run(folder / f"u2os{fold}", {"U2OS": (sites, 9)}, fold=fold, **options)
            for fold, sites in ((0, 18), (1, 16))]  # fmt: skip


def test_tables_equal_hand_computed_figures(demo, groups):
    screen, runs = one_screen(demo)
    by_site, by_well, compared = table1.tables(screen, groups).values()
    site, well = cells(by_site), cells(by_well)
    # All: (12+8+6+2)/80 = 35 %, 28/80, 28/80. HUVEC 60, 50, 40; HepG2 30, 40, 50.
    assert list(map(str, by_site.rows[0])) == [
        *("Batch", "0 1 2", "35.0 ± 0.0", "50.0 ± 10.0", "40.0 ± 0.0", "40.0 ± 10.0", "10.0 ± 0.0")
    ]
    # 70 and 75 %: sample sd 5 / sqrt 2.
    assert site["Random (by site)"] == ["0 1", *["72.5 ± 3.5"] * 5]
    assert site["Random, by well (strict)"] == ["0", *["50.0"] * 5]
    assert site["Batch, no normalisation"] == ["0", *["5.0"] * 5]
    # Paired over folds 0 and 1: All 35 and 40; HUVEC 10 and 25, ratio 145 / 110.
    assert site["Random (by site) - batch"] == [
        *("", "+37.5 ± 3.5", "+17.5 ± 10.6", "+32.5 ± 3.5", "+37.5 ± 3.5", "+62.5 ± 3.5")
    ]
    assert site["Random (by site) / batch"] == ["", "2.07", "1.32", "1.81", "2.07", "7.25"]
    # Fold 0 alone: 50 - 35; HUVEC is worse than batch.
    assert site["Random, by well (strict) - batch"][:3] == ["", "+15.0", "-10.0"]
    # By well: 16/40, 16/40, 16/40; HUVEC 70, 60, 50. Fold 0: 60 - 40; 60 / 40.
    assert well["Batch"][:3] == ["0 1 2", "40.0 ± 0.0", "60.0 ± 10.0"]
    assert well["Random (by site)"][1] == "80.0 ± 0.0"
    assert well["Random, by well (strict) - batch"][1] == "+20.0"
    assert well["Random, by well (strict) / batch"][1] == "1.50"
    # By well the split by site is not compared with batch, and a note says why.
    assert not {"Random (by site) - batch", "Random (by site) / batch"} & well.keys()
    assert "Random (by site)" in by_well.notes[-1] and "1,108" in by_site.notes[-1]
    # The rows in the paper's order, then the paper's own.
    assert [str(row[0]) for row in by_site.rows[:4]] == [of.label for of in groups]
    heading, *of_paper = by_site.rows[-5:]
    assert len(heading) == 1 and [str(row[0]) for row in of_paper] == [
        *("Batch", "Random", "Random - batch", "Random / batch")
    ]
    assert site["Random / batch"][1] == "1.20"
    assert list(map(str, of_paper[0][2:])) == [
        *("44.1 ± 5.7", "56.7 ± 8.4", "31.2 ± 2.7", "30.8 ± 4.0", "2.4 ± 1.0")
    ]
    here = cells(compared)
    assert here["classes"] == ["32 (chance 3.1 %)", "1,108 (chance 0.1 %)"]
    assert here["image size"] == ["64 px", "512 px"] and here["epochs"] == ["30", "not known"]
    assert here["network"] == ["resnet_demo", "ResNet-50"]
    for word in ("synthetic", "3.1 %", "64 x 64", "640", "resnet_demo", "30 epochs", "0, 1, 2"):
        assert word in table1.describe(screen, runs)
    assert "37.5 ± 3.5 points above" in table1.headline(groups)


def test_the_result_of_one_split_is_its_accuracy(demo):
    assert "35.0 ± 0.0 %" in table1.headline(group(one_screen(demo[:3])[1]))


def test_separate_models_fill_their_own_block(demo, tmp_path):
    screen, runs = one_screen([*demo, *u2os_models(tmp_path, "batch")])
    first, _, separate, *_ = table1.tables(screen, group(runs)).values()
    assert str(first.rows[0][-1]) == "10.0 ± 0.0"
    assert list(map(str, separate.rows[0])) == [  # 90 and 80 %
        *("Batch", "0 1 2", "35.0 ± 0.0", "–", "–", "–", "85.0 ± 7.1 (n = 2)")
    ]


def test_runs_of_single_cell_types_alone(tmp_path):
    runs = [
        make_run(tmp_path / c, {c: (10, 5)}, protocol=protocol, cell_type=c)
        for c, protocol in (("RPE", "batch"), ("HUVEC", "random_well"))
    ]
    screen, runs = one_screen(runs)
    tables = table1.tables(screen, group(runs))
    assert len(tables) == 3 and "50.0 %" in table1.headline(group(runs))
    first = tables["by-site-separate-models"].rows[0]
    assert list(map(str, first)) == ["Batch", "0", "–", "–", "50.0", "–", "–"]


def test_each_run_is_a_row_that_leads_to_its_folder(demo, groups):
    table = page.runs_table(groups)
    of = {str(row[0]): dict(zip(table.head, map(str, row), strict=True)) for row in table.rows}
    assert len(of) == len(demo)
    assert of["batch1"] | {
        "fold": "1", "seed": "0", "lowest experiment, %": "U2OS-01 10.0", "site %": "35.0",
        "well %": "40.0", "loss": "1.250",
    } == of["batch1"]  # fmt: skip
    assert f'href="{demo[0].name}/"' in table.html(demo[0].parent)


def test_crop_and_source_are_named(tmp_path):
    changes = {"name": "rxrx1/native", "crop": 48}
    screen, runs = one_screen([make_run(tmp_path / "run", all_right(4, 2), "release", **changes)])
    assert "48 px" in cells(table1.beside_paper(screen, runs))["image size"][0]
    assert "real" in cells(table1.beside_paper(screen, runs))["data"][0]
    assert "synthetic" not in table1.describe(screen, runs)


class FakeRecords:
    """Screen of two siRNAs; siRNA 7 is in every experiment. Pixel = experiment gain x gradient."""

    def __init__(self):
        wells = [(f"{name}-0{e}", 2, "D04", "treatment", 7) for name in EXPERIMENTS for e in "123"]
        for name in EXPERIMENTS:
            wells += [(f"{name}-01", 1, "B03", "positive_control", 1108),
                      (f"{name}-01", 1, "C03", "treatment", 2)]  # fmt: skip
        self.sites = make_sites(wells)

    def __getitem__(self, i: int) -> np.ndarray:
        rng = np.random.default_rng(i)
        gain = 1 + int(self.sites["experiment"][i][-1])
        return (gain * rng.integers(0, 40, (6, 32, 32))).astype(np.uint8)


@pytest.fixture(scope="module")
def written(demo, tmp_path_factory) -> Path:
    """The folder of a page."""
    out = tmp_path_factory.mktemp("page") / "page"
    with mock.patch.object(page, "open_images", side_effect=lambda *_: FakeRecords()) as find:
        _, remarks = page.write_page(page.results_of(load_runs(demo)), out, out / "moved")
    assert find.call_args.args == (out / "moved", "rxrx1/synthetic:1.0.0") and remarks == []
    return out


def test_page_is_complete_and_self_contained(demo, groups, written):
    out, html = written, (written / "index.html").read_text()
    found = re.findall(r'<img src="([^"]+)" alt="([^"]+)">', html)
    images = [name for name, _ in found]
    assert sorted(images) == sorted(p.name for p in out.glob("*.svg")) and len(images) == 5
    assert {p.suffix for p in out.iterdir()} == {".html", ".svg", ".csv", ".json"}
    for name, alt in found:
        assert len(texts(out / name)) > 4 and f"<figcaption>{alt}" not in html
    tables = table1.tables(one_screen(demo)[0], groups) | {"runs": page.runs_table(groups)}
    for name, table in tables.items():
        assert table.html(out) in html
        rows = json.loads((out / f"{name}.json").read_text())["rows"]
        assert list(csv.DictReader(open(out / f"{name}.csv")))[0].keys() == rows[0].keys()
    assert "http" not in html
    for word in ("abc1234", "cpu:cpu", "jax 0.10.2", "rxrx1_jax."):
        assert word in html
    assert 0 < html.index(table1.headline(groups)) < html.index("<table")


def test_text_of_figures_can_be_read_on_a_telephone(written):
    for svg in written.glob("*.svg"):
        check_text(svg)


@needs_chromium
def test_nothing_is_wider_than_the_page(written, methods, tmp_path):
    check_page(written / "index.html", tmp_path)
    compared, _ = page.write_page(page.results_of(load_runs(methods)), tmp_path / "compared")
    check_page(compared, tmp_path)


def test_the_command_prints_tables_and_writes_a_page_without_the_dataset(tmp_path):
    strange = make_run(tmp_path / "a<b>&[1]", all_right(3, 3), protocol="<script>")
    done = run_command("report", strange, "--out", tmp_path / "page")
    screen, runs = one_screen([strange])
    for table in table1.tables(screen, group(runs)).values():
        assert table.markdown() in done.out
    index = tmp_path / "page" / "index.html"
    assert done.code == 0 and done.last == f"Page: {index}" and "rxrx1/synthetic: " in done.out
    assert len(list((tmp_path / "page").glob("*.svg"))) == 3
    html = index.read_text()
    assert "<script>" not in html and "a&lt;b&gt;&amp;" in html


def test_a_bad_run_ends_the_command_before_a_page(tmp_path):
    run = make_run(tmp_path / "run", all_right(3, 3))
    (run / "metrics.jsonl").unlink()
    done = run_command("report", run, "--out", tmp_path / "page")
    assert done.code == 1 and str(run) in done.err and done.err.count("\n") == 1
    assert not (tmp_path / "page").exists()


def test_figures_draw_the_runs_figures(groups):
    series = figures.by_cell_type(groups, paper=True)
    assert [one.label for one in series[:4]] == [of.label for of in groups]
    assert [series[k].of["All"].mean for k in range(4)] == pytest.approx([35, 72.5, 50, 5])
    assert series[0].of["HUVEC"][:2] == pytest.approx((50, 10))
    assert [one.of["U2OS"].mean for one in series[4:]] == [2.4, 22.0]
    axis = figures.dots(["All", "HUVEC"], series, 3.1).axes[0]
    drawn = {round(float(x), 6) for line in axis.lines for x in np.ravel(line.get_xdata())}
    assert {35, 72.5, 50, 40, 60, 44.1, 3.1} <= drawn
    shapes = [line.get_marker() for line in axis.lines if line.get_label().startswith("Random")]
    assert len(set(shapes)) == len(shapes) == 2
    curves = figures.learning_curves(groups).axes[0]
    ends = sorted(float(line.get_ydata()[-1]) for line in curves.lines if len(line.get_ydata()))
    fit = 100 * (1 - 0.9**30)
    assert ends == pytest.approx([0.6 * fit] * 3 + [0.95 * fit] * 3)
    assert f"{0.95 * fit:.0f} %" in figures.last_accuracies(groups)
    of = figures.by_experiment({"x": [run.accuracy for run in groups[0].runs]})
    assert of[0].of["HUVEC-05"].mean == pytest.approx(50)
    assert of[0].of["HUVEC-05"].runs == pytest.approx((60, 50, 40))
    assert figures.experiments_of(of) == list(EXPERIMENTS.values())


def test_sites_of_the_montages():
    chosen = figures.choose_sites(FakeRecords())
    assert list(chosen) == ["HUVEC", "RPE", "HEPG2", "U2OS"]
    sites, images = chosen["RPE"]
    assert len(images) == len(sites)
    # siRNA 2 is lower but in one experiment only; controls are never shown.
    assert [(s["experiment"], s["sirna_id"]) for s in sites] == [
        *(("RPE-01", 7), ("RPE-02", 7), ("RPE-03", 7))
    ]


def test_flat_channel_stays_black():
    flat = np.full((6, 8, 8), 9, np.uint8)
    assert not faux_colours.stretch(flat, *faux_colours.contrast_limits([flat], (1, 99.5))).any()
