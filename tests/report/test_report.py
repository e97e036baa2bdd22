"""Reports of made-up runs whose every accuracy is chosen, against figures worked out by hand."""

import json
import re
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest

from rxrx1_jax.report import __main__ as report
from rxrx1_jax.report import figures as report_figures
from rxrx1_jax.report import page as report_page
from rxrx1_jax.report.runs import ReportError, load_runs
from rxrx1_jax.report.table1 import spread
from rxrx1_jax.training.predictions import accuracies, write_predictions

EXPERIMENTS = {"HUVEC": "HUVEC-05", "RPE": "RPE-03", "HEPG2": "HEPG2-02", "U2OS": "U2OS-01"}


def make_predictions(right: dict[str, tuple[int, int]], wells: int = 10) -> pa.Table:
    """`wells` wells of two sites a cell type; right: cell type -> (sites, wells) predicted well."""
    rows = []
    for cell_type, (right_sites, right_wells) in right.items():
        for i in range(2 * wells):
            well = i // 2
            rows.append(
                {
                    "site_id": f"{EXPERIMENTS[cell_type]}_1_W{well}_{i % 2 + 1}",
                    "well_id": f"{EXPERIMENTS[cell_type]}_1_W{well}",
                    "cell_type": cell_type,
                    "experiment": EXPERIMENTS[cell_type],
                    "label": 3,
                    "prediction": 3 if i < right_sites else 4,
                    "top5": [3 if i < right_sites else 5, 4],
                    "well_prediction": 3 if well < right_wells else 4,
                }
            )
    return pa.Table.from_pylist(rows)


def make_run(
    path: Path,
    right: dict[str, tuple[int, int]],
    protocol="batch",
    fold=0,
    normalisation="plate_control",
    cell_type="all",
    name="rxrx1/synthetic",
    source="synthetic",
) -> Path:
    path.mkdir(parents=True)
    table = make_predictions(right)
    write_predictions(path / "predictions.parquet", table)
    results = {
        "data": {
            "name": name,
            "version": "1.0.0",
            "source": source,
            "classes": 32,
            "image_size": 64,
            "train_sites": 640,
            "test_sites": len(table),
        },
        "protocol": protocol,
        "fold": fold,
        "cell_type": cell_type,
        "normalisation": normalisation,
        "model": "resnet_demo",
        "epochs": 30,
        "seed": 0,
        "step": 600,
        "total_steps": 600,
        "accuracy": accuracies(table),
        "loss": 1.25,
    }
    config = {
        "data": {
            "name": name,
            "dir": str(path / "nowhere"),  # differs from run to run, as it may
            "protocol": protocol,
            "fold": fold,
            "normalisation": normalisation,
            "cell_type": cell_type,
        },
        "optim": {"batch_size": 32, "learning_rate": 0.004, "epochs": 30},
        "train": {"seed": 0, "keep": 2, "parallelism": "jit"},
        "dataset": {
            "version": "1.0.0",
            "data_fingerprint": "5ca1ab1e",
            "split_fingerprint": f"{protocol}{fold}{cell_type}",
        },
    }
    (path / "results.json").write_text(json.dumps(results))
    (path / "config.json").write_text(json.dumps(config))
    lines = []
    for epoch in range(1, 31):
        step = {"step": 20 * epoch, "epoch": float(epoch)}
        fit = 1 - 0.9**epoch
        lines.append(step | {"train_loss": 3.4 * (1 - fit) + 0.1, "train_accuracy": 0.95 * fit})
        if epoch % 5 == 0:
            lines.append(step | {"test_loss": 3.4 - 2 * fit, "test_accuracy": 0.6 * fit})
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def all_right(sites: int, wells: int) -> dict[str, tuple[int, int]]:
    return dict.fromkeys(EXPERIMENTS, (sites, wells))


