"""Figures of README and docs, as benchmarks/figures.py makes them of runs and a leaderboard."""

import json
import re
import shutil
import statistics
from pathlib import Path

import pytest
from embedding_tables import FEATURES, TRUTH, parquet
from finished_runs import edited, make_run
from made_boards import make_boards

from benchmarks import acceptance, figures

MADE_WITH = {
    "python": "3.11", "packages": {"rxrx1_jax": "1.0", "jax": "0.10"}, "cpus": 2,
    "machine": "x86_64", "devices": ["cpu:cpu"], "commit": "abc1234",
}  # fmt: skip
RIGHT = {  # of 20 sites: in each fold
    ("batch", "plate_control"): [5, 10], ("random_site", "plate_control"): [10, 12],
    ("random_well", "plate_control"): [5, 5],
}  # fmt: skip


@pytest.fixture
def demo(tmp_path) -> Path:
    """Runs of `make demo`, two folds of each."""
    for (protocol, normalisation), folds in RIGHT.items():
        for fold, right in enumerate(folds):
            run = tmp_path / f"{protocol}-{normalisation}-{fold}"
            make_run(run, {"RPE": (right, 5)}, protocol=protocol, normalisation=normalisation,
                     fold=fold)  # fmt: skip
            (run / "environment.json").write_text(json.dumps(MADE_WITH))
            (run / "split.csv").write_text(
                "site_id,role\nA_1_B02_1,train\nA_1_B02_2,test\nA_1_B03_1,test\n"
            )
    return tmp_path


def test_figures_are_means_over_folds(demo):
    measured = figures.measure(demo)
    made = figures.blocks(measured, control=measured)
    table1, gaps = (re.sub(" +", " ", made[name]) for name in ("table1", "gaps"))
    batch = f"| Batch | 37.5 ± {statistics.stdev([25, 50]):.1f} | – | 37.5 ± 17.7 | – | – |"
    assert batch in table1.splitlines()
    gap = f"+17.5 ± {statistics.stdev([25, 10]):.1f}"  # of the pairs by fold
    assert f"| Random (by site) above batch | {gap} | {gap} | +8.7 |" in gaps
    assert "| – " in figures.blocks(measured, control=None)["gaps"].splitlines()[-2]
    assert "50 %" in made["twins"]  # one of the two test sites shares its well with training
    assert "rxrx1/synthetic 1.0.0" in made["about"] and "Commit abc1234 on 2" in made["about"]
    page = "before\n<!-- figures: twins -->\nold\n<!-- end -->\nafter\n"
    filled = figures.fill(page, made)
    assert filled.splitlines() == [
        "before", "<!-- figures: twins -->", made["twins"], "<!-- end -->", "after",
    ]  # fmt: skip
    assert figures.fill(filled, made) == filled


def test_figures_refuse_two_versions_and_missing_runs(demo):
    with edited(demo / "batch-plate_control-1" / "environment.json") as made:
        made["commit"] = "def5678"
    with pytest.raises(figures.FiguresError, match="versions"):
        figures.blocks(figures.measure(demo), None)
    for fold in range(2):
        shutil.rmtree(demo / f"random_well-plate_control-{fold}")
    with pytest.raises(figures.FiguresError, match="no run of .*random_well"):
        figures.measure(demo)
    with pytest.raises(figures.FiguresError, match="block"):
        figures.fill("<!-- figures: nothing -->\n<!-- end -->", {})


REPORT = """1 of 2 rows.

- It cannot say.

Accuracy on unseen (x), %:

| method | by site | training | gain | p (Holm) | by well |
|--------|--------:|---------:|-----:|---------:|--------:|
| **inductive** | | | | | |
| base | 46.4 | 91.1 | – | – | 53.4 |
| cutmix | 46.3 | 43.9 | -0.1 (-7.3 to +7.1) | 1.000 | 49.3 |

A note.
"""


@pytest.fixture
def board(tmp_path) -> Path:
    """A leaderboard of four worlds, and that of the same without batch effects."""
    make_boards(tmp_path / "1", tmp_path / "0")
    for file in tmp_path.rglob("config.json"):
        (file.parent / "environment.json").write_text(json.dumps(MADE_WITH))
    for run in (tmp_path / "1/baseline").glob("*/batch-0-0"):
        (run / "embeddings.parquet").write_bytes(parquet(TRUTH | FEATURES))
    (tmp_path / "1/report").mkdir()
    (tmp_path / "1/report/leaderboard.md").write_text(REPORT)
    return tmp_path


def test_the_page_of_the_leaderboard_is_its_report(board):
    made = figures.worlds(board, board / "dose.png")
    assert made["board"].startswith("Commit abc1234 on 2 cores")
    assert made["board"].endswith("- It cannot say.")
    gain = "-0.1 (-7.3 to +7.1)"
    assert made["board_table"].splitlines()[-1] == f"| cutmix | 46.3 | 43.9 | {gain} | 1.000 |"
    accepted = [line.split("|")[1].strip() for line in made["acceptance"].splitlines()[2:]]
    assert accepted == [one.name for one in acceptance.CRITERIA]
    planned = [line.split("|")[1].strip() for line in made["planning"].splitlines()[2:]]
    assert planned[:-1] == accepted
    assert made["dose"].count("gain of") == 3 and "positive controls" in made["variance"]
    assert (board / "dose.png").read_bytes()[:4] == b"\x89PNG"
    assert figures.recipes(board / "1")["recipes_table"] == made["board_table"]


def test_what_a_search_drew(tmp_path):
    (tmp_path / "report").mkdir()
    (tmp_path / "environment.json").write_text(json.dumps(MADE_WITH))
    page = tmp_path / "report" / "search.md"
    table = "| method |\n|---|\n| base |"
    page.write_text(f"2 draws.\n\nDrawn, chosen and gained, %:\n\n{table}\n\nOwn: x.\n")
    made = figures.search(tmp_path)
    assert made["search_table"] == table and "abc1234" in made["search"]
    page.write_text("2 draws.\n")
    with pytest.raises(figures.FiguresError, match="Drawn"):
        figures.search(tmp_path)


def test_worlds_without_a_dose_make_no_page(tmp_path):
    (tmp_path / "1").mkdir()
    with pytest.raises(figures.FiguresError, match="folders 0 and 1"):
        figures.worlds(tmp_path, tmp_path / "dose.png")


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("1/report/leaderboard.md", "A note.", "Not in the tables:\n\n- base: killed", "missing"),
        ("1/report/leaderboard.md", "Accuracy on", "Gain on", "Accuracy"),
        ("0/baseline/w1/batch-0-0/environment.json", "abc1234", "abc9999", "versions"),
    ],
)
def test_a_leaderboard_that_makes_no_page(board, file, old, new, said):
    path = board / file
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(figures.FiguresError, match=said):
        figures.worlds(board, board / "dose.png")
