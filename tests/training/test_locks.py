"""Locks where the kernel has them, where it refuses them, and where each host has its own."""

import errno
import fcntl
import json
import os
import time

import pytest
from children import end, start, wait_for
from commands import run_command

from rxrx1_jax.training import locks

SMOKE = ["--config=smoke", "--config.train.max_steps=1"]
SHORT = ["--config=smoke", "--config.train.max_steps=40", "--config.train.log_every=1"]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.05)


@pytest.fixture
def granted(quick, monkeypatch):
    """Every lock is granted, as to hosts that do not know of each other; host -> this is it."""
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    return lambda host: monkeypatch.setattr(locks.socket, "gethostname", lambda: host)


def test_one_holder_at_a_time_who_is_named_and_leaves_nothing(tmp_path):
    path = tmp_path / "new" / "lock"
    with locks.lock(path):
        with pytest.raises(locks.Locked, match=f"process {os.getpid()} on "):
            with locks.lock(path):
                pass
    assert path.read_text() == ""
    with locks.lock(path) as number:
        assert os.fstat(number).st_ino == path.stat().st_ino


def test_a_dead_holder_of_this_host_is_not_waited_for(tmp_path, monkeypatch):
    path = tmp_path / "lock"
    path.write_text(f"process 1 on {locks.socket.gethostname()} 0a1b 7")
    monkeypatch.setattr(locks.time, "sleep", lambda _: pytest.fail("it waits"))
    with locks.lock(path):
        pass


def test_what_a_dead_holder_of_another_host_left_is_taken_over(tmp_path, granted):
    path = tmp_path / "lock"
    path.write_text("process 1 on elsewhere 0a1b 7".ljust(locks.LENGTH))
    granted("here")
    begun = time.monotonic()
    with locks.lock(path):
        assert path.read_text().split()[3] == "here"
    assert time.monotonic() - begun >= locks.QUIET * locks.BEAT


def test_a_lock_that_another_host_holds_is_refused_though_it_was_granted(tmp_path, granted):
    granted("one")
    with locks.lock(tmp_path / "lock"):
        granted("two")
        with pytest.raises(locks.Locked, match="on one .* one host alone"):
            with locks.lock(tmp_path / "lock"):
                pass
    assert (tmp_path / "lock").read_text() == ""


def test_of_two_that_signed_at_once_the_first_gives_up(tmp_path, granted, monkeypatch):
    given_up, path = [], tmp_path / "lock"
    monkeypatch.setattr(locks, "_give_up", given_up.append)
    granted("one")
    with locks.lock(path):
        path.write_text("process 7 on two 0a1b 0".ljust(locks.LENGTH))
        deadline = time.monotonic() + 30
        while not given_up:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert "process 7 on two" in given_up[0]


@pytest.fixture
def refused(monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.parametrize("command", ["main", "table1"])
def test_where_there_are_no_locks_a_command_says_what_would_do(tmp_path, refused, command):
    done = run_command(command, *SMOKE, f"--workdir={tmp_path}/runs")
    assert done.code == 1 and "No locks available" in done.last and "--no-lock" in done.last
    assert not list(tmp_path.glob("runs/**/config.json"))


def test_no_lock_trains_without(tmp_path, refused):
    assert run_command("main", *SMOKE, f"--workdir={tmp_path}/run", "--no-lock").code == 0


@pytest.mark.long
@pytest.mark.parametrize("late", [False, True], ids=["at once", "later"])
def test_two_hosts_with_locks_of_their_own_do_not_train_in_one_directory(tmp_path, late):
    """One trains to its end, with each line of metrics once; the other ends with one line."""
    log, children = tmp_path / "run" / "metrics.jsonl", []
    for host in ("one", "two"):
        words = [*SHORT, f"--workdir={log.parent}"]
        children += start("local_lock", *words, HOST=host, WAIT="0.5")
        if late:
            wait_for(log.read_text, children[0])
    ends = end(children)
    assert sorted(child.code for child in ends) == [0, 1], ends
    (said,) = (child.stderr for child in ends if child.code)
    assert said.splitlines()[-1].startswith(f"error: {log.parent}") and "one host alone" in said
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    steps = [line["step"] for line in lines if "train_loss" in line]
    assert len(steps) == len(set(steps)) == 40
