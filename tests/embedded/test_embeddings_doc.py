"""docs/embeddings.md and its notebook run as they are."""

import json
import re
from pathlib import Path

import pytest
from official_tables import made_up, synthetic_sites, write_archives

from rxrx1_jax.data import table_styles
from rxrx1_jax.data.embeddings import Embeddings

ROOT = Path(__file__).parents[2]


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder with mine.parquet, and the metadata where the page has it."""
    sites = synthetic_sites(huvec=3, rpe=3, hepg2=0, u2os=0, plates=2)
    (tmp_path / "data/rxrx1_embeddings").mkdir(parents=True)
    x = made_up(sites, 8)
    write_archives(tmp_path / "data/rxrx1_embeddings", sites, x)
    table_styles.write(Embeddings(sites, x), tmp_path / "mine.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    return tmp_path


def run(cells: list[str], name: str) -> dict:
    namespace: dict = {}
    for cell in cells:
        exec(compile(cell, name, "exec"), namespace)
    return namespace


def test_the_page_runs_as_it_is(place):
    text = (ROOT / "docs/embeddings.md").read_text()
    found = run(re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE), "page")
    own = {row["method"]: row for row in found["table"].records()}
    assert own["untreated"]["by site"] > own["centroids"]["by site"]
    assert "untreated" in (place / "runs/untreated/index.html").read_text()


def test_the_notebook_runs_as_it_is(place):
    cells = json.loads((ROOT / "examples/own_embeddings.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    found = run(code, "notebook")
    assert set(found["shown"]) == {"centre_scale_plate", "tvn_plate", "untreated"}
    assert (place / "runs/own/index.html").exists()
