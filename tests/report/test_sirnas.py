"""Results by siRNA against scikit-learn's confusion matrix and SciPy's intervals."""

import csv
import re

import numpy as np
import pyarrow as pa
import pytest
from browser import check_page, check_text, needs_chromium
from commands import run_command
from finished_runs import make_run
from scipy import stats
from sklearn.metrics import confusion_matrix

from rxrx1_jax.methods.statistics import wilson
from rxrx1_jax.report import files, sirnas
from rxrx1_jax.report.page import Page


def made_up_wells(k=9, wells=7, seed=0, first=0):
    """A table of wells of k siRNAs; siRNA j is hard for large j, and often taken for j - 1."""
    rng = np.random.default_rng(seed)
    ids = 3 * np.arange(k) + 2
    label = np.repeat(ids, wells)
    wrong = rng.random(len(label)) < np.repeat(np.arange(k) / k, wells)
    near = rng.random(len(label)) < 0.5
    said = np.where(wrong, np.where(near, label - 3, rng.choice(ids, len(label))), label)
    names = [f"well{first + i}" for i in range(len(label))]
    named = [f"s{sirna}" for sirna in label]
    return pa.table(
        {"well_id": names, "label": label, "well_prediction": np.maximum(said, 2), "sirna": named}
    )


def test_counts_are_those_of_the_confusion_matrix():
    table = made_up_wells()
    found = sirnas.results([table], [{2: 4, 5: 6}, {2: 6}, {}])
    label, said = (table[name].to_numpy() for name in ("label", "well_prediction"))
    matrix = confusion_matrix(label, said, labels=found.ids)
    assert found.ids.tolist() == sorted({*label.tolist(), *said.tolist()})
    np.testing.assert_array_equal(found.wells, matrix.sum(1))
    np.testing.assert_array_equal(found.right, matrix.diagonal())
    assert found.trained.tolist() == [5, 3, *[0] * (len(found.ids) - 2)]
    wrong = matrix - np.diag(matrix.diagonal())
    assert found.times.sum() == wrong.sum()
    for (i, j), times, expected in zip(found.pairs, found.times, found.expected, strict=True):
        assert times == wrong[i, j] > 0
        others = wrong.sum() - wrong[j].sum()  # wells that could be taken for j
        assert expected == pytest.approx(wrong[i].sum() * wrong[:, j].sum() / others)


def test_runs_that_test_one_well_have_a_part_of_it():
    """The same well twice, and once alone: two wells, one and a half right."""
    rows = [{"well_id": ["a", "b"], "label": [1, 1], "well_prediction": [1, 1]},
            {"well_id": ["a"], "label": [1], "well_prediction": [4]}]  # fmt: skip
    found = sirnas.results([pa.table(of) for of in rows])
    assert found.ids.tolist() == [1, 4] and found.wells.tolist() == [2, 0]
    assert found.right.tolist() == [1.5, 0] and found.times.tolist() == [0.5]
    assert np.isnan(found.trained).all()
    (row,) = sirnas.all_sirnas(found).rows
    assert [str(cell) for cell in row[3:]] == ["1.5", "2", "–", "4", "0.5"]


@pytest.mark.parametrize(("right", "n"), [(0, 9), (9, 9), (3, 18), (1, 1), (500, 1108)])
def test_intervals_are_scipys(right, n):
    expected = stats.binomtest(right, n).proportion_ci(0.95, "wilson")
    assert wilson(right, n) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert np.isnan(wilson(0, 0)).all()


def test_the_hardest_come_first():
    """Those of whom it is surest: 0 of 9 before 0 of 3, and that before 1 of 3."""
    label = np.repeat([1, 2, 3, 4], [3, 9, 3, 3])
    said = np.where(label < 3, 9, label)
    said[12] = 9
    ids = [f"w{i}" for i in range(len(label))]
    table = sirnas.all_sirnas(
        sirnas.results([pa.table({"well_id": ids, "label": label, "well_prediction": said})])
    )
    assert [str(row[0]) for row in table.rows] == ["2", "1", "3", "4"]
    assert [str(row[6]) for row in table.rows] == ["9", "9", "9", "–"]
    low, high = stats.binomtest(2, 3).proportion_ci(0.95, "wilson")
    assert str(table.rows[2][2]) == f"66.7 ({100 * low:.1f} to {100 * high:.1f})"


def test_confusions_by_times_then_by_surprise():
    found = sirnas.results([made_up_wells(k=12, wells=20)])
    table = sirnas.confusions(found)
    order = [(-row[2].value, row[3].value) for row in table.rows]
    assert order == sorted(order) and len(order) == sirnas.SHOWN < len(found.pairs)
    both = made_up_wells(k=12, wells=20)
    matrix = confusion_matrix(both["label"], both["well_prediction"], labels=found.ids)
    for row in table.rows:
        i, j = (found.ids.tolist().index(int(str(cell).split()[0])) for cell in row[:2])
        assert (row[2].value, row[4].value) == (matrix[i, j], matrix[j, i])