@pytest.fixture
def demo(tmp_path) -> list[Path]:
    """Batch of three folds, random by site of two, random by well and no normalisation of one."""
    folds = [
        # (right sites of 20, right wells of 10): by site 60, 50, 40 % for HUVEC
        {"HUVEC": (12, 7), "RPE": (8, 5), "HEPG2": (6, 3), "U2OS": (2, 1)},
        {"HUVEC": (10, 6), "RPE": (8, 5), "HEPG2": (8, 4), "U2OS": (2, 1)},
        {"HUVEC": (8, 5), "RPE": (8, 5), "HEPG2": (10, 5), "U2OS": (2, 1)},
    ]
    runs = [make_run(tmp_path / f"batch{i}", right, fold=i) for i, right in enumerate(folds)]
    for fold, sites in ((0, 14), (1, 15)):
        path = tmp_path / f"site{fold}"
        runs.append(make_run(path, all_right(sites, 8), "random_site", fold))
    runs.append(make_run(tmp_path / "well0", all_right(10, 6), "random_well"))
    runs.append(make_run(tmp_path / "none0", all_right(1, 1), normalisation="none"))
    return runs


def cells(text: str, heading: str, row: str) -> list[str]:
    """The cells of the line `row` in the block under `heading`; columns are two spaces apart."""
    block = text.split(heading, 1)[1].split("\n\n", 1)[0]
    line = next(x for x in block.splitlines() if re.match(re.escape(row) + r"\s", x))
    return re.split(r"\s{2,}", line[len(row) :].strip())


def test_table_equals_hand_computed_figures(demo, tmp_path, capsys):
    assert report.main([*map(str, demo), "--out", str(tmp_path / "page")]) == 0
    text = capsys.readouterr().out
    site, well = "By site; cell types: a break-down", "By well (mean"
    # All: (12+8+6+2)/80 = 35 %, 28/80, 28/80. HUVEC 60, 50, 40; HepG2 30, 40, 50.
    assert cells(text, site, "Batch") == [
        *("0 1 2", "35.0 ± 0.0", "50.0 ± 10.0", "40.0 ± 0.0", "40.0 ± 10.0", "10.0 ± 0.0")
    ]
    # 70 and 75 %: sample sd 5 / sqrt 2.
    assert cells(text, site, "Random (by site)") == ["0 1", *["72.5 ± 3.5"] * 5]
    assert cells(text, site, "Random, by well (strict)") == ["0", *["50.0"] * 5]
    assert cells(text, site, "Batch, no normalisation") == ["0", *["5.0"] * 5]
    # Paired over folds 0 and 1: All 35 and 40; HUVEC 10 and 25, ratio 145 / 110.
    assert cells(text, site, "Random (by site) - batch") == [
        *("+37.5 ± 3.5", "+17.5 ± 10.6", "+32.5 ± 3.5", "+37.5 ± 3.5", "+62.5 ± 3.5")
    ]
    assert cells(text, site, "Random (by site) / batch") == [
        *("2.07", "1.32", "1.81", "2.07", "7.25")
    ]
    # Fold 0 alone: 50 - 35; HUVEC is worse than batch.
    assert cells(text, site, "Random, by well (strict) - batch")[:2] == ["+15.0", "-10.0"]
    # By well: 16/40, 16/40, 16/40; HUVEC 70, 60, 50.
    assert cells(text, well, "Batch")[:3] == ["0 1 2", "40.0 ± 0.0", "60.0 ± 10.0"]
    assert "separate models, each trained" not in text
    paper = "The paper ("
    assert cells(text, paper, "Batch") == [
        *("44.1 ± 5.7", "56.7 ± 8.4", "31.2 ± 2.7", "30.8 ± 4.0", "2.4 ± 1.0")
    ]
    assert cells(text, paper, "Random / batch")[0] == "1.20"
    for said in ("synthetic screen", "32 classes (chance 3.1 %)", "64 x 64 px", "640 training"):
        assert said in text
    for said in ("resnet_demo, 30 epochs; folds 0, 1, 2", "rxrx1/synthetic 1.0.0"):
        assert said in text


def test_rows_stand_in_the_papers_order(demo):
    (screen, runs), *others = load_runs(demo[::-1]).items()
    assert not others
    text = report.table_text(screen, runs)
    block = text.split("By site", 1)[1].split("\n\n", 1)[0].splitlines()
    labels = [re.split(r"\s{2,}", line)[0] for line in block[1:]]
    assert labels[1:5] == [
        *("Batch", "Random (by site)", "Random, by well (strict)", "Batch, no normalisation")
    ]


