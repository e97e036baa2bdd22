"""Reports of made-up runs whose every accuracy is chosen, against figures worked out by hand."""

import csv
import json
import re
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from arrays import make_sites
from browser import check_page, check_text, needs_chromium, texts
from commands import run_command
from finished_runs import EXPERIMENTS, all_right, edited, make_run
from scipy import stats

from rxrx1_jax.config import VERSION, upgrade
from rxrx1_jax.report import comparison, figures, page, table1
from rxrx1_jax.report.files import ReportError
from rxrx1_jax.report.runs import group, load_runs
from tfds_builder import faux_colours


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> list[Path]:
    """Batch of three folds, random by site of two, random by well and no normalisation of one.

    Read only: tests that change a run make one of their own.
    """
    folder = tmp_path_factory.mktemp("demo")
    folds = [
        # (right sites of 20, right wells of 10): by site 60, 50, 40 % for HUVEC
        {"HUVEC": (12, 7), "RPE": (8, 5), "HEPG2": (6, 3), "U2OS": (2, 1)},
        {"HUVEC": (10, 6), "RPE": (8, 5), "HEPG2": (8, 4), "U2OS": (2, 1)},
        {"HUVEC": (8, 5), "RPE": (8, 5), "HEPG2": (10, 5), "U2OS": (2, 1)},
    ]
    runs = [make_run(folder / f"batch{i}", right, fold=i) for i, right in enumerate(folds)]
    for fold, sites in ((0, 14), (1, 15)):
        right = all_right(sites, 8)
        runs.append(make_run(folder / f"site{fold}", right, protocol="random_site", fold=fold))
    runs.append(make_run(folder / "well0", all_right(10, 6), protocol="random_well"))
    runs.append(make_run(folder / "none0", all_right(1, 1), normalisation="none"))
    return runs


@pytest.fixture(scope="module")
def groups(demo):
    return group(one_screen(demo)[1])


def one_screen(paths):
    ((screen, runs),) = load_runs(paths).items()
    return screen, runs


def u2os_models(folder, protocol) -> list[Path]:
    """Of two folds: 90 and 80 % by site."""
    options = {"protocol": protocol, "cell_type": "U2OS"}
    return [make_run(folder / f"u2os{fold}", {"U2OS": (sites, 9)}, fold=fold, **options)
            for fold, sites in ((0, 18), (1, 16))]  # fmt: skip


def cells(table) -> dict[str, list[str]]:
    """{first cell: the others}; headings have no others."""
    return {str(first): [str(cell) for cell in rest] for first, *rest in table.rows}


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


@pytest.fixture(scope="module")
def methods(tmp_path_factory) -> list[Path]:
    """Three folds of a baseline, of coral and of cutmix, which has a second seed of fold 0."""
    folder = tmp_path_factory.mktemp("methods")
    right = {"base": (8, 10, 9), "coral": (10, 13, 12), "cutmix": (9, 9, 11)}
    changes = {"base": {}, "coral": {"optim__loss": "coral"}, "cutmix": {"augmentation": "cutmix"}}
    runs = [
        make_run(folder / f"{name}{fold}", all_right(sites, 5), fold=fold, **changes[name])
        for name, of in right.items() for fold, sites in enumerate(of)
    ]  # fmt: skip
    more = {"train__seed": 1, "train__log_every": 7, "fold": 0, **changes["cutmix"]}
    return [*runs, make_run(folder / "cutmix-seed", all_right(11, 5), **more)]


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
