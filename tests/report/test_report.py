"""Reports of made-up runs whose every accuracy is chosen, against figures worked out by hand."""

import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from finished_runs import EXPERIMENTS, all_right, edited, make_run

from rxrx1_jax.config import VERSION, upgrade
from rxrx1_jax.methods.statistics import Unit
from rxrx1_jax.report import __main__ as report
from rxrx1_jax.report import figures, page, table1
from rxrx1_jax.report.files import ReportError
from rxrx1_jax.report.runs import load_runs
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
        runs.append(make_run(folder / f"site{fold}", all_right(sites, 8), "random_site", fold))
    runs.append(make_run(folder / "well0", all_right(10, 6), "random_well"))
    runs.append(make_run(folder / "none0", all_right(1, 1), normalisation="none"))
    return runs


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


def test_tables_equal_hand_computed_figures(demo):
    screen, runs = one_screen(demo)
    by_site, by_well, compared = table1.tables(screen, runs)
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
    # By well: 16/40, 16/40, 16/40; HUVEC 70, 60, 50.
    assert well["Batch"][:3] == ["0 1 2", "40.0 ± 0.0", "60.0 ± 10.0"]
    # The rows in the paper's order, then the paper's own.
    assert [str(row[0]) for row in by_site.rows[:4]] == [
        *("Batch", "Random (by site)", "Random, by well (strict)", "Batch, no normalisation")
    ]
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
    assert here["image size"] == ["64 px", "512 px"]
    assert here["network"] == ["resnet_demo", "ResNet-50"]
    assert here["epochs"] == ["30", "not known"]
    for word in ("synthetic", "3.1 %", "64 x 64", "640", "resnet_demo", "30 epochs", "0, 1, 2"):
        assert word in table1.describe(screen, runs)


def test_by_well_the_split_by_site_is_not_compared_with_batch(demo):
    _, runs = one_screen(demo)
    by_site, by_well = (table1.accuracy_table(runs, unit, False) for unit in ("site", "well"))
    well = cells(by_well)
    assert well["Random (by site)"][1] == "80.0 ± 0.0"  # the row itself stays
    assert not {"Random (by site) - batch", "Random (by site) / batch"} & well.keys()
    # Fold 0: 60 - 40; 60 / 40.
    assert well["Random, by well (strict) - batch"][1] == "+20.0"
    assert well["Random, by well (strict) / batch"][1] == "1.50"
    assert len(by_well.notes) == len(by_site.notes) + 1
    without = [run for run in runs if run.row[0] != "random_site"]
    assert len(table1.accuracy_table(without, "well", False).notes) == len(by_site.notes)


def test_separate_models_fill_their_own_block(demo, tmp_path):
    screen, runs = one_screen([*demo, *u2os_models(tmp_path, "batch")])
    first, _, separate, *_ = table1.tables(screen, runs)
    assert str(first.rows[0][-1]) == "10.0 ± 0.0"
    assert list(map(str, separate.rows[0])) == [  # 90 and 80 %
        *("Batch", "0 1 2", "35.0 ± 0.0", "–", "–", "–", "85.0 ± 7.1 (n = 2)")
    ]


def test_runs_of_single_cell_types_alone(tmp_path):
    runs = [
        make_run(tmp_path / c, {c: (10, 5)}, protocol, cell_type=c)
        for c, protocol in (("RPE", "batch"), ("HUVEC", "random_well"))
    ]
    screen, runs = one_screen(runs)
    tables = table1.tables(screen, runs)
    assert len(tables) == 3
    assert list(map(str, tables[0].rows[0])) == ["Batch", "0", "–", "–", "50.0", "–", "–"]
    figures.cell_type_bars(runs, 3.1)
    figures.learning_curves(runs)


def test_the_papers_table_sets_each_row_above_the_papers(demo, tmp_path):
    own = u2os_models(tmp_path, "random_site")
    rows = cells(table1.paper_table(one_screen([*demo, *own])[1]))
    assert list(rows)[:8] == [
        *("Batch", "The paper: Batch", "Random (by site)", "The paper: Random"),
        *("Random (by site) - batch", "The paper: Random - batch"),
        *("Random (by site) / batch", "The paper: Random / batch"),
    ]
    # Other models than those on all cell types: 90 and 80 % for U2OS, nothing for the others.
    assert rows["Batch"] == ["0 1 2", "35.0 ± 0.0", *"––––"]
    assert rows["Random (by site)"] == ["0 1", "72.5 ± 3.5", *"–––", "85.0 ± 7.1"]
    assert rows["Random (by site) - batch"][-5:] == ["+37.5 ± 3.5", *"––––"]
    assert rows["The paper: Random"][-1] == "22.0 ± 0.4"
    assert rows["Batch, model on all cell types"][2:4] == ["50.0 ± 10.0", "40.0 ± 0.0"]
    # Runs of one split alone leave dashes in the other's row.
    alone = cells(table1.paper_table(one_screen(demo[:3])[1]))
    assert alone["Random (by site)"][-5:] == [*"–––––"]