def test_separate_models_fill_their_own_block(demo, tmp_path):
    for fold, sites in ((0, 18), (1, 16)):
        demo.append(
            make_run(tmp_path / f"u2os{fold}", {"U2OS": (sites, 9)}, fold=fold, cell_type="U2OS")
        )
    ((screen, runs),) = load_runs(demo).items()
    text = report.table_text(screen, runs)
    one = "By site; cell types: a break-down"
    own = "By site; cell types: separate models"
    assert cells(text, one, "Batch")[-1] == "10.0 ± 0.0"
    assert cells(text, own, "Batch") == [
        *("0 1 2", "35.0 ± 0.0", "–", "–", "–", "85.0 ± 7.1 (n = 2)")  # 90 and 80 %
    ]


def test_runs_of_single_cell_types_alone(tmp_path, capsys):
    runs = [
        make_run(tmp_path / c, {c: (10, 5)}, protocol, cell_type=c)
        for c, protocol in (("RPE", "batch"), ("HUVEC", "random_well"))
    ]
    assert report.main([*map(str, runs), "--out", str(tmp_path / "page")]) == 0
    text = capsys.readouterr().out
    assert "a break-down" not in text
    own = "By site; cell types: separate models"
    assert cells(text, own, "Batch") == ["0", "–", "–", "50.0", "–", "–"]
    assert len(list((tmp_path / "page").glob("*.png"))) == 3


def markdown_rows(text: str) -> dict[str, list[str]]:
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in rows}


def test_markdown_sets_each_row_above_the_papers(demo, tmp_path):
    for fold, sites in ((0, 18), (1, 16)):
        path = tmp_path / f"u2os{fold}"
        demo.append(make_run(path, {"U2OS": (sites, 9)}, "random_site", fold, cell_type="U2OS"))
    ((screen, runs),) = load_runs(demo).items()
    text = report.table_markdown(screen, runs)
    rows = markdown_rows(text)
    assert list(rows)[2:10] == [
        *("Batch", "*the paper: Batch*", "Random (by site)", "*the paper: Random*"),
        *("Random (by site) - batch", "*the paper: Random - batch*"),
        *("Random (by site) / batch", "*the paper: Random / batch*"),
    ]
    # Other models than those on all cell types: 90 and 80 % for U2OS, nothing for the others.
    assert rows["Batch"] == ["0 1 2", "35.0 ± 0.0", *"––––"]
    assert rows["Random (by site)"] == ["0 1", "72.5 ± 3.5", *"–––", "85.0 ± 7.1"]
    assert rows["Random (by site) - batch"][-5:] == ["+37.5 ± 3.5", *"––––"]
    assert rows["*the paper: Random*"][-1] == "22.0 ± 0.4"
    assert rows["Batch, model on all cell types"][2:4] == ["50.0 ± 10.0", "40.0 ± 0.0"]
    # Runs of one split alone leave dashes in the other's row.
    ((screen, runs),) = load_runs(demo[:3]).items()
    assert markdown_rows(report.table_markdown(screen, runs))["Random (by site)"][-5:] == [*"–––––"]


def test_what_differs_from_the_paper_is_said(demo, tmp_path):
    with edited(demo[0] / "config.json") as config:
        config["data"]["crop"] = 48
    ((screen, runs),) = load_runs(demo[:1]).items()
    rows = markdown_rows(report.table_markdown(screen, runs))
    assert rows["data"][0].startswith("rxrx1/synthetic 1.0.0: a synthetic screen")
    assert rows["classes"] == ["32 (chance 3.1 %)", "1,108 (chance 0.1 %)"]
    assert rows["image size"] == ["64 px, cropped to 48 px", "512 px"]
    assert rows["network"] == ["resnet_demo", "ResNet-50"]
    assert rows["epochs"] == ["30", "not known"]
    text = report.table_text(screen, runs)
    assert "classes: 32 (chance 3.1 %); the paper: 1,108 (chance 0.1 %)\n" in text
    page, _ = report_page.write_page({screen: runs}, tmp_path / "page")
    assert "1,108 (chance 0.1 %)" in Page(page.read_text()).text


