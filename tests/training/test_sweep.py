"""A list of runs that several commands may share: order, held runs, second tries, time left."""

import fcntl
import threading
import time
from types import SimpleNamespace

import pytest
from children import environment

from rxrx1_jax import config as config_lib
from rxrx1_jax.data import smoke, splits
from rxrx1_jax.training import sweep
from rxrx1_jax.training.sweep import Plan
from rxrx1_jax.training.workers import DONE, FAILED, KILLED, REFUSED, Ending, Worker

SLEEP = "import pathlib, time; pathlib.Path({!r}).touch(); time.sleep(60)"


def plans(folder, *names, sites=10):
    return [Plan(folder / name, {}, sites, "") for name in names]


def never(path):
    return False


def do_all(runs, done, work):
    """With one worker."""
    return sweep.do_all(runs, done, work, [Worker()])


def holding(path):
    """The lock of a run as another process has it, until it is closed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(sweep.lock_of(path), "a")
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(sweep, "PAUSE", 0.02)


def names(found):
    return {path.name: reason for path, reason in found.items()}


def test_each_split_of_a_list_is_drawn_once(tmp_path, monkeypatch):
    """By what it depends on: the settings of `data` that a split is made from."""
    images, config = smoke.screen(), config_lib.read("smoke")
    drawn, draw = [], splits.make_split
    monkeypatch.setattr(
        splits, "make_split", lambda sites, **of: drawn.append(of) or draw(sites, **of)
    )
    plan = sweep.Planner(config, images)
    found = [
        plan(tmp_path / f"{protocol}-{seed}-{normalisation}", {
            "data.protocol": protocol, "train.seed": seed, "data.normalisation": normalisation,
        })
        for protocol in ("batch", "random_site")
        for seed in (0, 1)
        for normalisation in ("none", "plate_control")
    ]  # fmt: skip
    assert [one["protocol"] for one in drawn] == ["batch", "random_site"]
    sizes = {"batch": found[0].train_sites, "random_site": found[-1].train_sites}
    for one in found:
        data = {**config.data, "protocol": one.overrides["data.protocol"]}
        expected = len(splits.configured(images.sites, data).train)
        assert not one.obstacle and one.train_sites == expected == sizes[data["protocol"]]
    part = plan(tmp_path / "part", {"data.fraction": 0.5})
    assert 0 < part.train_sites < found[0].train_sites


def test_as_many_at_once_as_there_are_workers(tmp_path):
    together = threading.Barrier(2, timeout=30)
    teams = []
    two = [Worker(), Worker()]

    def work(plan, worker):
        together.wait()  # breaks unless another is at work
        teams.append((plan.path.name, worker))
        bad = plan.path.name == "b"  # its error names the run, as the command does
        return Ending(FAILED, f"{plan.path}: because") if bad else Ending(DONE)

    found = sweep.do_all(plans(tmp_path, *"abcd"), never, work, two)
    assert names(found) == {"b": "because"}
    assert sorted(name for name, _ in teams) == [*"abcd"]
    assert {worker for _, worker in teams} == {*two}


def test_what_is_done_or_impossible_is_left_out(tmp_path, capsys):
    some = [*plans(tmp_path, "a", "b"), Plan(tmp_path / "c", {}, 0, "too few")]
    worked = []

    def work(plan, _):
        worked.append(plan)
        return Ending(DONE)

    do_all(some, lambda path: path.name == "a", work)
    assert worked == some[1:2]
    assert "1 of 3 runs to do\n" in capsys.readouterr().out


def test_whether_a_run_is_done_is_asked_when_its_turn_comes(tmp_path):
    """Another command completes b while this one is at a."""
    ready, worked = set(), []

    def work(plan, _):
        worked.append(plan.path.name)
        ready.add("b")
        return Ending(DONE)

    assert not do_all(plans(tmp_path, *"abc"), lambda path: path.name in ready, work)
    assert worked == ["a", "c"]


@pytest.mark.parametrize("holder", ["completes it", "dies"])
def test_a_run_that_another_command_holds_is_looked_at_again(tmp_path, capsys, soon, holder):
    lock, ready, worked = holding(tmp_path / "a"), set(), []

    def end():
        ready.update({"a"} if holder == "completes it" else ())
        lock.close()

    def work(plan, _):
        worked.append(plan.path.name)
        if plan.path.name == "b":
            threading.Timer(0.1, end).start()
        return Ending(DONE)

    found = do_all(plans(tmp_path, "a", "b"), lambda path: path.name in ready, work)
    assert found == {} and worked == (["b"] if holder == "completes it" else ["b", "a"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "waiting" in line]
    assert line.endswith(f" {tmp_path}/a")


def test_two_commands_share_a_list_and_both_end_when_all_is_done(tmp_path, soon):
    ready, worked = set(), []

    def work(plan, _):
        time.sleep(0.02)
        worked.append(plan.path.name)
        ready.add(plan.path.name)
        return Ending(DONE)

    found = []
    commands = [
        threading.Thread(
            target=lambda: found.append(
                (do_all(plans(tmp_path, *"abcdefgh"), lambda p: p.name in ready, work),
                 len(ready))
            )
        )
        for _ in range(3)
    ]  # fmt: skip
    for command in commands:
        command.start()
    for command in commands:
        command.join()
    assert sorted(worked) == [*"abcdefgh"] and found == [({}, 8)] * 3


@pytest.mark.parametrize(("times", "left"), [(1, {}), (2, {"a": "ended by SIGKILL"})])
def test_a_run_that_a_signal_ended_is_tried_once_more(tmp_path, times, left):
    worked = []

    def work(plan, _):
        worked.append(plan.path.name)
        killed = plan.path.name == "a" and worked.count("a") <= times
        return Ending(KILLED, "ended by SIGKILL") if killed else Ending(DONE)

    assert names(do_all(plans(tmp_path, "a", "b"), never, work)) == left
    assert worked == ["a", "b", "a"]


@pytest.mark.parametrize(
    ("how", "begun", "worked"),
    [
        (FAILED, [], [*"abc"]),
        (KILLED, [], [*"abc"]),
        (REFUSED, [], [*"abcdef"]),  # of one method; those of others can work
        (FAILED, [*"abcd"], [*"abcdef"]),  # diverged before, as the command finds again
    ],
)
def test_nothing_is_begun_after_three_failures_in_a_row(tmp_path, how, begun, worked):
    for name in begun:
        (tmp_path / name).mkdir()
    did = []

    def work(plan, _):
        did.append(plan.path.name)
        return Ending(how, "no GPU")

    found = names(do_all(plans(tmp_path, *"abcdef"), never, work))
    assert did == worked and found.keys() == set("abcdef")
    assert {name for name in found if found[name] == "no GPU"} == {*worked}


def test_a_success_between_failures_goes_on(tmp_path):
    def work(plan, _):
        return Ending(DONE) if plan.path.name in "ceg" else Ending(FAILED, "no")

    assert names(do_all(plans(tmp_path, *"abcdefgh"), never, work)) == dict.fromkeys(
        "abdfh", "no"
    )


def test_an_error_ends_the_children_of_the_others(tmp_path):
    started, ends = tmp_path / "started", []
    env = {"PYTHONPATH": environment()["PYTHONPATH"]}

    def work(plan, worker):
        if plan.path.name == "bad":
            while not started.exists():
                time.sleep(0.01)
            raise SystemExit(3)
        command = ["-m", "executed", SLEEP.format(str(started))]
        ends.append(worker.run(command)[0])
        worker.run(command)  # a stopped worker starts nothing
        return Ending(DONE)

    begun = time.monotonic()
    with pytest.raises(SystemExit, match="3"):
        team = [Worker(env=env), Worker(env=env)]
        sweep.do_all(plans(tmp_path, "long", "bad", "later"), never, work, team)
    assert ends == [-15] and time.monotonic() - begun < 50
    holding(tmp_path / "long").close()  # its lock is free


@pytest.fixture
def clock(monkeypatch):
    """Seconds, which only tests let pass."""
    now = SimpleNamespace(seconds=0.0)

    def sleep(seconds):
        now.seconds += seconds

    stand_in = SimpleNamespace(monotonic=lambda: now.seconds, sleep=sleep)
    monkeypatch.setattr(sweep, "time", stand_in)
    return now


def test_time_left_is_by_training_sites(tmp_path, clock, capsys):
    def work(*_):
        clock.seconds += 40
        return Ending(DONE)

    runs = plans(tmp_path, "a", "b", sites=20)
    runs[1] = runs[1]._replace(train_sites=5)
    do_all([*runs, runs[0]._replace(obstacle="too few")], never, work)
    said = capsys.readouterr().out
    assert f"run 1 of 3: {tmp_path}/a\n" in said
    assert f"run 2 of 3: {tmp_path}/b, about 0:00:10 left\n" in said


def test_time_left_counts_what_others_do(tmp_path, clock, capsys):
    """They complete a and c, so of what is not begun they will do a part, too."""
    ready = set()

    def work(*_):
        ready.add("c")
        clock.seconds += 30
        return Ending(DONE)

    with holding(tmp_path / "a") as lock:
        def last(plan, worker):
            if plan.path.name == "f":
                ready.add("a")
                lock.close()
            return work()

        do_all(plans(tmp_path, *"abcdef"), lambda path: path.name in ready, last)
    said = [line.partition("about ")[2] for line in capsys.readouterr().out.splitlines()]
    # At d: b and d of a to d were taken here, so it is d and half of e and f. At e: e and 3/5 of f.
    assert [text for text in said if text] == ["0:01:00 left", "0:00:48 left", "0:00:30 left"]
