"""The log: means over intervals, times, a loop that goes on, resuming, the NaN stop."""

import itertools
import json
import re
import threading
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.kill_training import TIMES
from rxrx1_jax.training import progress, run_dir
from rxrx1_jax.training.loggers import Start


def step_metrics(loss, gradient_norm=1):
    return jnp.array([[loss, loss / 10, gradient_norm, 0.1]])


def open_log(path, step=0, steps=6, every=2, recent=(), evaluations=()):
    picture = np.zeros((2, 3, 3), np.uint8)
    start = Start(path, {"train.loggers": "tensorboard"}, step, steps, lambda: picture)
    return progress.Log(
        start, steps_per_epoch=3, batch_size=8, every=every, recent=recent, evaluations=evaluations
    )


def lines(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def train(log, step, metrics=None):
    """A step whose batch came at once."""
    log.train(step, step_metrics(step) if metrics is None else metrics, 0.0, 0.0)


def test_intervals_are_averaged(tmp_path, capsys):
    with open_log(tmp_path) as log:
        for step in range(1, 5):
            train(log, step)
        log.flush()
        first, second = lines(tmp_path)
    assert (first["step"], second["step"]) == (2, 4) and second["epoch"] == 1.3333
    assert second["train_loss"] == 3.5 and second["train_accuracy"] == pytest.approx(0.35)
    assert "step 4/6" in capsys.readouterr().out
    assert list(tmp_path.glob("*tfevents*"))


class Pending:
    """Metrics that are not computed before `ready` is set."""

    def __init__(self, ready):
        self.ready = ready

    def __array__(self, dtype=None, copy=None):
        assert self.ready.wait(60)
        return np.ones((1, 4), np.float32)


def test_the_loop_goes_on_while_the_device_works(tmp_path):
    ready = threading.Event()
    with open_log(tmp_path, every=1) as log:
        for step in range(1, progress.STEPS_AHEAD + 1):
            train(log, step, Pending(ready))  # returns: nobody waits for the value
        assert not (tmp_path / "metrics.jsonl").exists()
        # One more would be too far ahead.
        loop = threading.Thread(target=train, args=(log, progress.STEPS_AHEAD + 1))
        loop.start()
        loop.join(0.2)
        assert loop.is_alive()
        ready.set()
        loop.join()
        log.flush()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]


def test_step_times_and_the_wait_for_data(tmp_path, monkeypatch, capsys):
    now = 0.0
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now))
    with open_log(tmp_path, steps=8, every=4) as log:
        for step, (asked, got, done) in enumerate([
            (0, 1, 100),  # compiles: no step time
            (90, 101, 103),  # the device had nothing to do from 100 to 101
            (103, 103.5, 104),
            (103, 103.2, 106),  # the batch came while the device worked
            (106, 106, 107),
        ], 1):  # fmt: skip
            now = done
            log.train(step, step_metrics(1), asked, got)
            log.flush()
        now = 200.0
        log.evaluation(5, {"test_loss": 1.0})
        for step, done in ((6, 202), (7, 203), (8, 204)):
            now = done
            log.train(step, step_metrics(1), done - 1, done - 0.5)
            log.flush()
    first, _, second = lines(tmp_path)
    assert first["images_per_second"] == 3 * 8 / 6
    assert first["step_seconds_median"] == 2
    assert first["step_seconds_95th_percentile"] == pytest.approx(np.percentile([3, 1, 2], 95))
    assert first["data_wait_share"] == pytest.approx(1.5 / 6)
    assert second["images_per_second"] == pytest.approx(4 * 8 / 5)  # the evaluation is left out
    assert second["data_wait_share"] == pytest.approx(1.5 / 5)
    assert "wait 25 %" in capsys.readouterr().out


