"""Runs that begin with the weights of a file or of another run (model.init)."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file
from screens import params, tiny_config, tiny_images

from rxrx1_jax.config import ConfigError
from rxrx1_jax.model import weights
from rxrx1_jax.training import initial, run_dir, setup, train
from rxrx1_jax.training.fingerprints import describe_data
from rxrx1_jax.training.run import Run

STILL = {"optim__learning_rate": 1e-30, "train__max_steps": 2}  # a training that changes nothing


@pytest.fixture(scope="module")
def images():
    return tiny_images()


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    """A finished run, and the file with the weights that it evaluates with."""
    path = tmp_path_factory.mktemp("trained") / "run"
    train.train_and_evaluate(tiny_config(), path, images)
    file = path.with_name("run.safetensors")
    save_file(averages(path), file)
    return path, file


def averages(path):
    _, _, ema_params, ema_stats = params(path)
    return weights.to_torch({"params": ema_params, "batch_stats": ema_stats})


def start(images, **changes):
    """The state that a run of these settings begins with, and what it says."""
    ready = setup.prepare(tiny_config(**changes), images)
    data = describe_data(ready.images, ready.split, ready.vocabulary.classes)
    found = initial.find(ready, data)
    return ready, found.state(ready), found.about


def arrays(state, of=""):
    variables = {name: getattr(state, f"{of}{name}") for name in ("params", "batch_stats")}
    return weights.to_torch(variables)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("changes", [{}, {"optim__ema_decay": 0.0}])
def test_a_run_begins_with_the_weights_of_a_run_or_a_file(images, trained, number, changes):
    ready, state, about = start(images, model__init=str(trained[number]), **changes)
    expected = averages(trained[0])
    assert_same(arrays(state), expected)
    assert "drawn" not in about and str(trained[number]) in about
    if not changes:
        assert_same(arrays(state, "ema_"), expected)
    # All else is as at the start of a training.
    assert state.step == 0
    fresh = ready.spec.tx.init(state.params)
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, fresh)
    places = {x.sharding for x in jax.tree.leaves(state)}
    assert places == {ready.devices.copied}


@pytest.mark.parametrize("head", ["cosine", "cell_type_film"])
def test_another_head_is_drawn(images, trained, head):
    """The first has a part of what the file has, the second more."""
    for init in trained:
        ready, state, about = start(images, model__init=str(init), model__head=head)
        found, drawn, given = arrays(state), arrays(ready.init()), averages(trained[0])
        new = found.keys() - {n for n in given if not n.startswith("fc.")}
        assert "fc.weight" in new and all(name in about for name in new)
        for name, value in found.items():
            np.testing.assert_array_equal(value, (drawn if name in new else given)[name], name)


def test_the_head_of_a_file_may_have_layers_of_its_own(images, tmp_path):
    winner = tiny_config(model__head="linear_and_cosine(neck='two_layers')")
    given = arrays(setup.prepare(winner, images).init())
    save_file(given, tmp_path / "w.safetensors")
    _, state, about = start(images, model__init=str(tmp_path / "w.safetensors"))
    assert "drawn: fc.bias, fc.weight" in about
    for name, value in arrays(state).items():
        assert name.startswith("fc.") or np.array_equal(value, given[name]), name


def test_a_head_with_the_same_shapes_is_drawn_where_its_classes_are_others(images, trained):
    shifted = np.where(images.sites["sirna_id"] < 0, -1, images.sites["sirna_id"] + 1)
    others = tiny_images(sirna_id=shifted.astype(np.int32))
    _, state, about = start(others, model__init=str(trained[0]))
    assert "drawn: fc.bias, fc.weight" in about
    assert not np.array_equal(arrays(state)["fc.weight"], averages(trained[0])["fc.weight"])
    _, state, about = start(images, model__init=str(trained[0]))
    assert "drawn" not in about


def test_the_file_is_a_part_of_the_run(images, trained, tmp_path):
    file = tmp_path / "weights.safetensors"
    file.write_bytes(trained[1].read_bytes())
    config = tiny_config(model__init=str(file), **STILL)
    train.train_and_evaluate(config, tmp_path / "run", images)
    last = Run.open(tmp_path / "run").load()
    assert_same(arrays(last), averages(trained[0]) | {
        name: value for name, value in arrays(last).items() if ".running_" in name})  # fmt: skip
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["model"]["init"] == str(file) and saved["dataset"]["external"] is True
    assert len(saved["dataset"]["init"]) == 64
    train.train_and_evaluate(config, tmp_path / "run", images)  # complete
    arrays_of_file = weights.read(file)
    save_file({n: 2 * x for n, x in arrays_of_file.items()}, file)
    with pytest.raises(run_dir.RunError, match="dataset.init="):
        train.train_and_evaluate(config, tmp_path / "run", images)
    with pytest.raises(run_dir.RunError, match="model.init="):
        train.train_and_evaluate(tiny_config(**STILL), tmp_path / "run", images)
    # A run that comes from it comes from a file, too, and still reads when the file is gone.
    file.unlink()
    assert len(Run.open(tmp_path / "run").predict(images).x) == len(images)
    child = tiny_config(model__init=str(tmp_path / "run"), **STILL)
    train.train_and_evaluate(child, tmp_path / "child", images)
    assert Run.open(tmp_path / "child").fingerprint["external"] is True


def test_a_run_that_was_trained_on_what_is_scored_is_refused(images, trained, tmp_path):
    dataset = images.sites["dataset"]
    other = np.where(images.sites["experiment"] == "U2OS-01", "test", dataset)
    swapped = np.where(dataset == "test", "train", np.where(dataset == "train", "test", dataset))
    for columns in (other, swapped):
        with pytest.raises(run_dir.RunError, match="was trained on .*data.fold"):
            start(tiny_images(dataset=columns), model__init=str(trained[0]))
    # Through a run between them, too.
    between = tiny_config(model__init=str(trained[0]), **STILL)
    train.train_and_evaluate(between, tmp_path / "between", images)
    (tmp_path / "between" / "split.csv").write_text("site_id,role\n")  # as if of other sites
    with pytest.raises(run_dir.RunError, match=f"{trained[0]} was trained on"):
        start(tiny_images(dataset=swapped), model__init=str(tmp_path / "between"))
    # Sites of the same names in another screen are others.
    screen = tiny_images(1, dataset=swapped)
    screen.about["source"] = "synthetic"
    start(screen, model__init=str(trained[0]))


@pytest.mark.parametrize(
    "init, changes, said",
    [
        ("nowhere.safetensors", {}, "no such file"),
        ("nowhere", {}, "no run"),
        ("run/config.json", {}, ".safetensors or .pth"),
        ("run", {"model__width": 12}, "bn1.bias"),
        ("run.safetensors", {"model__width": 12}, "bn1.bias"),
        ("run", {"model__name": "resnet18"}, "model.name"),
        ("run.safetensors", {"model__name": "resnet18"}, "block1"),
        ("empty", {}, "no run"),
    ],
)
def test_what_cannot_be_begun_with_is_refused_before_work(
    images, trained, tmp_path, init, changes, said
):
    (trained[0].parent / "empty").mkdir(exist_ok=True)
    config = tiny_config(model__init=str(trained[0].parent / init), **changes)
    with pytest.raises(run_dir.RunError, match=said) as error:
        train.train_and_evaluate(config, tmp_path / "run", images)
    assert "model.init" in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_an_unfinished_run_is_no_start(images, trained, tmp_path):
    part = tmp_path / "part"
    part.mkdir()
    for name in ("config.json", "checkpoints"):
        (part / name).symlink_to(trained[0] / name)
    with pytest.raises(run_dir.RunError, match="rxrx1_jax.export"):
        start(images, model__init=str(part))


def test_a_url_is_refused():
    with pytest.raises(ConfigError, match="model.init"):
        tiny_config(model__init="gs://bucket/weights.safetensors")