def test_different_data_or_model_never_share_a_table(demo, tmp_path):
    native = make_run(tmp_path / "native", all_right(4, 2), name="rxrx1/native", source="release")
    demo.append(native)
    screens = load_runs(demo)
    assert [(s.name, len(runs)) for s, runs in screens.items()] == [
        ("rxrx1/synthetic", 7),
        ("rxrx1/native", 1),
    ]
    text = report.table_text(*list(screens.items())[1])
    assert "rxrx1/native 1.0.0: real images." in text and "synthetic" not in text


@pytest.mark.parametrize(
    "values, text",
    [([], "–"), ([44.14], "44.1"), ([1.0, 2.0], "1.5 ± 0.7"), ([1.0, 2.0, 6.0], "3.0 ± 2.6")],
)
def test_spread_is_the_sample_standard_deviation(values, text):
    assert spread(values) == text


def break_run(path: Path, how: str) -> None:
    if how == "no config.json":
        (path / "config.json").unlink()
    elif how == "no results.json":
        (path / "results.json").unlink()
    elif how == "no predictions.parquet":
        (path / "predictions.parquet").unlink()
    elif how == "unreadable":
        (path / "predictions.parquet").write_bytes(b"PAR1 torn")
    elif how == "not JSON":
        (path / "results.json").write_text('{"data": ')
    elif how.startswith("no field"):
        with edited(path / "results.json") as results:
            field = how.split("'")[1]
            del (results["data"] if field in results["data"] else results)[field]
    elif how == "unfinished run (step 599 of 600); start it again":
        with edited(path / "results.json") as results:
            results["step"] = 599
    elif how == "predictions.parquet gives 0.3500":
        with edited(path / "results.json") as results:
            results["accuracy"]["site"]["all"] = 0.75


@contextmanager
def edited(path: Path):
    """The content of a JSON file, written back with what was changed in it."""
    content = json.loads(path.read_text())
    yield content
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "how",
    [
        *("no config.json", "no results.json", "no predictions.parquet", "unreadable", "not JSON"),
        *("no field 'fold'", "no field 'step'", "no field 'total_steps'", "no field 'source'"),
        "unfinished run (step 599 of 600); start it again",
        "predictions.parquet gives 0.3500",
    ],
)
def test_a_broken_run_is_a_one_line_error_naming_it(demo, tmp_path, capsys, how):
    break_run(demo[1], how)
    assert report.main([*map(str, demo), "--out", str(tmp_path / "page")]) == 2
    error = capsys.readouterr().err
    assert how in error and str(demo[1]) in error and error.count("\n") == 1
    assert not (tmp_path / "page").exists()


def test_wrong_paths_and_repeated_folds(demo, tmp_path):
    with pytest.raises(ReportError, match="nothing-here: no such directory"):
        load_runs([tmp_path / "nothing-here"])
    again = make_run(tmp_path / "again", all_right(3, 3), fold=1)
    with pytest.raises(ReportError, match=r"again and .*batch1 are both fold 1 of Batch"):
        load_runs([*demo, again])


@pytest.mark.parametrize(
    "field, value, said",
    [
        ("optim.epochs", 90, "has optim.epochs=90, {first} has 30: "),
        ("train.seed", 1, "has train.seed=1, {first} has 0: "),
        ("optim.nesterov", True, "has optim.nesterov=True, {first} has None: "),
        (
            "dataset.data_fingerprint",
            "0ff",
            "has dataset.data_fingerprint='0ff', {first} has '5ca1ab1e': ",
        ),
    ],
)
def test_runs_of_a_table_have_the_same_settings(demo, tmp_path, capsys, field, value, said):
    section, name = field.split(".")
    with edited(demo[4] / "config.json") as config:
        config[section][name] = value
    assert report.main([*map(str, demo), "--out", str(tmp_path / "page")]) == 2
    error = capsys.readouterr().err
    assert f"{demo[4]} {said.format(first=demo[0])}" in error
    assert "report them separately" in error and error.count("\n") == 1
    assert load_runs([demo[4]])  # by itself it can be reported


