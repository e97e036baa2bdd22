"""What a build asks of its machine: threads, paths, one build at a time."""

import multiprocessing
import os
from pathlib import Path

import pytest

from tfds_builder.rxrx1 import machine
from tfds_builder.rxrx1.machine import build_lock, usable_cpus


def test_map_in_order_is_bounded_stops_early_and_passes_errors_on():
    begun = []

    def work(i):
        begun.append(i)
        return i * i if i != 50 else 1 / 0

    results = machine.map_in_order(work, range(1000))
    first = [next(results) for _ in range(20)]
    assert first == [i * i for i in range(20)]
    assert len(begun) <= 20 + 2 * usable_cpus() + 1
    results.close()
    assert len(begun) < 100
    results = machine.map_in_order(work, range(100))
    assert [next(results) for _ in range(50)] == [i * i for i in range(50)]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_paths_are_expanded_once(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for expand in (machine.expand, machine.local):
        assert os.fspath(expand("~/a~b[1]")) == f"{tmp_path}/a~b[1]"
        assert os.fspath(expand(Path("a"))) == "a"
    assert os.fspath(machine.expand("gs://bucket/~/a")) == "gs://bucket/~/a"


def hold_lock(folder: Path, pipe) -> None:
    with build_lock(folder, "1.0.0"):
        pipe.send("held")
        pipe.recv()


@pytest.mark.parametrize("killed", [True, False])
def test_second_build_stops_at_once(tmp_path, killed):
    context, folder = multiprocessing.get_context("forkserver"), tmp_path / "rxrx1"
    pipe, other = context.Pipe()
    child = context.Process(target=hold_lock, args=(folder, other))
    child.start()
    assert pipe.recv() == "held"
    with pytest.raises(RuntimeError, match=rf"process {child.pid} on "):
        with build_lock(folder, "1.0.0"):
            pass
    with build_lock(folder, "2.0.0"):
        pass
    child.kill() if killed else pipe.send("release")
    child.join()
    with build_lock(folder, "1.0.0"):
        pass
    assert os.listdir(folder) == []