def test_settings_of_each_run(demo):
    table = table1.settings_table(one_screen(demo)[1])
    of = {row[0]: dict(zip(table.head, map(str, row), strict=True)) for row in table.rows}
    assert len(of) == len(demo)
    assert of["batch1"] | {
        "fold": "1", "learning rate": "0.004", "batch size": "32", "train sites": "640",
        "lowest experiment": "U2OS-01", "its %": "10.0", "site %": "35.0", "loss": "1.250",
    } == of["batch1"]  # fmt: skip


def test_crop_and_source_are_named(tmp_path):
    run = make_run(tmp_path / "run", all_right(4, 2), name="rxrx1/native", source="release")
    with edited(run / "config.json") as config:
        config["data"]["crop"] = 48
    screen, runs = one_screen([run])
    assert "48 px" in cells(table1.beside_paper(screen, runs))["image size"][0]
    assert "real" in cells(table1.beside_paper(screen, runs))["data"][0]
    assert "synthetic" not in table1.describe(screen, runs)


def test_different_data_or_model_never_share_a_table(demo, tmp_path):
    native = make_run(tmp_path / "native", all_right(4, 2), name="rxrx1/native", source="release")
    screens = load_runs([*demo, native])
    assert [(s.name, len(runs)) for s, runs in screens.items()] == [
        ("rxrx1/synthetic", 7),
        ("rxrx1/native", 1),
    ]
    (run,) = list(screens.values())[1]
    assert run.unit == Unit("rxrx1/native", 0, 0)


def test_wrong_paths_and_repeated_folds(demo, tmp_path):
    with pytest.raises(ReportError, match="nothing-here"):
        load_runs([tmp_path / "nothing-here"])
    again = make_run(tmp_path / "again", all_right(3, 3), fold=1)
    with pytest.raises(ReportError, match="again and .*batch1 are both fold 1"):
        load_runs([*demo, again])


@pytest.mark.parametrize(
    ("field", "value", "other"),
    [
        ("optim.epochs", 90, 30),
        ("train.seed", 1, 0),
        ("optim.nesterov", True, False),
        ("dataset.data_fingerprint", "0ff", "5ca1ab1e"),
    ],
)
def test_runs_of_a_table_have_the_same_settings(demo, tmp_path, field, value, other):
    odd = make_run(tmp_path / "odd", all_right(3, 3), "random_well", fold=2)
    section, name = field.split(".")
    with edited(odd / "config.json") as config:
        config[section][name] = value
    with pytest.raises(ReportError) as error:
        load_runs([*demo, odd])
    said = str(error.value)
    assert f"{odd} has {field}={value!r}" in said and f"{demo[0]} has {other!r}" in said
    assert load_runs([odd])  # by itself it can be reported


def test_settings_that_a_table_compares_or_that_change_no_result_may_differ(demo, tmp_path):
    other = make_run(tmp_path / "rpe", {"RPE": (9, 5)}, "random_well", 1, "site", "RPE")
    with edited(other / "config.json") as config:
        config["data"]["threads"] = 3
        config["eval"] = {"batch_size": 7}
        config["train"] |= {"keep": 9, "parallelism": "pmap"}
        config["dataset"]["version"] = "1.0.1"
    assert len(one_screen([*demo, other])[1]) == len(demo) + 1


def test_a_run_of_version_0_2_shares_a_table_with_one_of_today(tmp_path):
    """Today's says more of the settings, and describes the data by another fingerprint."""
    old = Path(__file__).parents[1] / "data_0_2" / "run"
    new = shutil.copytree(old, tmp_path / "new")
    with edited(new / "config.json") as config:
        settings = upgrade(config).to_dict()
        config |= settings | {"dataset": {"data": "0ff"}, "made_with": {"settings": VERSION}}
    with edited(new / "results.json") as results:
        results["fold"] = 1
    _, runs = one_screen([old, new])
    assert [run.unit.fold for run in runs] == [0, 1]
    stated = json.loads((old / "results.json").read_text())["accuracy"]
    assert all(run.accuracy == stated for run in runs)
    with edited(new / "config.json") as config:
        config["optim"]["schedule"] = "constant"
    with pytest.raises(ReportError, match="optim.schedule='constant'"):
        load_runs([old, new])