def test_settings_that_a_table_compares_or_that_change_no_result_may_differ(demo, tmp_path):
    demo.append(make_run(tmp_path / "rpe", {"RPE": (9, 5)}, "random_well", 1, "site", "RPE"))
    for field, value in {
        **{"data.threads": 3, "eval.batch_size": 7, "train.keep": 9, "train.parallelism": "pmap"},
        "dataset.version": "1.0.1",
    }.items():
        section, name = field.split(".")
        with edited(demo[-1] / "config.json") as config:
            config.setdefault(section, {})[name] = value
    ((_, runs),) = load_runs(demo).items()
    assert len(runs) == len(demo)


def test_by_well_the_split_by_site_is_not_compared_with_batch(demo, tmp_path):
    screens = load_runs(demo)
    ((screen, runs),) = screens.items()
    text = report.table_text(screen, runs)
    well = "By well (mean"
    block = text.split(well, 1)[1].split("\n\n", 1)[0]
    assert cells(text, well, "Random (by site)")[1] == "80.0 ± 0.0"  # the row itself stays
    assert "Random (by site) - batch" not in block and "Random (by site) / batch" not in block
    # Fold 0: 60 - 40; 60 / 40.
    assert cells(text, well, "Random, by well (strict) - batch")[0] == "+20.0"
    assert cells(text, well, "Random, by well (strict) / batch")[0] == "1.50"
    note = "Random (by site) is not compared with batch here: most of its test wells have one"
    assert block.splitlines()[-1].startswith(note) and text.count(note) == 1

    page = report_page.write_page(screens, tmp_path / "page")[0].read_text()
    by_site, by_well = page.split("<table>")[1:3]
    assert "Random (by site) - batch" in by_site and note not in by_site
    assert "Random, by well (strict) - batch" in by_well and note in by_well
    assert "Random (by site) - batch" not in by_well and "Random (by site) / batch" not in by_well

    without = [path for path in demo if not path.name.startswith("site")]
    assert note not in report.table_text(*next(iter(load_runs(without).items())))


@pytest.mark.parametrize(
    "name, source, said",
    [
        ("rxrx1/mini", "synthetic", "rxrx1/mini 1.0.0: a synthetic screen"),
        ("rxrx1/not_synthetic", "release", "rxrx1/not_synthetic 1.0.0: real images."),
    ],
)
def test_source_of_the_data_is_said_by_its_metadata(tmp_path, name, source, said):
    run = make_run(tmp_path / "run", all_right(4, 2), name=name, source=source)
    assert f"Measured on {said}" in report.table_text(*next(iter(load_runs([run]).items())))


def test_torn_and_repeated_lines_of_a_resumed_run(demo):
    with open(demo[0] / "metrics.jsonl", "a") as file:
        file.write('{"step": 600, "epo\n')
        file.write(json.dumps({"step": 600, "epoch": 30.0, "test_accuracy": 0.25}) + "\n")
    ((_, runs),) = load_runs(demo[:1]).items()
    last = [e["test_accuracy"] for e in runs[0].metrics if "test_accuracy" in e][-1]
    assert last == 0.25 and len(runs[0].metrics) == 36


class Page(HTMLParser):
    def __init__(self, html: str):
        super().__init__()
        self.images, self.text, self.alts = [], "", []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.images.append(dict(attributes)["src"])
            self.alts.append(dict(attributes)["alt"])

    def handle_data(self, data):
        self.text += data


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
    monkeypatch.setattr(report_page, "find_dataset", lambda directory, name: Path(directory))
    monkeypatch.setattr(report_page, "Records", lambda path: FakeRecords())
    out = tmp_path / "page"
    path, remarks = report_page.write_page(load_runs(demo), out)
    assert path == out / "index.html" and remarks == []
    page = Page(path.read_text())
    assert sorted(page.images) == sorted(p.name for p in out.glob("*.png"))
    assert len(page.images) == 5 and all(page.alts)
    assert {p.suffix for p in out.iterdir()} == {".html", ".png"}  # nothing half-written
    for name in page.images:
        picture = cv2.imread(str(out / name))
        assert min(picture.shape[:2]) > 200 and picture.std() > 5
    for said in ("Batch", "Random (by site)", "Batch, no normalisation", "50.0 ± 10.0", "HepG2"):
        assert said in page.text
    for said in ("44.1 ± 5.7", "1,108 classes", "synthetic screen", "0.004", "Contrast:"):
        assert said in page.text
    assert "http" not in path.read_text()


