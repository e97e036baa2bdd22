"""Table 1 by one command: real runs on a small synthetic screen, made-up ones for failures."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from children import PROGRAMS, ROOT, SECONDS, Child, end, environment, stand_in, start, wait_for
from commands import run_command
from dataset_fixture import write_few
from finished_runs import all_right, make_run

from rxrx1_jax import table1
from rxrx1_jax.data import splits
from rxrx1_jax.training import run_dir, sweep
from rxrx1_jax.training.workers import DONE, FAILED, KILLED, REFUSED, Ending

# With three HUVEC and two RPE experiments of four treatment sites each, and a batch of 8: the
# first two can be made, the other three each lack something.
FEW = [("batch", 0, c) for c in ("all", "HUVEC", "RPE", "U2OS")] + [("random_site", 2, "RPE")]
EPOCHS = 4


def driver(*arguments, runs=FEW, python=sys.executable):
    """The command with other runs, and with another program in place of the interpreter."""
    variables = {"RUNS": json.dumps(runs), "PYTHON": str(python)}
    return start("driver", "rxrx1_jax.table1", *arguments, **variables)[0]


def is_held(path):
    with open(sweep.lock_of(path), "a") as lock:
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
def test_collecting_needs_no_device(worked, screen):
    """The whole list of runs, with a JAX that would fail if it were asked."""
    workdir, _, _ = worked
    before = sorted(path.name for path in workdir.iterdir())
    words = [f"--config={screen[1]}", f"--workdir={workdir}", "--config.train.log_every=7"]
    done = subprocess.run(
        [sys.executable, "-m", "rxrx1_jax.table1", *words, "--collect"], cwd=ROOT, check=False,
        capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "none"},
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
    listed = run_command("table1", "--tasks", "--workdir=runs/table1", "--config=demo")
    assert (listed.code, listed.out) == (0, "30\n")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--task=30"], 1, "--task=30"),
        (["--task=-1"], 2, "--task"),
        (["--task=0", "--collect"], 2, "--collect"),
    ],
)
def test_tasks_that_there_are_not(tmp_path, words, code, said):
    done = run_command("table1", *words, f"--workdir={tmp_path}", "--config=smoke")
    assert done.code == code and said in done.last and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [(DONE, 0, "complete"), (FAILED, 1, "no GPU"), (KILLED, 1, "no GPU"), (REFUSED, 1, "no GPU")],
)
def test_a_task_does_its_run_alone_and_ends_as_it_did(tmp_path, monkeypatch, how, code, said):
    """The second of the list; no table is made."""
    did = []

    def train(plan, *_):
        did.append(plan.path.name)
        return Ending(how, "" if how == DONE else "no GPU")

    monkeypatch.setattr(sweep, "train_one", train)
    words = ["--task=1", f"--workdir={tmp_path}", "--config=smoke"]
    done = run_command("table1", *words)
    assert done.code == code and {*did} == {"batch-HUVEC-0"}
    assert not (tmp_path / "report").exists()
    assert how == REFUSED or done.out.splitlines()[-1].endswith(f"batch-HUVEC-0: {said}")


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


TERMINAL = [sys.executable, "-c", "import pty, sys; pty.spawn(sys.argv[1:])"]


@pytest.mark.long
@pytest.mark.parametrize("ended", ["kill -9", "SIGHUP", "closed terminal"])
def test_a_run_saves_and_ends_with_its_command(screen, tmp_path, ended):
    """Whatever ends the command: else the run would go on with its lock and the device."""
    path, said = tmp_path / "runs" / "batch-HUVEC-0", tmp_path / "said"
    variables = {"RUNS": json.dumps([FEW[1]]),
                 "PYTHON": str(stand_in(tmp_path / "python", "pausing", said))}  # fmt: skip
    words = [sys.executable, PROGRAMS / "driver.py", "rxrx1_jax.table1",
             f"--config={screen[1]}", f"--workdir={path.parent}"]  # fmt: skip
    words = TERMINAL * (ended == "closed terminal") + words
    command = Child(words, env=environment() | variables, stdin=subprocess.DEVNULL)
    wait_for(said.exists, command)
    before = steps_saved(path)
    command.send_signal(signal.SIGHUP if ended == "SIGHUP" else signal.SIGKILL)
    ((code, _, stderr),) = end([command])
    assert code == (75 if ended == "SIGHUP" else -signal.SIGKILL), stderr
    deadline = time.monotonic() + SECONDS
    while is_held(path):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert max(steps_saved(path)) > max(before) and not (path / "results.json").exists()


def steps_saved(path):
    return [int(folder.name) for folder in (path / "checkpoints").glob("[0-9]*")]
