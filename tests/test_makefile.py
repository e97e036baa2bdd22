"""`make`, and `make demo` with a stand-in for Python that finishes each run at once."""

import json
import os
import re
import subprocess
from pathlib import Path

from tfds_builder.rxrx1.builder_configs import BUILDER_CONFIGS
from tfds_builder.rxrx1.release.metadata import CELL_TYPES
from tfds_builder.rxrx1.synthetic import Screen

ROOT = Path(__file__).parents[1]
STAND_IN = """#!/bin/sh
echo "$@"
for word in "$@"; do
  case $word in
    --workdir=*) mkdir -p ${word#--workdir=}; touch ${word#--workdir=}/results.json;;
  esac
done
"""


def make(*words: str) -> list[str]:
    """What it says; not as a child of the `make test` that may have started this test."""
    environment = {name: x for name, x in os.environ.items() if "MAKE" not in name}
    command = ["make", *words]
    return subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, text=True, env=environment
    ).stdout.splitlines()


def stand_in(venv: Path, stamp: str) -> None:
    """In place of an environment that is installed."""
    python = venv / "bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(STAND_IN)
    python.chmod(0o755)
    (venv / stamp).touch()


def test_make_alone_lists_the_targets():
    assert make() == make("help")
    targets = re.findall(r"^([\w-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [line.split()[1] for line in make()] == targets and "demo" in targets


def test_the_demo_tells_where_it_is(tmp_path):
    stand_in(tmp_path / "venv", ".demo")
    records = tmp_path / "dataset_info.json"
    asked = [f"{name}={tmp_path}/{name.lower()}" for name in ("VENV", "DATA", "RUNS")]
    (tmp_path / "runs/batch-1").mkdir(parents=True)  # of no fold that is asked for
    for seconds, path in enumerate(("random_site-0", "", "batch-0")):
        file = tmp_path / "runs" / path / "results.json" if path else records
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()  # of an earlier call, the first one on other records
        os.utime(file, (seconds, seconds))
    asked += [f"RECORDS={records}", "FOLDS=0 2"]
    said = make("demo", *asked)
    head = re.findall(r"^run (\d) of 5: \S+/runs/([\w-]+?)(, about 1 min left)?$",
                      "\n".join(said), re.MULTILINE)  # fmt: skip
    assert [number for number, _, _ in head] == [str(i) for i in range(1, 6)]
    assert [bool(left) for _, _, left in head] == [False, *[True] * 4]
    started = [line.split() for line in said if line.startswith("-m rxrx1_jax.main")]
    for (_, name, _), words in zip(head, started, strict=True):
        protocol, fold = name.split("-")
        assert f"--config=demo:protocol={protocol},fold={fold}" in words
        assert f"--workdir={tmp_path}/runs/{name}" in words
    report = said[-1].split()
    assert report[1] == "rxrx1_jax.report" and len(report) == 2 + 6 + 1
    assert set(report[2:-1]) == {f"{tmp_path}/runs/{name}" for _, name, _ in head} | {
        f"{tmp_path}/runs/batch-0"
    }
    assert make("demo", *asked) == said[-1:]


def test_the_real_screen_is_fetched_and_corrected(tmp_path):
    stand_in(tmp_path / "venv", ".real")
    said = make("real", f"VENV={tmp_path}/venv", f"DATA={tmp_path}/a b", "FOLDS=0 2",
                f"FROM={tmp_path}/c d", f"REAL={tmp_path}/out")  # fmt: skip
    fetched, corrected = said
    folder = f"{tmp_path}/a b/rxrx1_embeddings"
    assert fetched == f"-m rxrx1_jax.download --out={folder} --from={tmp_path}/c d"
    assert corrected.startswith(f"-m rxrx1_jax.correct --embeddings={folder}/rxrx1-dl-embeddings")
    for word in (f"--metadata={folder}/rxrx1-metadata.zip", "--folds=0,2", "tvn_plate+lda",
                 f"--out={tmp_path}/out"):  # fmt: skip
        assert word in corrected


def test_the_dose_takes_a_board_of_all_worlds_per_dose(tmp_path):
    stand_in(tmp_path / "venv", ".demo")
    (tmp_path / "venv/.analysis").touch()
    said = make("dose", f"VENV={tmp_path}/venv", f"DATA={tmp_path}/data", f"BOARDS={tmp_path}/b",
                "WORLDS=3 4", "DOSES=0 0.5 1", "FOLDS=0 2")  # fmt: skip
    built = [json.loads(line.partition("--config=")[2]) for line in said if " build " in line]
    asked = [(one["name"], one["screen"]["seed"], one["screen"]["batch_effect"]) for one in built]
    assert asked == [(f"world_{k}_dose_{dose:g}", k, dose) for dose in (1, 0, 0.5) for k in (3, 4)]
    boards = [line.split() for line in said if "rxrx1_jax.leaderboard" in line]
    for words, dose, methods in zip(boards, ("1", "0", "0.5"), ("screening", "dose", "dose"),
                                    strict=True):  # fmt: skip
        worlds = [f"rxrx1/world_{k}_dose_{dose}" for k in (3, 4)]
        assert f"--worlds={','.join(worlds)}" in words and f"--methods={methods}" in words
        assert f"--workdir={tmp_path}/b/{dose}" in words and "--folds=0,2" in words
    acceptance, dose = (next(line for line in said if f"benchmarks.{name}" in line)
                        for name in ("acceptance", "dose"))  # fmt: skip
    assert f"{tmp_path}/b/1 --without={tmp_path}/b/0" in acceptance
    assert f" 0={tmp_path}/b/0 0.5={tmp_path}/b/0.5 1={tmp_path}/b/1 " in dose


def test_worlds_that_choose_are_not_those_that_are_scored(tmp_path):
    stand_in(tmp_path / "venv", ".demo")
    (tmp_path / "venv/.analysis").touch()
    said = make("tune", f"VENV={tmp_path}/venv", f"DATA={tmp_path}/data", f"BOARDS={tmp_path}/b",
                "WORLDS=3 4", "TUNING=7 8", "FOLDS=0 2")  # fmt: skip
    built = [line.partition("world_")[2][0] for line in said if " build " in line]
    assert built == ["3", "4", "7", "8"]
    words = next(line for line in said if "rxrx1_jax.search" in line).split()
    assert "--worlds=rxrx1/world_3_dose_1,rxrx1/world_4_dose_1" in words and "screening" in words
    assert "--tuning_worlds=rxrx1/world_7_dose_1,rxrx1/world_8_dose_1" in words
    assert f"--workdir={tmp_path}/b/search" in words and "--folds=0,2" in words


def test_table_1_has_a_screen_of_four_cell_types(tmp_path):
    stand_in(tmp_path / "venv", ".demo")
    said = make("table1", f"VENV={tmp_path}/venv", f"DATA={tmp_path}/data")
    built, ran = (line for line in said if line.startswith("-m "))
    assert "tfds_builder.rxrx1 build --config=four_cell_types" in built
    assert "rxrx1_jax.table1" in ran and "--config.data.name=rxrx1/four_cell_types" in ran
    (config,) = (c for c in BUILDER_CONFIGS if c.name == "four_cell_types")
    cell_types = {cell_type for _, cell_type, _ in Screen(**config.screen).experiments()}
    assert cell_types == set(CELL_TYPES)