def test_luck_alone():
    """Equally hard siRNAs spread as the binomial distribution does."""
    rng = np.random.default_rng(1)
    label = np.repeat(np.arange(4000), 9)
    said = np.where(rng.random(len(label)) < 0.4, label, 5000)
    ids = np.arange(len(label)).astype(str)
    found = sirnas.results([pa.table({"well_id": ids, "label": label, "well_prediction": said})])
    observed, luck = re.findall(r"(\d+) points.* (\d+)\.", sirnas.summary(found))[0]
    sd = 100 * stats.binom.std(9, 0.4) / 9
    assert abs(int(observed) - sd) < 1 > abs(int(luck) - sd)
    none = f"{(np.bincount(label[label == said], minlength=4000) == 0).sum()} were named"
    assert none in sirnas.summary(found)


def test_the_figure_has_every_sirna():
    table = made_up_wells()
    found = sirnas.results([table], [{int(sirna): 10 + k % 3 for k, sirna in enumerate(
        np.unique(table["label"].to_numpy()))}])  # fmt: skip
    axis = sirnas.against_training(found).axes[0]
    dots = axis.collections[0]
    assert dots.get_sizes().sum() == 9 * found.tested.sum()
    share = 100 * found.right / found.wells
    drawn = np.asarray(dots.get_offsets())
    assert {(10 + k % 3, round(share[k], 1)) for k in range(9)} == set(map(tuple, drawn.tolist()))
    x, means = axis.lines[0].get_data()
    assert x.tolist() == [10, 11, 12]
    assert means == pytest.approx([share[k::3].mean() for k in range(3)])


def make_runs(folder, k=9, wells=7):
    """Two folds whose predictions are `made_up_wells`, one site a well."""
    for fold in (0, 1):
        table = made_up_wells(k, wells, fold, fold * 10**5)
        label, said, n = table["label"], table["well_prediction"], len(table)
        more = {
            "site_id": [f"{name}_1" for name in table["well_id"].to_pylist()], "prediction": said,
            "top5": np.stack([said, label], axis=1).tolist(), "cell_type": ["RPE"] * n,
            "experiment": ["RPE-01"] * n,
        }  # fmt: skip
        for name, column in more.items():
            table = table.append_column(name, column if name == "prediction" else pa.array(column))
        path = make_run(folder / f"fold{fold}", table, fold=fold)
        with open(path / "metadata.csv", "w", newline="") as file:
            rows = [("well_id", "site", "sirna_id", "role")]
            rows += [(f"x{sirna}_{w}", site, sirna, role) for sirna in set(label.to_pylist())
                     for role, of in (("train", sirna % 4 + 30), ("test", 2)) for w in range(of)
                     for site in (1, 2)]  # fmt: skip
            csv.writer(file).writerows(rows)
        yield path


def test_a_page_of_1108_sirnas(tmp_path):
    tables = [made_up_wells(1108, 9, seed, seed * 10**5) for seed in (0, 1)]
    trained = [{3 * k + 2: 25 + k % 9 for k in range(1108)}] * 2
    page = Page("By siRNA", tmp_path / "page")
    sirnas.section(page, "the mean", sirnas.results(tables, trained))
    index = page.write()
    assert len(index.read_bytes()) < 60_000
    check_text(tmp_path / "page" / "training-wells.svg")
    rows = list(csv.DictReader(open(tmp_path / "page" / "sirnas.csv")))
    assert len(rows) == 1108 and {row["wells"] for row in rows} == {"18.0"}
    share = [float(row["accuracy, %"]) for row in rows]
    both = pa.concat_tables(tables)
    right = both["label"].to_numpy() == both["well_prediction"].to_numpy()
    assert np.mean(share) == pytest.approx(100 * right.mean())
    assert float(rows[0]["accuracy, % high"]) <= float(rows[-1]["accuracy, % high"])
    assert {row["training wells"] for row in rows} == {f"{n}.0" for n in range(25, 34)}


def test_training_wells_are_counted_once(tmp_path):
    run = next(make_runs(tmp_path))
    assert files.read_training_wells(run / "metadata.csv") == {3 * k + 2: (3 * k + 2) % 4 + 30
                                                               for k in range(9)}  # fmt: skip
    assert files.read_training_wells(run / "absent.csv") == {}
    (run / "metadata.csv").write_text("well_id,role\na,train\n")
    with pytest.raises(files.ReportError, match="metadata.csv.*sirna_id"):
        files.read_training_wells(run / "metadata.csv")


@needs_chromium
def test_a_report_says_it_of_its_first_row(tmp_path):
    runs = list(make_runs(tmp_path))
    done = run_command("report", *runs, f"--out={tmp_path / 'page'}")
    assert done.code == 0, done.err
    index = tmp_path / "page" / "index.html"
    check_page(index, tmp_path)
    rows = list(csv.DictReader(open(tmp_path / "page" / "sirnas.csv")))
    assert len(rows) == 9 and {row["wells"] for row in rows} == {"14.0"}
    assert {float(row["training wells"]) for row in rows} == {30, 31, 32, 33}
    (runs[0] / "metadata.csv").unlink()
    (runs[1] / "metadata.csv").unlink()
    assert run_command("report", *runs, f"--out={tmp_path / 'other'}").code == 0
    assert not (tmp_path / "other" / "training-wells.svg").exists()
    rows = list(csv.DictReader(open(tmp_path / "other" / "sirnas.csv")))
    assert {row.get("training wells") for row in rows} == {None}
