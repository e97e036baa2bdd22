"""Table 1 by one command: real runs on a small synthetic screen, made-up ones for failures."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from children import ROOT, SECONDS, end, stand_in, start, wait_for
from commands import run_command
from dataset_fixture import write_few
from finished_runs import all_right, make_run

from rxrx1_jax import table1
from rxrx1_jax.data import splits
from rxrx1_jax.training import run_dir, sweep

SCRIPT = ROOT / "launch" / "slurm_table1.sh"
# With three HUVEC and two RPE experiments of four treatment sites each, and a batch of 8: the
# first two can be made, the other three each lack something.
FEW = [("batch", 0, c) for c in ("all", "HUVEC", "RPE", "U2OS")] + [("random_site", 2, "RPE")]
EPOCHS = 4


def driver(*arguments, runs=FEW, python=sys.executable):
    """The command with other runs, and with another program in place of the interpreter."""
    variables = {"RUNS": json.dumps(runs), "PYTHON": str(python)}
    return start("driver", "rxrx1_jax.table1", *arguments, **variables)[0]


def is_held(path):
    with open(path.with_name(f".{path.name}.lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@pytest.fixture(scope="module")
def screen(tmp_path_factory):
    """(config, its file): a synthetic screen of 16 px."""
    sizes = {"huvec": 3, "rpe": 2, "hepg2": 0, "u2os": 0, "treatments": 2, "positive_controls": 2}
    return write_few(tmp_path_factory.mktemp("screen"), 8, EPOCHS, **sizes)


@pytest.fixture(scope="module")
def worked(screen, tmp_path_factory):
    """(WORKDIR, outcome of the command that was stopped, and of the same command again)."""
    workdir = tmp_path_factory.mktemp("worked") / "table1"
    arguments = [f"--config={screen[1]}", f"--workdir={workdir}"]
    # The command's own choice of runs is stronger than the user's.
    arguments += ["--config.data.protocol=random_well", "--config.train.log_every=7"]
    said = workdir.parent / "said"
    stopped = driver(*arguments, python=stand_in(workdir.parent / "python", "pausing", said))
    first = workdir / "batch-all-0"
    wait_for(said.exists, stopped)
    assert is_held(first)
    stopped.terminate()
    outputs = end([stopped])
    assert not is_held(first)  # the run has ended too
    assert not (first / "results.json").exists()
    outputs += end([driver(*arguments)])
    return workdir, *outputs


@pytest.mark.long
def test_a_stopped_command_goes_on(worked):
    workdir, (code, _, stderr), (second_code, stdout, again) = worked
    assert code == 75 and stderr.splitlines()[-1].startswith("stopped")
    assert second_code == 0, again
    assert "2 of 5 runs to do" in stdout and re.search(r"resumed at step \d", stdout)
    assert f"run 2 of 5: {workdir}/batch-HUVEC-0\n" in stdout  # no rate yet: the first was resumed
    for cell_type in ("all", "HUVEC"):
        results = run_dir.read_results(workdir / f"batch-{cell_type}-0")
        assert (results["protocol"], results["fold"]) == ("batch", 0)
        assert (results["cell_type"], results["epochs"]) == (cell_type, EPOCHS)
        config = json.loads((workdir / f"batch-{cell_type}-0" / "config.json").read_text())
        assert config["train"]["log_every"] == 7


@pytest.mark.long
def test_the_table_stands_beside_the_papers(worked):
    workdir, _, (_, stdout, _) = worked
    text = (workdir / "report" / "table1.md").read_text()
    assert text in stdout and (workdir / "report" / "index.html").exists()

    def rows(caption):
        """Of the first table below the words, and of those that follow it."""
        found = {}
        for line in text.partition(caption)[2].splitlines():
            name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            found.setdefault(name, cells)
        return found

    accuracy = {
        name: f"{100 * run_dir.read_results(workdir / name)['accuracy']['site']['all']:.1f}"
        for name in ("batch-all-0", "batch-HUVEC-0")
    }
    separate = rows("by site; cell types: separate models")
    assert separate["Batch"] == ["0", accuracy["batch-all-0"], accuracy["batch-HUVEC-0"], *"–––"]
    assert separate["Batch"] != rows("by site; cell types: a break-down")["Batch"]
    assert separate["Random"][-5:-3] == ["52.8 ± 0.0", "68.9 ± 0.3"]  # the paper's
    assert separate["epochs"] == [str(EPOCHS), "not known"]
    assert separate["image size"] == ["16 px", "512 px"]
    assert "- batch-RPE-0: 4 training sites, " in text
    assert "- batch-U2OS-0: cell type 'U2OS'" in text
    assert "- random_site-RPE-2: " in text


@pytest.mark.long
def test_collecting_on_a_cluster_needs_no_device(worked, screen):
    """The whole list of runs, by the script, with a JAX that would fail if it were asked."""
    workdir, _, _ = worked
    names = {"CONFIG": str(screen[1]), "WORKDIR": str(workdir), "PYTHON": sys.executable}
    fields = ["--config.train.log_every=7"]
    before = sorted(path.name for path in workdir.iterdir())
    done = subprocess.run(
        [SCRIPT, "collect", *fields], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | names | {"JAX_PLATFORMS": "none"}, check=False,
    )  # fmt: skip
    assert re.search(r"\| Batch +\| +\| 44.1 ± 5.7", done.stdout), done.stderr
    assert "batch-all-1, batch-HUVEC-1" in done.stdout and ": not started\n" in done.stdout
    assert done.returncode == 1  # not every run that could be made is complete
    assert sorted(path.name for path in workdir.iterdir()) == before


@pytest.mark.long
def test_runs_of_other_settings_are_refused(worked, screen):
    config = screen[0].copy_and_resolve_references()
    config.train.log_every = 7
    assert [bool(plan.obstacle) for plan in table1.make_plans(config, worked[0], FEW)] == [
        *(False, False, True, True, True)
    ]
    config.optim.epochs = 3
    with pytest.raises(run_dir.RunError, match=f"batch-all-0: .* optim.epochs={EPOCHS}"):
        table1.make_plans(config, worked[0], FEW)


def test_the_list_is_the_papers_table():
    assert len(table1.RUNS) == len(set(table1.RUNS)) == 30
    assert table1.RUNS[:6] == [
        *(("batch", 0, c) for c in ("all", "HUVEC", "RPE", "HEPG2", "U2OS")), ("batch", 1, "all"),
    ]  # fmt: skip
    assert table1.RUNS[-1] == ("random_site", splits.FOLDS - 1, "U2OS")
    done = run_command("table1", "--task=30", "--workdir=runs/table1", "--config=demo")
    assert done.code == 2 and "--task" in done.last


def test_collecting_what_is_there(tmp_path, capsys):
    paths = [tmp_path / name for name in ("batch-all-0", "batch-all-1", "batch-U2OS-0", "other")]
    make_run(paths[0], all_right(10, 5))
    plans = [sweep.Plan(path, {}, 9, "too few" if path.name == "other" else "") for path in paths]
    reasons = {paths[0]: "held", paths[1]: "held"}  # the first was completed since
    assert not table1.collect(plans, tmp_path, reasons)
    text = (tmp_path / "report" / "table1.md").read_text()
    assert text in capsys.readouterr().out and (tmp_path / "report" / "index.html").exists()
    assert re.search(r"\| Batch +\| 0 +\| +50.0 \|", text)
    missing = [line for line in text.splitlines() if line.startswith("- ")]
    assert missing == [
        *("- batch-all-1: held", "- batch-U2OS-0: not started", "- other: too few")
    ]
    assert table1.collect([plans[0], plans[3]], tmp_path, {})


@pytest.fixture
def program(tmp_path):
    """Stands in for the interpreter that runs rxrx1_jax.main; does what the name of a run says."""
    return stand_in(tmp_path / "program", "named")


def train_all(plans, *options):
    def work(plan, worker):
        return sweep.train_one(plan, [], worker)

    return sweep.do_all(plans, run_dir.is_complete, work, *options)


def made_up(workdir, *names, sites=20):
    return [sweep.Plan(workdir / name, {}, sites, "") for name in names]


def test_a_run_that_fails_leaves_the_others_alone(program, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sys, "executable", str(program))
    names = ("complete-1", "crash", "killed", "nothing", "held", "complete-2")
    plans = made_up(tmp_path / "runs", *names)
    (tmp_path / "runs").mkdir()
    with open(tmp_path / "runs" / ".held.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        reasons = train_all(plans)
    said = {path.name: reason for path, reason in reasons.items()}
    words = {"crash": "RuntimeError", "killed": "SIGKILL", "nothing": "status 0", "held": "another"}
    assert said.keys() == words.keys() and all(words[name] in said[name] for name in said), said
    assert (tmp_path / "runs" / "complete-2" / "results.json").exists()
    assert not (tmp_path / "runs" / "held").exists()
    assert "Traceback ..." in capfd.readouterr().err  # what a run says is passed on


def test_what_is_refused_before_it_begins_stops_the_command(program, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(SystemExit):
        train_all(made_up(tmp_path / "runs", "refused", "complete"))
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: optim.momentum=2") and "[0, 1)" in line
    assert not (tmp_path / "runs" / "complete").exists()


def test_time_left_is_by_training_sites(program, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "executable", str(program))
    clock = iter([0, 40, 100, 100])
    monkeypatch.setattr(sweep, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    plans = made_up(tmp_path, "complete-1", "complete-2")
    plans[1] = plans[1]._replace(train_sites=5)
    train_all([*plans, plans[0]._replace(obstacle="too few")])
    said = capsys.readouterr().out
    assert f"run 1 of 3: {tmp_path}/complete-1\n" in said
    assert f"run 2 of 3: {tmp_path}/complete-2, about 0:00:10 left\n" in said


@pytest.mark.long
def test_a_run_outlives_its_killed_command_and_is_not_run_twice(
    program, screen, tmp_path, monkeypatch
):
    path = tmp_path / "batch-HUVEC-0"
    command = driver(
        f"--config={screen[1]}", f"--workdir={tmp_path}", runs=[FEW[1]], python=program
    )
    wait_for((path / "pid").read_text, command)
    command.kill()
    command.wait()
    assert is_held(path)
    try:
        monkeypatch.setattr(sys, "executable", str(program))
        assert "another" in sweep.train_one(*made_up(tmp_path, path.name), [])
    finally:
        os.kill(int((path / "pid").read_text()), signal.SIGTERM)
    deadline = time.monotonic() + SECONDS
    while is_held(path):
        assert time.monotonic() < deadline
        time.sleep(0.02)
