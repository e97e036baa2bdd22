"""The page of a leaderboard of made-up runs: what it says first, where names lead, its width."""

import json
from pathlib import Path

import numpy as np
import pytest
from browser import check_page, check_text, needs_chromium
from finished_runs import all_right, make_run

from rxrx1_jax.leaderboard import embedding_map, page, scores
from rxrx1_jax.leaderboard.methods import Control, Methods
from rxrx1_jax.leaderboard.scores import Job, Outcome
from rxrx1_jax.methods.statistics import Unit
from rxrx1_jax.report.page import Page
from rxrx1_jax.report.runs import load_run

TRAINED = {"base": {}, "raw": {"data.normalisation": "none"}, "coral": {"optim.loss": "coral"}}
RIGHT = {"base": (8, 10, 9), "raw": (2, 3, 2), "coral": (10, 13, 12)}  # sites of 20, in each fold


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """The folder of a page whose corrections are one, as good as the runs of fold 0."""
    folder = tmp_path_factory.mktemp("leaderboard")
    methods = Methods(
        TRAINED, {"base": ("adabn_experiment", "assign_once"), "raw": (), "coral": ()}, ("base",),
        dict.fromkeys(TRAINED, "inductive"), {"no_batch_effect": Control({}, {"base": "no gap"})},
    )  # fmt: skip
    found = []
    for name, changed in TRAINED.items():
        for fold, sites in enumerate(RIGHT[name]):
            splits = ("batch", "random_site") if name == "base" else ("batch",)
            for protocol in splits:
                job = Job("", name, protocol, Unit("rxrx1/synthetic", fold, 0))
                settings = {f.replace(".", "__"): value for f, value in changed.items()}
                path = job.path(folder)
                make_run(path, all_right(sites, 5), protocol=protocol, fold=fold, **settings)
                found.append(Outcome(job, load_run(path), ""))
    accuracy = found[0].run.accuracy
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "load_correction", lambda path, name: accuracy)
        text, _, remarks = page.write(methods, found, folder / "report", str(folder))
    # Made-up runs have neither data nor embeddings.
    assert len(remarks) == 2 and "LDA-12" in remarks[0] and "embeddings.parquet" in remarks[1]
    assert (folder / "report" / "leaderboard.md").read_text() == text
    return folder / "report"


def test_the_result_comes_first_and_names_lead_to_what_explains_them(written):
    html = (written / "index.html").read_text()
    # Gains of coral: 10, 15 and 15 points.
    said = html.partition('<p class="result">')[2].partition("</p>")[0]
    assert "0 of 4 rows" in said and "1 worse" in said
    for name in (*TRAINED, "adabn_experiment", "assign_once"):
        assert f'href="#method-{name}"' in html and f'id="method-{name}"' in html
    for word in ("methods/adabn.py", "model/losses.py", "data/normalisation.py", "abc1234"):
        assert word in html
    assert 'href="../coral/batch-0-0/"' in html and html.index(said) < html.index("<table")
    rows = json.loads((written / "leaderboard.json").read_text())["rows"]
    assert [row["by site"] for row in rows[:3]] == pytest.approx([45, 35 / 3, 175 / 3])
    for svg in written.glob("*.svg"):
        check_text(svg)


@needs_chromium
def test_nothing_is_wider_than_the_page(written, tmp_path):
    check_page(written / "index.html", tmp_path)


def test_principal_components_against_the_covariance():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 6)) @ rng.normal(size=(6, 6)) + 5
    found, share = embedding_map.principal_components(x)
    values, vectors = np.linalg.eigh(np.cov(x.T))
    expected = (x - x.mean(0)) @ vectors[:, ::-1][:, :2]
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-9)
    np.testing.assert_allclose(share, values[::-1][:2] / values.sum())


def test_maps_show_both_stages_in_the_same_looks(tmp_path):
    rng = np.random.default_rng(0)
    sites = np.array([(f"HUVEC-0{e}", s) for e in range(1, 9) for s in range(9)] * 2,
                     [("experiment", "U8"), ("sirna_id", "i4")])  # fmt: skip
    x = rng.normal(size=(len(sites), 5)) + sites["sirna_id"][:, None]
    for column in ("experiment", "sirna_id"):
        figure = embedding_map.figure([("raw", x), ("after", x**3)], sites, column, {"HUVEC-08"})
        left, right = figure.axes
        looks = [[(line.get_color(), line.get_marker()) for line in axis.lines] for axis in (left,
                 right)]  # fmt: skip
        assert looks[0] == looks[1]
        named = {line.get_label(): look for line, look in zip(left.lines, looks[0], strict=True)
                 if not line.get_label().startswith("_")}  # fmt: skip
        assert len(named) == embedding_map.SHOWN == len(set(named.values()))
        out = Page("map", tmp_path)
        out.picture(column, figure, "a", "b")
        check_text(tmp_path / f"{column}.svg")
