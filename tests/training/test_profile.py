"""The trace of a few steps."""

import gzip
import json

import pytest
from screens import tiny_config, tiny_images

from rxrx1_jax.training import train


@pytest.mark.parametrize(
    "steps, per_call, traced",
    [((3, 4), 1, {3, 4}), ((7, 100), 1, {7, 8}), ((3, 6), 8, {3, 5, 6})],  # epochs end after 3, 5
)
def test_a_trace_has_its_steps_and_the_log_says_where_it_is(
    tmp_path, capsys, steps, per_call, traced
):
    config = tiny_config(train__profile=steps, train__steps_per_call=per_call)
    train.train_and_evaluate(config, tmp_path / "run", tiny_images())
    (file,) = (tmp_path / "run" / "profile").rglob("*.trace.json.gz")
    events = json.loads(gzip.open(file).read())["traceEvents"]
    found = {int(event["args"]["step_num"]) for event in events if event.get("name") == "train"}
    assert found == traced
    assert str(file) in capsys.readouterr().out
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["train"]["profile"] == [*steps]
    config.train.profile = (0, 0)  # free to change: the complete run is left as it is
    assert train.train_and_evaluate(config, tmp_path / "run", tiny_images())["step"] == 8