def test_calls_of_several_steps_are_logged_step_by_step(tmp_path):
    for name, calls in (("one", [1] * 7), ("several", [2, 3, 1, 1])):
        (tmp_path / name).mkdir()
        with open_log(tmp_path / name, steps=7) as log:
            last = 0
            for count in calls:
                rows = [step_metrics(step) for step in range(last + 1, last + count + 1)]
                last += count
                train(log, last, jnp.concatenate(rows))
            log.flush()
            recent = log.recent()
        assert [round(one["loss"]) for one in recent] == [6, 7]
    one, several = (
        [(line["step"], line["train_loss"]) for line in lines(tmp_path / name)]
        for name in ("one", "several")
    )
    assert one == several == [(2, 1.5), (4, 3.5), (6, 5.5), (7, 7.0)]


def test_a_single_first_step_has_no_time(tmp_path):
    with open_log(tmp_path, every=1) as log:
        train(log, 1)
        log.flush()
    assert "images_per_second" not in lines(tmp_path)[0]


def test_resuming_drops_what_comes_again_and_broken_lines(tmp_path):
    """A step's own line stands before its checkpoint, the line of its evaluation after it."""
    kept = [{"step": 2, "test_loss": 1}, {"step": 4, "epoch": 2.0, "train_loss": 3}]
    again = [{"step": 4, "test_loss": 1}, {"step": 6, "train_loss": 1}]
    text = "\n".join(map(json.dumps, [*kept, *again]))
    (tmp_path / "metrics.jsonl").write_text(text + '\n{"ste')
    with open_log(tmp_path, step=4):
        pass
    assert lines(tmp_path) == kept


@pytest.mark.parametrize("every", [3, 4, 100])
@pytest.mark.parametrize("stop", [1, 4, 6, 8])
def test_an_interruption_leaves_no_trace(tmp_path, stop, every):
    """Steps 1 to `stop`, a few that are lost, and again from `stop` on: as if done at once."""
    for name, parts in (("once", [(0, 10)]), ("twice", [(0, stop + 2), (stop, 10)])):
        (tmp_path / name).mkdir()
        recent = []
        for start, end in parts:
            with open_log(tmp_path / name, start, 10, every, recent) as log:
                for step in range(start + 1, end + 1):
                    train(log, step, step_metrics(1 / step))
                    if step == stop:
                        log.flush()
                        recent = json.loads(json.dumps(log.recent()))
    once, twice = (
        [(line["step"], line["train_loss"]) for line in lines(tmp_path / name)]
        for name in ("once", "twice")
    )
    assert once == twice and once[-1][0] == 10


def points(folder):
    """(tag, step) of the points that TensorBoard shows, which forgets on a restart what it is told.

    TFRecord and tensorboard/compat/proto/event.proto, read without TensorBoard.
    """
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    shown = []
    for path in sorted(folder.glob("*tfevents*"), key=lambda path: path.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]
            if event.session_log.status == SessionLog.START:
                shown = [(tag, step) for tag, step in shown if step < event.step]
            shown += [(value.tag, event.step) for value in event.summary.value]
    return [(tag, step) for tag, step in shown if step]  # the others describe the run


def written(folder):
    """(tag, step) of what metrics.jsonl has."""
    groups = {name: f"train/{name}" for name in ("learning_rate", "gradient_norm")}
    groups |= {name: f"time/{name}" for name in TIMES}
    return {
        (groups.get(name) or re.sub("^(train|test)_", r"\1/", name), line["step"])
        for line in lines(folder) for name in line if name not in ("step", "epoch")
    }  # fmt: skip


def test_tensorboard_shows_each_step_once(tmp_path, monkeypatch):
    clock = iter(range(10**9, 10**9 + 1000))
    monkeypatch.setattr("time.time", lambda: next(clock))
    for start, end in ((0, 6), (4, 6)):  # a checkpoint at step 4, which the first one outlived
        with open_log(tmp_path, start) as log:
            for step in range(start + 1, end + 1):
                train(log, step)
                log.flush()
                if step == 4:
                    log.evaluation(4, {"test_loss": 1.0})
            if start:
                log.evaluation(4, {"test_loss": 1.0})
    shown = points(tmp_path)
    assert len(shown) == len(set(shown))
    assert set(shown) == written(tmp_path)