class FakeRecords:
    """Screen of two siRNAs; siRNA 7 is in every experiment. Pixel = experiment gain x gradient."""

    def __init__(self):
        rows = []
        for cell_type in EXPERIMENTS:
            for e in range(1, 4):
                experiment = f"{cell_type}-{e:02d}"
                rows.append((cell_type, experiment, 1, "B03", 1, "positive_control", 1108))
                if e == 1:
                    rows.append((cell_type, experiment, 1, "C03", 1, "treatment", 2))
                for site in (1, 2):
                    rows.append((cell_type, experiment, 2, "D04", site, "treatment", 7))
        fields = [("cell_type", "U8"), ("experiment", "U12"), ("plate", "i4"), ("well", "U4")]
        fields += [("site", "i4"), ("well_type", "U20"), ("sirna_id", "i4")]
        self.sites = np.array(rows, fields)

    def __getitem__(self, i: int) -> np.ndarray:
        rng = np.random.default_rng(i)
        gain = 1 + int(self.sites["experiment"][i][-1])
        return (gain * rng.integers(0, 40, (6, 32, 32))).astype(np.uint8)


def test_page_is_complete_and_self_contained(demo, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "open_images", lambda directory, name: FakeRecords())
    out = tmp_path / "page"
    path, remarks = page.write_page(load_runs(demo), out)
    assert path == out / "index.html" and remarks == []
    html = path.read_text()
    images = re.findall(r'<img src="([^"]+)" alt="[^"]+">', html)
    assert sorted(images) == sorted(p.name for p in out.glob("*.png"))
    assert len(images) == html.count("<img") == 5
    assert {p.suffix for p in out.iterdir()} == {".html", ".png"}  # nothing half-written
    for name in images:
        picture = cv2.imread(str(out / name))
        assert min(picture.shape[:2]) > 200 and picture.std() > 5
    screen, runs = one_screen(demo)
    for table in [*table1.tables(screen, runs), table1.settings_table(runs)]:
        assert table.html() in html
    assert "http" not in html


def test_the_command_prints_tables_and_writes_a_page_without_the_dataset(tmp_path, capsys):
    strange = make_run(tmp_path / "a<b>&", all_right(3, 3), protocol="<script>")
    assert report.main([str(strange), "--out", str(tmp_path / "page")]) == 0
    printed = capsys.readouterr().out
    for table in table1.tables(*one_screen([strange])):
        assert table.text() in printed
    index = tmp_path / "page" / "index.html"
    assert printed.rstrip().endswith(f"Page: {index}") and "rxrx1/synthetic: " in printed
    assert len(list((tmp_path / "page").glob("*.png"))) == 3
    html = index.read_text()
    assert "<script>" not in html and "a&lt;b&gt;&amp;" in html


def test_a_bad_run_ends_the_command_before_a_page(tmp_path, capsys):
    run = make_run(tmp_path / "run", all_right(3, 3))
    (run / "metrics.jsonl").unlink()
    assert report.main([str(run), "--out", str(tmp_path / "page")]) == 2
    error = capsys.readouterr().err
    assert str(run) in error and error.count("\n") == 1 and not (tmp_path / "page").exists()


def test_figures_draw_the_runs_figures(demo):
    _, runs = one_screen(demo)
    bars, paper = figures.cell_type_bars(runs, 3.1).axes
    heights = {round(float(bar.get_height()), 6) for bar in bars.patches}
    assert {50.0, 72.5, 40.0, 5.0} <= heights
    assert {44.1, 52.8, 2.4, 22.0} <= {round(float(b.get_height()), 6) for b in paper.patches}
    curves = figures.learning_curves(runs).axes[0]
    ends = sorted(float(line.get_ydata()[-1]) for line in curves.lines if len(line.get_ydata()))
    fit = 100 * (1 - 0.9**30)
    assert ends == pytest.approx([0.6 * fit] * 3 + [0.95 * fit] * 3)
    series = figures.series_of(runs)
    assert [one.label for one in series][:2] == ["Batch", "Random (by site)"]
    assert series[0].of["HUVEC-05"] == [0.6, 0.5, 0.4]
    dots = figures.experiment_dots(series, 3.1).axes[0]
    assert [tick.get_text() for tick in dots.get_yticklabels()] == list(EXPERIMENTS.values())
    drawn = {round(float(x), 6) for line in dots.lines for x in np.ravel(line.get_xdata())}
    assert {60.0, 50.0, 40.0, 72.5, 5.0} <= drawn


def test_torn_and_repeated_lines_of_a_resumed_run(tmp_path):
    run = make_run(tmp_path / "run", all_right(3, 3))
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 600, "epo\n')
        file.write(json.dumps({"step": 600, "epoch": 30.0, "test_accuracy": 0.25}) + "\n")
    ((loaded,),) = load_runs([run]).values()
    last = [e["test_accuracy"] for e in loaded.metrics if "test_accuracy" in e][-1]
    assert last == 0.25 and len(loaded.metrics) == 36


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
