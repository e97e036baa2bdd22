"""The log: means over intervals, times, a loop that goes on, resuming, the NaN stop."""

import json
import threading
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from rxrx1_jax import metrics


def step_metrics(loss):
    return {
        "loss": jnp.float32(loss),
        "accuracy": jnp.float32(loss / 10),
        "gradient_norm": jnp.float32(1),
        "learning_rate": jnp.float32(0.1),
    }


def open_log(path, step=0, steps=6, every=2):
    return metrics.Log(path, step=step, steps=steps, steps_per_epoch=3, batch_size=8, every=every)


def lines(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def train(log, step, **changes):
    """A step whose batch came at once."""
    log.train(step, {**step_metrics(step), **changes}, 0.0, 0.0)


def test_intervals_are_averaged(tmp_path, capsys):
    with open_log(tmp_path) as log:
        for step in range(1, 5):
            train(log, step)
        log.flush()
        first, second = lines(tmp_path)
    assert (first["step"], second["step"]) == (2, 4) and second["epoch"] == 1.3333
    assert second["train_loss"] == 3.5 and second["train_accuracy"] == pytest.approx(0.35)
    assert "step 4/6" in capsys.readouterr().out
    assert list((tmp_path / "tensorboard").iterdir())


class Pending:
    """A device scalar that is not computed before `ready` is set."""

    def __init__(self, ready):
        self.ready = ready

    def __array__(self, dtype=None, copy=None):
        assert self.ready.wait(60)
        return np.float32(1)


def test_the_loop_goes_on_while_the_device_works(tmp_path):
    ready = threading.Event()
    with open_log(tmp_path, every=1) as log:
        for step in range(1, metrics.STEPS_AHEAD + 1):
            train(log, step, loss=Pending(ready))  # returns: nobody waits for the value
        assert not (tmp_path / "metrics.jsonl").exists()
        # One more would be too far ahead.
        loop = threading.Thread(target=train, args=(log, metrics.STEPS_AHEAD + 1))
        loop.start()
        loop.join(0.2)
        assert loop.is_alive()
        ready.set()
        loop.join()
        log.flush()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]


def test_step_times_and_the_wait_for_data(tmp_path, monkeypatch, capsys):
    now = 0.0
    monkeypatch.setattr(metrics, "time", SimpleNamespace(monotonic=lambda: now))
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
    assert "data wait 25 %" in capsys.readouterr().out


def test_a_single_first_step_has_no_time(tmp_path):
    with open_log(tmp_path, every=1) as log:
        train(log, 1)
        log.flush()
    assert "images_per_second" not in lines(tmp_path)[0]


def test_last_interval_may_be_short(tmp_path):
    with open_log(tmp_path, steps=5, every=3) as log:
        for step in range(1, 6):
            train(log, step)
    assert [(line["step"], line["train_loss"]) for line in lines(tmp_path)] == [(3, 2.0), (5, 4.5)]


def test_resuming_drops_later_and_broken_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2}\n{"step": 4}\n{"step": 6}\n{"ste')
    with open_log(tmp_path, step=4):
        pass
    assert lines(tmp_path) == [{"step": 2}, {"step": 4}]


def test_evaluations_stand_beside_training(tmp_path, capsys):
    with open_log(tmp_path) as log:
        log.evaluation(3, {"test_loss": 1.25, "test_accuracy": 0.5})
    assert lines(tmp_path) == [{"step": 3, "epoch": 1.0, "test_loss": 1.25, "test_accuracy": 0.5}]
    assert "test accuracy 0.500" in capsys.readouterr().out


@pytest.mark.parametrize("every", [2, 50])  # at the end of an interval, and inside one
@pytest.mark.parametrize("field", ["loss", "gradient_norm"])
def test_infinite_values_stop_the_run_before_a_checkpoint(tmp_path, every, field):
    with open_log(tmp_path, every=every) as log:
        train(log, 1)
        train(log, 2, **{field: jnp.float32("nan")})
        with pytest.raises(FloatingPointError, match=r"step 2: .*nan.*new --workdir"):
            log.flush()


def test_infinite_values_stop_the_loop_itself(tmp_path):
    with open_log(tmp_path, steps=1000, every=1000) as log:
        with pytest.raises(FloatingPointError, match="step 1: "):
            for step in range(1, 2 * metrics.STEPS_AHEAD):
                train(log, step, loss=jnp.float32("inf"))


def test_a_dead_tensorboard_thread_does_not_hold_the_run(tmp_path, monkeypatch):
    """tensorboardX drops its thread on a full disk and then nobody empties its queue."""
    thread = "tensorboardX.event_file_writer._EventLoggerThread.run"
    monkeypatch.setattr(thread, lambda self: None)
    log = open_log(tmp_path, steps=100)

    def evaluate():
        for step in range(1, 30):
            log.evaluation(step, {"test_loss": 1.0})

    loop = threading.Thread(target=evaluate, daemon=True)
    loop.start()
    loop.join(20)
    assert not loop.is_alive()
    with log:
        pass
    assert len(lines(tmp_path)) == 29


def test_a_failing_write_stops_the_loop(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(metrics.Log, "_write", full)
    with open_log(tmp_path, steps=1000, every=1) as log:
        with pytest.raises(OSError, match="No space left"):
            for step in range(1, 1000):
                train(log, step)


def test_parameter_table_counts():
    table = metrics.parameter_table({"a": {"k": jnp.zeros((2, 3))}, "b": jnp.zeros(1000)})
    assert [line.split() for line in table.splitlines()] == [
        ["a", "6"], ["b", "1,000"], ["total", "1,006"]
    ]  # fmt: skip
