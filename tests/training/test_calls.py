"""Several steps in one call of the program: the same bits wherever the calls are cut."""

import json

import jax
import numpy as np
import pytest
from finished_runs import edited
from screens import params, tiny_config, tiny_images

from rxrx1_jax.data import normalisation
from rxrx1_jax.training import calls, diverged, processes, progress, train
from rxrx1_jax.training.run import Run

TIMES = ("images_per_second", "step_seconds_", "data_wait_share")


@pytest.fixture(scope="module")
def images():
    return tiny_images()


def trained(images, workdir, **changes):
    """(parameters, lines of metrics.jsonl without times) of a run; epochs are no whole calls."""
    config = tiny_config(
        optim__epochs=6, train__log_every=5, train__checkpoint_every=2, train__eval_every=3,
        **changes,
    )  # fmt: skip
    train.train_and_evaluate(config, workdir, images)
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return params(workdir), [
        {name: x for name, x in line.items() if not name.startswith(TIMES)} for line in lines
    ]


@pytest.fixture(scope="module")
def by_fours(images, tmp_path_factory):
    return trained(images, tmp_path_factory.mktemp("calls") / "4", train__steps_per_call=4)


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one[0], other[0])
    assert one[1] == other[1]


@pytest.mark.parametrize("changes", [
    {"train__steps_per_call": 7}, {"train__steps_per_call": 3, "data__cache": "device"},
    {"train__steps_per_call": 64, "data__cache": "none"},
])  # fmt: skip
def test_the_length_of_a_call_changes_no_bit(by_fours, images, tmp_path, changes):
    assert_same(trained(images, tmp_path / "run", **changes), by_fours)


def test_one_step_per_call_is_the_same_within_rounding(by_fours, images, tmp_path):
    one = trained(images, tmp_path / "run", train__steps_per_call=1)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), one[0], by_fours[0])
    for line, other in zip(one[1], by_fours[1], strict=True):
        assert line == pytest.approx(other, abs=1e-3)


def interrupted(images, workdir) -> int:
    """Told to end in its second call; the step that it saved."""
    asked, given = [], processes.Notice.given

    def at_the_third(self):  # the first question is before the training
        asked.append(None)
        return len(asked) == 3 or given(self)

    with pytest.MonkeyPatch.context() as told:
        told.setattr(processes.Notice, "given", at_the_third)
        with pytest.raises(processes.Preempted) as error:
            trained(images, workdir, train__steps_per_call=4)
    step = int(Run.open(workdir).load().step)
    assert step > 1 and str(step) in str(error.value)
    return step


def test_a_notice_within_a_call_is_obeyed_at_its_end(by_fours, images, tmp_path):
    assert interrupted(images, tmp_path / "run") == 5  # the first checkpoint ends the second call
    assert_same(trained(images, tmp_path / "run", train__steps_per_call=5), by_fours)


def test_a_step_that_is_not_finite_within_a_call_is_named(images, tmp_path, monkeypatch):
    config = tiny_config(optim__epochs=6, train__steps_per_call=8)
    bad = tiny_images()
    rows = train.prepare(config, bad).order(2)[0]  # of step 3
    row = rows[3]
    bad.sites["control_mean"][row] = np.inf
    columns = lambda normalise, images, rows, training: (  # noqa: E731
        images.sites["control_mean"][rows], images.sites["control_std"][rows])  # fmt: skip
    monkeypatch.setattr(normalisation, "statistics", columns)
    with pytest.raises(diverged.Diverged) as error:
        train.train_and_evaluate(config, tmp_path / "run", bad)
    assert error.value.step == 3
    found = json.loads((tmp_path / "run" / "diverged.json").read_text())
    assert found["step"] == 3 and found["not_finite"] == [str(bad.sites["site_id"][row])]
    assert found["site_ids"] == bad.sites["site_id"][rows].tolist()


def test_calls_are_as_long_as_the_time_of_a_step_asks(by_fours, images, tmp_path, monkeypatch):
    """As on an accelerator that keeps the images: room in the program, the first calls timed."""
    lengths, seen = [], calls._some
    monkeypatch.setattr(calls, "room", lambda setup: calls.ROOM)
    monkeypatch.setattr(progress.Log, "step_seconds", lambda self: calls.SECONDS / 3.5)

    def counted(*arguments):
        last = arguments[1]
        for step, draw in seen(*arguments):
            lengths.append(step - last)
            last = step
            yield step, draw

    monkeypatch.setattr(calls, "_some", counted)
    assert_same(trained(images, tmp_path / "run", data__cache="device"), by_fours)
    assert lengths[: calls.TRIAL] == [1] * calls.TRIAL and max(lengths) == 3
    planned = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert (planned["steps_per_call"], planned["cache"]) == (3, "device")


def test_a_call_sends_once_and_fetches_once(images, tmp_path, monkeypatch):
    put, fetch, begin = jax.device_put, np.asarray, progress.Log.train
    sent, fetched, at_calls = [], [], []

    def fetching(x, *given, **options):
        if isinstance(x, jax.Array) and x.shape == (4, 4):  # the metrics of a call
            fetched.append(x)
        return fetch(x, *given, **options)

    monkeypatch.setattr(jax, "device_put", lambda *given: sent.append(given) or put(*given))
    monkeypatch.setattr(np, "asarray", fetching)
    monkeypatch.setattr(
        progress.Log, "train", lambda *given: at_calls.append(len(sent)) or begin(*given)
    )
    trained(images, tmp_path / "run", train__steps_per_call=4)
    assert len(fetched) == len(at_calls) == 6  # of 4, 1, 3, 2, 4 and 2 steps
    assert at_calls[1] - at_calls[0] == 1  # nothing else is sent between the first two


@pytest.mark.parametrize("steps", [1, 3, 6])
def test_a_short_training_is_timed_as_far_as_it_goes(images, tmp_path, monkeypatch, steps):
    monkeypatch.setattr(calls, "room", lambda setup: calls.ROOM)
    config = tiny_config(data__cache="device", train__max_steps=steps)
    assert train.train_and_evaluate(config, tmp_path / "run", images)["step"] == steps


def test_a_resume_in_another_form_of_the_program_or_on_other_cores_says_so(
    images, tmp_path, capsys
):
    interrupted(images, tmp_path / "run")
    with edited(tmp_path / "run" / "config.json") as config:
        config["made_with"]["cores"] = 4711
    trained(images, tmp_path / "run", train__steps_per_call=1, data__cache="none")
    said = capsys.readouterr().err
    assert "looped False" in said and "4711" in said


@pytest.mark.devices
def test_pmap_runs_several_steps_per_call(images, tmp_path):
    several = trained(images, tmp_path / "4", train__parallelism="pmap", train__steps_per_call=4)
    one = trained(images, tmp_path / "1", train__parallelism="pmap", train__steps_per_call=1)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), several[0], one[0])
