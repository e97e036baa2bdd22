"""`rxrx1_jax.correct --embeddings` on the official archives of a small screen: page and files."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from browser import check_page, check_text, needs_chromium
from commands import run_command
from official_tables import made_up, synthetic_sites, write_archives

from rxrx1_jax.data import tables

DESIGN = {"huvec": 3, "rpe": 3, "hepg2": 0, "u2os": 0, "plates": 2, "treatments": 8}
OPTIONS = ("--protocol=batch,random_well", "--workers=1", "--methods", "centre_scale_plate",
           "sphering_experiment")  # fmt: skip


def arguments(folder: Path, *more: str) -> list[str]:
    return [
        f"--embeddings={folder}/rxrx1-dl-embeddings.zip",
        f"--metadata={folder}/rxrx1-metadata.zip", f"--out={folder}/out", *OPTIONS, *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def done(once) -> tuple[Path, str]:
    """The folder of a finished command, and what it said."""

    def make(folder: Path) -> None:
        sites = synthetic_sites(**DESIGN)
        write_archives(folder, sites, made_up(sites, 8))
        outcome = run_command("correct", *arguments(folder), "--write=pycytominer")
        assert outcome.code == 0, outcome
        (folder / "said").write_text(outcome.out + outcome.err)

    folder = once("official-embeddings", make)
    return folder, (folder / "said").read_text()


def test_the_table_the_page_and_the_files_say_the_same(done):
    folder, said = done
    out = folder / "out"
    assert f"Page: {out}/index.html" in said
    html = (out / "index.html").read_text()
    first = html.partition('<p class="result">')[2].partition("</p>")[0]
    assert "2 of 2 rows" in first and html.index(first) < html.index("<table")
    assert "trained elsewhere" in html and "external data, test controls" in html
    rows = {row["method"]: row for row in csv.DictReader(open(out / "accuracy.csv"))}
    assert set(rows) == {"centroids", "centre_scale_plate", "sphering_experiment"}
    for name, row in rows.items():
        stored = [json.loads((out / f"results/{name}/batch-{fold}.json").read_text())
                  for fold in range(3)]  # fmt: skip
        by_site = 100 * np.mean([of["accuracy"]["site"]["all"] for of in stored])
        assert float(row["by site"]) == pytest.approx(by_site)
        assert f"{by_site:.1f}" in said and f'id="method-{name}"' in html
    gain = "gain by site, points (95 % interval)"
    difference = float(rows["centre_scale_plate"]["by site"]) - float(rows["centroids"]["by site"])
    assert float(rows["centre_scale_plate"][gain]) == pytest.approx(difference)
    assert rows["centroids"][gain] == "" and float(rows["centre_scale_plate"]["p (Holm)"]) <= 1
    for name in ("accuracy", "gap", "embeddings", "cell-types", "experiments"):
        assert (out / f"{name}.csv").exists() and (out / f"{name}.json").exists()
    for name in ("gains", "experiments", "map-experiment", "map-sirna"):
        check_text(out / f"{name}.svg")


@needs_chromium
def test_nothing_is_wider_than_the_page(done, tmp_path):
    check_page(done[0] / "out/index.html", tmp_path)


def test_what_is_computed_is_found_again_and_only_what_changed_is_done(done, tmp_path, monkeypatch):
    from rxrx1_jax.embedded import judging

    folder, computed = done[0], []
    predicted = judging.predicted
    monkeypatch.setattr(
        judging, "predicted", lambda *given: (computed.append(given), predicted(*given))[1]
    )
    results = folder / "out/results"
    (tmp_path / "results").symlink_to(results)
    again = [f"--out={tmp_path}" if "--out=" in word else word for word in arguments(folder)]
    assert run_command("correct", *again).code == 0 and computed == []
    kept = results / "centroids/batch-1.json"
    whole = kept.read_text()
    for damaged in (whole[:50], whole.replace('"method": ', '"method": 1'), "[]"):
        kept.write_text(damaged)
        assert run_command("correct", *again).code == 0
        assert len(computed) == 1 and kept.read_text() == whole
        computed.clear()


def test_corrected_embeddings_are_read_again(done):
    found = tables.read(done[0] / "out/corrected/centre_scale_plate.parquet")
    assert found.embeddings.x.shape == (len(synthetic_sites(**DESIGN)), 8)
    control = found.embeddings.sites["well_type"] != "treatment"
    assert abs(found.embeddings.x[control].mean()) < 0.01


@pytest.mark.long
def test_workers_give_the_same_table(done, tmp_path):
    folder, said = done
    asked = [f"--out={tmp_path}" if "--out=" in word else word for word in arguments(folder)]
    asked[asked.index("--workers=1")] = "--workers=2"
    outcome = run_command("correct", *asked)
    assert outcome.code == 0, outcome
    assert (tmp_path / "accuracy.csv").read_text() == (folder / "out/accuracy.csv").read_text()


@pytest.mark.long
@pytest.mark.parametrize("whom, end, code, named", [
    ("parent", signal.SIGTERM, 75, "same command"), ("parent", signal.SIGKILL, -9, ""),
    ("worker", signal.SIGKILL, 1, "--workers"),
])  # fmt: skip
def test_a_command_that_is_ended_leaves_no_worker(done, tmp_path, whom, end, code, named):
    asked = [f"--out={tmp_path}" if "--out=" in word else word for word in arguments(done[0])]
    asked[asked.index("--workers=1")] = "--workers=2"
    child = subprocess.Popen(
        [sys.executable, "-m", "rxrx1_jax.correct", *asked], stderr=subprocess.PIPE, text=True
    )
    assert child.stderr is not None
    next(line for line in child.stderr if line.startswith("1 of"))
    workers = [worker for worker in psutil.Process(child.pid).children()
               if "spawn_main" in " ".join(worker.cmdline())]  # fmt: skip
    assert len(workers) == 2
    os.kill(child.pid if whom == "parent" else workers[0].pid, end)
    said = child.stderr.read()
    assert child.wait() == code and named in said
    assert not psutil.wait_procs(workers, timeout=30)[1]


@pytest.mark.parametrize("more, code, named", [
    (["--folds=0,3"], 1, "3"), (["--folds=x"], 1, "-1"), (["--protocol=batch,wilds"], 1, "wilds"),
    (["--methods", "none"], 1, "none"), (["--methods", "nothing"], 1, "nothing"),
    (["--metadata=nowhere.csv"], 1, "nowhere.csv"), (["--embeddings=nowhere"], 1, "nowhere"),
    (["--write=csv"], 2, "csv"),
])  # fmt: skip
def test_wrong_options_are_one_line_before_work_starts(done, more, code, named, tmp_path):
    asked = [*arguments(done[0]), *more, f"--out={tmp_path}/new"]
    outcome = run_command("correct", *asked)
    assert outcome.code == code and named in outcome.last and "error: " in outcome.last
    assert not (tmp_path / "new/results").exists()


@pytest.mark.parametrize("words, named", [
    ([], "--embeddings"), (["--embeddings=x"], "--out"), (["run", "--embeddings=x"], "RUN"),
])  # fmt: skip
def test_either_runs_or_a_table(words, named):
    outcome = run_command("correct", *words)
    assert outcome.code == 2 and named in outcome.last