@pytest.mark.parametrize("every", [2, 50])  # at the end of an interval, and inside one
@pytest.mark.parametrize("field", ["loss", "gradient_norm"])
def test_infinite_values_stop_the_run_before_a_checkpoint(tmp_path, every, field):
    with open_log(tmp_path, every=every) as log:
        train(log, 1)
        train(log, 2, step_metrics(**{"loss": 1, field: np.nan}))
        with pytest.raises(FloatingPointError, match=r"step 2: .*nan.*new --workdir"):
            log.flush()


def test_infinite_values_stop_the_loop_itself(tmp_path):
    with open_log(tmp_path, steps=1000, every=1000) as log:
        with pytest.raises(FloatingPointError, match="step 1: "):
            # One call may slip in between the end of a step and the look at its values.
            for step in range(1, 1 + progress.STEPS_AHEAD + 2):
                train(log, step, step_metrics(np.inf))


def test_a_clock_that_runs_backwards_holds_nothing_up(tmp_path, monkeypatch, capsys):
    clock = itertools.count(10**9, -(10**6))
    monkeypatch.setattr("time.time", lambda: next(clock))
    with open_log(tmp_path) as log:
        for step in range(1, 7):
            train(log, step)
        log.flush()
        log.evaluation(6, {"test_loss": 1.25, "test_accuracy": 0.5})
    assert lines(tmp_path)[-1] == {"step": 6, "epoch": 2.0, "test_loss": 1.25, "test_accuracy": 0.5}
    assert ("test/loss", 6) in points(tmp_path)
    assert "test accuracy 50.0 %" in capsys.readouterr().out


def test_a_killed_log_has_drawn_what_it_has_written(tmp_path):
    log = open_log(tmp_path).__enter__()
    for step in range(1, 5):
        train(log, step)
    log.flush()  # nothing ends the log
    assert set(points(tmp_path)) == written(tmp_path)


@pytest.mark.parametrize(
    "line", ["5", "[]", '{"train_loss": 1}', '{"step": "2"}', '{"step": 2, "test_loss": "x"}', "x}",
             "\xff\0}"],
)  # fmt: skip
@pytest.mark.parametrize("last", [True, False])
def test_lines_that_are_not_a_runs_are_named(tmp_path, line, last):
    good = '{"step": 2, "train_loss": 1.0}'
    text = "\n".join([good, line, *([] if last else [good])])
    (tmp_path / "metrics.jsonl").write_bytes(text.encode("latin-1"))
    with pytest.raises(run_dir.RunError, match="metrics.jsonl:2"):
        open_log(tmp_path, step=4)


def test_the_time_left_counts_evaluations_and_no_stall(tmp_path, monkeypatch, capsys):
    now = 0.0
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now))
    with open_log(tmp_path, steps=20, every=4, evaluations=(4, 12, 20)) as log:
        for step, done in enumerate((100, 102, 104, 1104, 1106, 1108, 1110, 1112), 1):
            now = done
            log.train(step, step_metrics(1), done, done)
            log.flush()
            if step == 4:
                now += 30.0
                log.evaluation(4, {"test_loss": 1.0})
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("step 1 after 1")
    assert "step 2 s (" in said[1] and "0:32 left" in said[1]  # 16 steps; no evaluation known
    assert "1:24 left" in said[3]  # 12 steps of 2 s, two evaluations of 30 s


def test_a_failing_write_stops_the_loop(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(progress.Log, "_publish", full)
    with open_log(tmp_path, steps=1000, every=1) as log:
        with pytest.raises(OSError, match="No space left"):
            for step in range(1, 1000):
                train(log, step)
