"""Running many children: how many at once, on which cores, and what a failure does to the others.

tests/test_table1.py has the rest: resuming, locks, reasons, time left.
"""

import os
import sys
import threading
import time

import pytest

from rxrx1_jax.training import sweep
from rxrx1_jax.training.sweep import Plan, Worker

SLEEP = ["-c", "import time; time.sleep(60)"]


def plans(folder, *names):
    return [Plan(folder / name, {}, 10, "") for name in names]


def never(path):
    return False


def test_workers_share_the_cores():
    cores = os.sched_getaffinity(0)
    (alone,) = sweep.workers_on_shares(1)
    assert alone.cores is None
    shares = [worker.cores for worker in sweep.workers_on_shares(len(cores))]
    assert sorted(shares, key=sorted) == [{core} for core in sorted(cores)]
    with pytest.raises(ValueError, match=f"--workers=500: there are {len(cores)} cores"):
        sweep.workers_on_shares(500)


def test_a_child_uses_the_cores_of_its_worker_and_says_it_in_the_log(tmp_path, capfd):
    core = max(os.sched_getaffinity(0))
    code = (
        "import os, sys; print(os.sched_getaffinity(0)); "
        "print('warning', file=sys.stderr); sys.exit('error: no')"
    )
    worker, log = Worker(frozenset({core})), tmp_path / "log"
    status, last = sweep.child(["-c", code], tmp_path / "run", worker, log)
    assert (status, last) == (1, "error: no") and sweep.ending(status, last) == "no"
    assert sorted(log.read_text().split("\n")) == sorted(
        ["warning", "error: no", f"{{{core}}}", ""]
    )
    assert capfd.readouterr() == ("", "")
    assert sweep.child(["-c", "print(1)"], tmp_path / "run", Worker()) == (0, "")
    assert capfd.readouterr().out == "1\n"  # without a log, here


def test_as_many_at_once_as_there_are_workers(tmp_path):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    together = threading.Barrier(2, timeout=30)
    teams = []

    def work(plan, worker):
        together.wait()  # breaks unless another is at work
        teams.append((plan.path.name, worker.cores))
        return "because" if plan.path.name == "b" else ""

    found = sweep.do_all(plans(tmp_path, *"abcd"), never, work, workers=2)
    assert found == {tmp_path / "b": "because"}
    assert sorted(name for name, _ in teams) == [*"abcd"]
    assert len({cores for _, cores in teams}) == 2


def test_what_is_done_or_impossible_is_left_out(tmp_path, capsys):
    some = [*plans(tmp_path, "a", "b"), Plan(tmp_path / "c", {}, 0, "too few")]
    worked = []
    sweep.do_all(some, lambda path: path.name == "a", lambda plan, _: worked.append(plan) or "")
    assert worked == some[1:2]
    assert "1 of 3 runs to do\n" in capsys.readouterr().out


def test_an_error_ends_the_children_of_the_others(tmp_path):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    started = threading.Event()
    ends = []

    def work(plan, worker):
        if plan.path.name == "bad":
            assert started.wait(30)
            raise sweep.Refused(3, "impossible")
        process = worker.start([sys.executable, *SLEEP])
        started.set()
        ends.append(process.wait())
        worker.start([sys.executable, *SLEEP])  # a stopped worker starts nothing
        return ""

    begun = time.monotonic()
    with pytest.raises(sweep.Refused, match="3") as refused:
        sweep.do_all(plans(tmp_path, "long", "bad", "later"), never, work, workers=2)
    assert refused.value.code == 3 and refused.value.reason == "impossible"
    assert ends == [-15] and time.monotonic() - begun < 50
