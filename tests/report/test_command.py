"""What all commands on runs share: help, paths, terminals, places that cannot be written."""

import os
import subprocess
import sys

import pytest
from children import ROOT
from commands import run_command
from finished_runs import all_right, make_run

from rxrx1_jax.report import command

COMMANDS = ("report", "table1", "leaderboard", "correct", "diagnose", "lda12")
ASK = """
import runpy, sys, time
started = time.process_time()
try:
    runpy.run_module("rxrx1_jax.{}", run_name="__main__")
except SystemExit as end:
    heavy = [name for name in ("jax", "matplotlib", "scipy", "tensorflow") if name in sys.modules]
    print(end.code, time.process_time() - started < 1, heavy, file=sys.stderr)
"""


def child(*arguments, **variables):
    """A Python of its own: which modules are loaded, and what its terminal takes, are its own."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, env=os.environ | variables)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_fast_and_imports_little(name):
    done = child("-c", ASK.format(name), "--help")
    assert done.stderr.decode() == "0 True []\n" and b"--data_dir" in done.stdout


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "try[1]", all_right(3, 3))


def test_an_ascii_terminal_gets_the_table(run, tmp_path):
    again = make_run(tmp_path / "again", all_right(4, 3), fold=1)
    words = ["rxrx1_jax.report", run, again, f"--out={tmp_path}/page"]
    done = child("-m", *words, PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and b"17.5 +- 3.5" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "words", ["report '{run}' --out={out}", "main --config=smoke --workdir={out} --mode=plan"]
)
def test_a_reader_that_has_gone_ends_it_without_a_word(run, tmp_path, words):
    words = words.format(run=run, out=tmp_path / "out")
    line = f"set -o pipefail; '{sys.executable}' -m rxrx1_jax.{words} | head -1"
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, check=False)
    assert done.stderr == b"" and done.stdout.count(b"\n") == 1 and done.returncode in (0, 1)
    assert (tmp_path / "out" / "index.html").exists() == words.startswith("report")


def test_paths_are_expanded_once(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    done = run_command("report", "~/try[1]", "--out=~/rep")
    assert done.code == 0 and (tmp_path / "rep" / "index.html").exists()
    assert not (tmp_path / "~").exists()


OF_RUNS = [("report", "--baseline"), *((name, flag) for name in ("report", "correct", "diagnose")
                                       for flag in ("RUN", "--out", "--data_dir"))]  # fmt: skip
OF_LDA12 = [("lda12", flag) for flag in ("--data_dir", "--metadata")]
OF_MANY = [(name, flag) for name in COMMANDS[1:3] for flag in ("--workdir", "--data_dir")]


@pytest.mark.parametrize(("name", "flag"), [*OF_RUNS, *OF_MANY, *OF_LDA12])
def test_a_url_is_one_line(name, flag):
    given = ["gs://b/r"] if flag == "RUN" else [f"{flag}=gs://b/r"]
    given += ["run"] if (name, flag) in OF_RUNS else []
    given += ["--config=demo"] if (name, flag) in OF_MANY else []
    given += ["--workdir=w"] if flag == "--data_dir" and (name, flag) in OF_MANY else []
    given += ["--methods=leaderboard"] if name == "leaderboard" else []
    done = run_command(name, *given)
    assert done.code in (1, 2) and "gs://b/r" in done.last and done.err.count("\n") == 1


@pytest.mark.parametrize("name", ["report", "correct", "diagnose"])
def test_a_place_that_cannot_be_written_is_found_before_the_work(name, tmp_path):
    (tmp_path / "file").touch()
    for place in ("file", "file/below"):
        done = run_command(name, tmp_path / "no-run", f"--out={tmp_path / place}")
        assert done.code == 1 and "--out" in done.last and done.err.count("\n") == 1


def test_a_read_only_place_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(OSError, match="--out="):
        command.check_writable("--out", tmp_path / "new" / "page")
    with pytest.raises(OSError, match="--out"):
        command.places([tmp_path], None)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("two\nlines"), 1, "two lines"),
        (MemoryError(), 1, "eval.batch_size"),
        (FileNotFoundError(2, "No such file", "x"), 1, "No such file"),
        (KeyboardInterrupt(), 75, "stopped"),
    ],
)
def test_an_error_is_one_line(monkeypatch, error, code, said):
    def fail(*_):
        raise error

    monkeypatch.setattr("rxrx1_jax.report.runs.load_runs", fail)
    done = run_command("report", "run")
    assert done.code == code and said in done.last and done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "end"),
    [(ZeroDivisionError("x"), ZeroDivisionError), (BrokenPipeError("x"), SystemExit)],
)
def test_a_fault_of_ours_is_raised_and_a_logger_s_pipe_is_not_stdout(error, end):
    def fail():
        raise error

    with pytest.raises(end, match="x$"):
        command.run(fail)


def test_a_value_error_in_training_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("rxrx1_jax.main.read_config", lambda *_, **__: int("x"))
    with pytest.raises(ValueError, match="'x'"):
        run_command("main", "--workdir=nowhere")
