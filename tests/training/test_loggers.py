"""Who gets the curves of a training: TensorBoard, a user's own, those of docs/train.md."""

import contextlib
import io
import json
import re
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from screens import tiny_config, tiny_images

from rxrx1_jax.config import ConfigError
from rxrx1_jax.training import picture, processes, progress, run_dir, setup, train
from rxrx1_jax.training.run import Run

DOC = (Path(__file__).parents[2] / "docs" / "train.md").read_text()
(EXAMPLE,) = (text for text in re.findall(r"```python\n(.*?)```", DOC, re.S) if "wandb" in text)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """module(text) -> makes `my_loggers` of it."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_loggers", raising=False)
    return (tmp_path / "my_loggers.py").write_text


HEARD: list[tuple] = []  # what happened to `heard`, and in which thread


def heard(fails=""):
    """A logger that remembers; it fails at "start", "step" or "end"."""

    def note(name, *what):
        HEARD.append((name, threading.get_ident(), *what))
        if name == fails:
            raise KeyError(name)

    @contextlib.contextmanager
    def logger(run):
        note("start", run)
        try:
            yield lambda step, values: note("step", step, values)
        except BaseException as error:
            note("end", type(error))
            raise
        note("end", None)

    return logger


@pytest.fixture(autouse=True)
def forget():
    HEARD.clear()


def curves(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_logger_gets_start_values_and_end_and_on_resume_those_from_its_step(
    tmp_path, monkeypatch
):
    images, workdir, at = tiny_images(), tmp_path / "run", []
    config, log_step = tiny_config(train__loggers=f"{__name__}.heard"), progress.Log.train
    with monkeypatch.context() as patch:
        patch.setattr(
            progress.Log, "train", lambda self, step, *rest: at.append(step) or log_step(
                self, step, *rest)
        )  # fmt: skip
        patch.setattr(processes.Notice, "given", lambda self: at[-1:] == [4])
        with pytest.raises(processes.Preempted):
            train.train_and_evaluate(config, workdir, images)
    (name, thread, run), *steps, end = HEARD
    assert (name, run.workdir, run.step, run.steps) == ("start", workdir, 0, 8)
    assert run.settings["optim.batch_size"] == 8 and end[2] == processes.Preempted
    assert {one[1] for one in HEARD} == {thread} != {threading.get_ident()}
    assert not list(workdir.glob("*tfevents*"))  # it is not among the loggers

    HEARD.clear()
    config.train.loggers = f"tensorboard, {__name__}.heard()"  # free to change
    train.train_and_evaluate(config, workdir, images)
    (_, _, run), *steps, end = HEARD
    assert run.step == 4 and end[2] is None
    assert [(step, len(values)) for _, _, step, values in steps] == [
        (line["step"], len(line) - 2) for line in curves(workdir) if line["step"] >= 4
    ]
    assert steps[0][3]["train/loss"] == next(
        line["train_loss"] for line in curves(workdir) if line["step"] == 4
    )
    last = steps[-1][3]
    results = run_dir.read_results(workdir)["accuracy"]["site"]
    assert last["test/accuracy"] == results["all"]
    assert {"train/learning_rate", "time/images_per_second"} <= {n for s in steps for n in s[3]}
    assert list(workdir.glob("*tfevents*"))


@pytest.mark.parametrize("when", ["start", "step", "end"])
def test_a_logger_that_fails_stops_the_run_in_one_line(tmp_path, when):
    config = tiny_config(train__loggers=f"{__name__}.heard(fails='{when}')")
    with pytest.raises(run_dir.RunError, match=f"train.loggers=.*KeyError: '{when}'"):
        train.train_and_evaluate(config, tmp_path / "run", tiny_images())
    assert not (tmp_path / "run" / "results.json").exists()


def test_an_end_that_fails_hides_no_other_error(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(progress.Log, "train", stop)
    config = tiny_config(train__loggers=f"{__name__}.heard(fails='end')")
    with pytest.raises(KeyboardInterrupt):
        train.train_and_evaluate(config, tmp_path / "run", tiny_images())
    assert HEARD[-1][0] == "end"


@pytest.mark.parametrize("text, said", [
    ("wandb", "tensorboard"), ("my_loggers.no", "my_loggers"), ("tensorboard(1)", "tensorboard"),
])  # fmt: skip
def test_a_logger_that_is_none_is_refused_before_the_run_exists(tmp_path, text, said):
    with pytest.raises(ConfigError, match=f"train.loggers.*{said}"):
        train.train_and_evaluate(
            tiny_config(train__loggers=text), tmp_path / "run", tiny_images()
        )
    assert not (tmp_path / "run").exists()


def test_a_run_is_read_without_the_module_of_its_logger(tmp_path, module):
    module("import contextlib\n"
           "quiet = lambda: lambda run: contextlib.nullcontext(print)")  # fmt: skip
    config = tiny_config(train__loggers="my_loggers.quiet", optim__epochs=2)
    train.train_and_evaluate(config, tmp_path / "run", tiny_images())
    del sys.modules["my_loggers"]
    (tmp_path / "my_loggers.py").unlink()
    assert len(Run.open(tmp_path / "run").predict(tiny_images()).x) == 61


def test_tensorboard_has_charts_settings_and_the_picture(tmp_path):
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.layout_pb2 import Layout
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    cell_types = np.where(tiny_images().sites["plate"] % 2, "HUVEC", "A.1 b")
    config, images = tiny_config(optim__epochs=2), tiny_images(cell_type=cell_types)
    train.train_and_evaluate(config, tmp_path / "run", images)
    (file,) = (tmp_path / "run").glob("*tfevents*")
    data, found = file.read_bytes(), {}
    while data:
        size = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + size])
        found |= {(value.tag, event.step): value for value in event.summary.value}
        data = data[16 + size :]
    charts = Layout.FromString(found["custom_scalars__config__", 0].tensor.string_val[0])
    tags = {tag for tag, _ in found}
    by = run_dir.read_results(tmp_path / "run")["accuracy"]["site"]["cell_type"]
    for name, text in (("A_1_b", "A.1 b"), ("HUVEC", "HUVEC")):
        assert found[f"test/accuracy_of_{name}", 5].simple_value == pytest.approx(by[text])
        assert curves(tmp_path / "run")[-1][f"test_accuracy_of_{name}"] == by[text]
    for chart in charts.category[0].chart[:2]:
        shown = {tag for tag in tags if re.match(chart.multiline.tag[0], tag)}
        assert shown == {f"{group}/{chart.title}" for group in ("train", "test")}
    about = found["_hparams_/session_start_info", 0].metadata.plugin_data.content
    settings = HParamsPluginData.FromString(about).session_start_info.hparams
    assert settings["optim.learning_rate"].number_value == config.optim.learning_rate
    assert settings["data.protocol"].string_value == "official"
    shown = np.asarray(Image.open(io.BytesIO(found["input/sites", 0].image.encoded_image_string)))
    np.testing.assert_array_equal(shown, picture.draw_sites(setup.prepare(config, images)))


def whole_batches():
    """An augmentation that works on batches of 8 alone."""

    def augment(keys, batch, info):
        batch["label"].reshape(8)
        return batch

    return augment


def test_without_a_picture_the_training_goes_on(tmp_path, capsys):
    config = tiny_config(data__augmentation=f"{__name__}.whole_batches", optim__epochs=2)
    assert train.train_and_evaluate(config, tmp_path / "run", tiny_images())["step"] == 5
    assert "reshape" in capsys.readouterr().out


def test_the_picture_is_of_normalised_sites_and_their_orientations():
    images = tiny_images()
    ready = setup.prepare(tiny_config(), images)
    shown = picture.draw_sites(ready)
    side, step = 16, 16 + picture.GAP
    assert shown.shape == (4 * step - picture.GAP, 5 * step - picture.GAP, 3)
    cells = shown[np.add.outer(np.arange(4) * step, np.arange(side))][:, :, np.add.outer(
        np.arange(5) * step, np.arange(side))].transpose(0, 2, 1, 3, 4)  # fmt: skip
    symmetries = [np.rot90(one, k, (2, 3)) for one in (cells, cells.swapaxes(2, 3))
                  for k in range(4)]  # fmt: skip
    kinds = set()
    for site in range(4):
        for view in range(1, 5):
            same = [k for k, one in enumerate(symmetries)
                    if (one[site, 0] == cells[site, view]).all()]  # fmt: skip
            assert same, (site, view)
            kinds |= {*same}
    assert len(kinds) > 2
    # Standardising shifts and scales each channel, which a stretch between percentiles undoes.
    plain = picture.draw_sites(setup.prepare(tiny_config(data__normalisation="none"), images))
    assert np.abs(plain.astype(int) - shown).max() <= 3


class Service:
    """What the examples use of wandb and of mlflow, written down."""

    def __init__(self):
        self.calls = []

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.calls.append(("end", kind))

    def __getattr__(self, name):
        def call(*args, **named):
            self.calls.append((name, args, named))
            return self

        return call


def test_the_examples_of_the_page(tmp_path, module, monkeypatch):
    services = {"wandb": Service(), "mlflow": Service()}
    for name, service in services.items():
        monkeypatch.setitem(sys.modules, name, service)
    module(EXAMPLE)
    names = "my_loggers.weights_and_biases, my_loggers.mlflow_runs(uri='file:x')"
    train.train_and_evaluate(
        tiny_config(train__loggers=names, optim__epochs=2), tmp_path / "mine", tiny_images()
    )
    lines = curves(tmp_path / "mine")
    calls = {name: service.calls for name, service in services.items()}
    (started,) = (call[2] for call in calls["wandb"] if call[0] == "init")
    assert started["config"]["optim.epochs"] == 2 and started["mode"] == "offline"
    assert ("set_tracking_uri", ("file:x",), {}) in calls["mlflow"]
    (settings,) = (call[1][0] for call in calls["mlflow"] if call[0] == "log_params")
    assert settings["optim.epochs"] == 2
    for name, log in (("wandb", "log"), ("mlflow", "log_metrics")):
        logged = [(call[2]["step"], call[1][0]) for call in calls[name] if call[0] == log]
        logged = [(step, values) for step, values in logged if "input/sites" not in values]
        assert [step for step, _ in logged] == [line["step"] for line in lines]
        assert logged[-1][1]["test/loss"] == lines[-1]["test_loss"]
        assert calls[name][-1] == ("end", None)
