"""The log: means over intervals, late fetching, dropping lines on resume, the NaN stop."""

import json

import jax.numpy as jnp
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


def test_intervals_are_averaged_and_written_one_interval_late(tmp_path, capsys):
    log = open_log(tmp_path)
    for step in (1, 2):
        log.train(step, step_metrics(step))
    assert not (tmp_path / "metrics.jsonl").exists()  # nothing is fetched while work is queued
    for step in (3, 4):
        log.train(step, step_metrics(step))
    (line,) = lines(tmp_path)
    assert line["step"] == 2 and line["epoch"] == pytest.approx(2 / 3, abs=1e-4)
    assert line["train_loss"] == 1.5 and line["train_accuracy"] == pytest.approx(0.15)
    log.close()
    assert [line["step"] for line in lines(tmp_path)] == [2, 4]
    assert "step 4/6" in capsys.readouterr().out


def test_last_interval_may_be_short(tmp_path):
    log = open_log(tmp_path, steps=5, every=3)
    for step in range(1, 6):
        log.train(step, step_metrics(step))
    log.close()
    assert [(line["step"], line["train_loss"]) for line in lines(tmp_path)] == [(3, 2.0), (5, 4.5)]


def test_resuming_drops_later_and_broken_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2}\n{"step": 4}\n{"step": 6}\n{"ste')
    open_log(tmp_path, step=4).close()
    assert lines(tmp_path) == [{"step": 2}, {"step": 4}]


def test_evaluations_stand_beside_training(tmp_path, capsys):
    log = open_log(tmp_path)
    log.evaluation(3, {"test_loss": 1.25, "test_accuracy": 0.5})
    log.close()
    assert lines(tmp_path) == [{"step": 3, "epoch": 1.0, "test_loss": 1.25, "test_accuracy": 0.5}]
    assert "test accuracy 0.500" in capsys.readouterr().out


@pytest.mark.parametrize("every", [2, 50])  # at the end of an interval, and inside one
@pytest.mark.parametrize("field", ["loss", "gradient_norm"])
def test_infinite_values_stop_the_run_before_a_checkpoint(tmp_path, every, field):
    log = open_log(tmp_path, every=every)
    log.train(1, step_metrics(1))
    log.train(2, {**step_metrics(2), field: jnp.float32("nan")})
    with pytest.raises(FloatingPointError, match=r"step 2: .*nan.*new --workdir"):
        log.flush()


def test_parameter_table_counts():
    table = metrics.parameter_table({"a": {"k": jnp.zeros((2, 3))}, "b": jnp.zeros(1000)})
    assert [line.split() for line in table.splitlines()] == [
        ["a", "6"], ["b", "1,000"], ["total", "1,006"]
    ]  # fmt: skip