def test_page_without_the_dataset_says_why(demo, tmp_path, capsys):
    assert report.main([*map(str, demo), "--out", str(tmp_path / "page")]) == 0
    printed = capsys.readouterr().out
    assert "No pictures of cells for rxrx1/synthetic: " in printed
    assert printed.rstrip().endswith(f"Page: {tmp_path / 'page' / 'index.html'}")
    assert len(list((tmp_path / "page").glob("*.png"))) == 3


def test_names_from_runs_are_escaped(demo, tmp_path):
    strange = make_run(tmp_path / "a<b>&", all_right(3, 3), protocol="<script>")
    path, _ = report_page.write_page(load_runs([*demo, strange]), tmp_path / "page")
    html = path.read_text()
    assert "<script>" not in html and "a&lt;b&gt;&amp;" in html


def test_figures_draw_the_runs_figures(demo):
    ((_, runs),) = load_runs(demo).items()
    bars, paper = report_figures.cell_type_bars(runs, 3.1).axes
    heights = {round(float(bar.get_height()), 6) for bar in bars.patches}
    assert {50.0, 72.5, 40.0, 5.0} <= heights
    assert {44.1, 52.8, 2.4, 22.0} <= {round(float(b.get_height()), 6) for b in paper.patches}
    curves = report_figures.learning_curves(runs).axes[0]
    ends = sorted(float(line.get_ydata()[-1]) for line in curves.lines if len(line.get_ydata()))
    fit = 100 * (1 - 0.9**30)
    assert ends == pytest.approx([0.6 * fit] * 3 + [0.95 * fit] * 3)
    dots = report_figures.experiment_dots(runs, 3.1).axes[0]
    assert [tick.get_text() for tick in dots.get_yticklabels()] == list(EXPERIMENTS.values())


def test_montage_sites_and_contrast():
    records = FakeRecords()
    chosen = report_figures.choose_sites(records)
    assert list(chosen) == ["HUVEC", "RPE", "HEPG2", "U2OS"]
    sites, images = chosen["RPE"]
    # siRNA 2 is lower but in one experiment only; controls are never shown.
    assert [(s["experiment"], s["sirna_id"]) for s in sites] == [
        *(("RPE-01", 7), ("RPE-02", 7), ("RPE-03", 7))
    ]
    low, high = report_figures.contrast_limits(images, (1, 99.5))
    everything = np.concatenate([image.reshape(6, -1) for image in images], axis=1)
    for c in range(6):
        ordered = np.sort(everything[c])
        n = len(ordered) - 1
        assert ordered[int(0.01 * n)] <= low[c] <= ordered[int(0.01 * n) + 1]
        assert ordered[int(0.995 * n)] <= high[c] <= ordered[int(0.995 * n) + 1]
    bright = report_figures.stretch(images[2], low, high).mean()
    assert bright > 1.5 * report_figures.stretch(images[0], low, high).mean()


def test_composite_colours():
    planes = np.zeros((6, 1, 3), np.float32)
    planes[2, 0, 0] = 1  # actin alone: red
    planes[[2, 5], 0, 1] = 1, 0.5  # red and half yellow: 1 - 0 * .5, 1 - .5, 0
    assert report_figures.composite(planes)[0].tolist() == [[1, 0, 0], [1, 0.5, 0], [0, 0, 0]]
    assert report_figures.composite(np.ones((6, 2, 2), np.float32)).max() <= 1


def test_flat_channel_stays_black():
    low, high = report_figures.contrast_limits([np.full((6, 8, 8), 9, np.uint8)], (1, 99.5))
    assert not report_figures.stretch(np.full((6, 8, 8), 9, np.uint8), low, high).any()
