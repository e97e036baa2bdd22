"""Exported runs: PyTorch, a process with JAX alone and the model card say what the run says."""

import json
import shutil
import sys

import jax
import numpy as np
import pytest
import torch
from children import PROGRAMS, Child, end
from commands import run_command
from finished_runs import change_settings, edited
from safetensors.numpy import load_file
from torch_models import torchvision

import rxrx1_jax as rx
from rxrx1_jax.report import card
from rxrx1_jax.training import program
from rxrx1_jax.training.run import Run


def trained(path, **changes):
    config = rx.config.read("smoke:train.max_steps=8,train.eval_every=0,optim.ema_decay=0.5")
    rx.config.change(config, {name.replace("__", "."): x for name, x in changes.items()})
    rx.train(config, path)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Its network reads the cell type, and sees the middle of an image alone."""
    path = tmp_path_factory.mktemp("exported") / "run"
    return trained(path, data__crop=24, model__head="cell_type_film")


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """{format: folder}."""
    out = tmp_path_factory.mktemp("out")
    for kind, file in (("safetensors", "weights.safetensors"), ("stablehlo", "network.jax_export")):
        ended = run_command("export", run, f"--format={kind}", f"--out={out / kind}")
        assert ended.code == 0, ended.err
        assert {path.name for path in (out / kind).iterdir()} == {
            file, "README.md", "vocabulary.json"}  # fmt: skip
    return {path.name: path for path in out.iterdir()}


def arguments(opened, rows):
    """What a program is called with for images of the run."""
    images = opened.images
    sites = images.sites[rows]
    cell_type = opened.vocabulary.codes("cell_type", sites["cell_type"])
    planes = np.stack([images[row] for row in rows])
    return planes, sites["control_mean"], sites["control_std"], cell_type


def assert_predicted(opened, rows, log_probs, embedding):
    expected = opened.predict(opened.images, rows)
    np.testing.assert_allclose(log_probs, expected.log_probs, rtol=0, atol=1e-5)
    np.testing.assert_allclose(embedding, expected.x, rtol=0, atol=1e-5)


def code_of(folder):
    return (folder / "README.md").read_text().partition("```python\n")[2].partition("```")[0]


def test_a_program_predicts_as_its_run_where_there_is_jax_alone(run, exported, tmp_path):
    opened, rows = Run.open(run), np.arange(7)
    np.savez(tmp_path / "given.npz", *arguments(opened, rows))
    file = exported["stablehlo"] / "network.jax_export"
    child = Child([sys.executable, PROGRAMS / "call_exported.py", file, tmp_path])
    ((code, out, err),) = end([child])
    assert code == 0, err
    assert out.split() == ["cpu", "cuda", "tpu"]
    found = np.load(tmp_path / "found.npz")
    for count in (7, 3):
        outputs = (found[f"{name}{count}"] for name in ("log_probs", "embedding"))
        assert_predicted(opened, rows[:count], *outputs)


def test_a_program_holds_the_operations_of_an_evaluation_alone(exported):
    data = (exported["stablehlo"] / "network.jax_export").read_bytes()
    text = jax.export.deserialize(bytearray(data)).mlir_module()
    assert "threefry" not in text  # no augmentation
    calls = [line for line in text.splitlines() if "stablehlo.custom_call" in line]
    assert all("@shape_assertion" in line for line in calls)


@pytest.mark.parametrize("normalisation", ["site", "none"])
def test_the_normalisation_is_in_the_program(run, tmp_path, normalisation):
    copy = shutil.copytree(run, tmp_path / "run")
    change_settings(copy, data__normalisation=normalisation)
    opened, rows = Run.open(copy), np.arange(4)
    planes, mean, std, cell_type = arguments(opened, rows)
    if normalisation == "site":  # its own pixels, whatever is given
        mean, std = np.full_like(mean, np.nan), np.full_like(std, np.nan)
    else:
        mean, std = np.zeros_like(mean), np.full_like(std, 255)
    made = program.make(opened.setup, opened.state)
    assert_predicted(opened, rows, *made.call(planes, mean, std, cell_type))


def test_weights_are_the_averages_in_the_order_of_pytorch(run, exported):
    found = load_file(exported["safetensors"] / "weights.safetensors")
    state = Run.open(run).load()
    params, stats = state.ema_params, state.ema_batch_stats
    kernel = np.einsum("hwio->oihw", params["block1"]["downsample_conv"]["kernel"])
    for name, value in {
        "block1.downsample.0.weight": kernel,
        "block1.downsample.1.running_var": stats["block1"]["downsample_bn"]["var"],
        "bn1.weight": params["bn1"]["scale"], "film_shift": params["film_shift"],
        "fc.weight": np.einsum("io->oi", params["fc"]["kernel"]),
    }.items():  # fmt: skip
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    sizes = sum(leaf.size for leaf in jax.tree.leaves((params, stats)))
    assert sum(value.size for value in found.values()) == sizes


def test_the_card_of_both_files_says_how_to_use_each(run, exported, tmp_path):
    out = shutil.copytree(exported["stablehlo"], tmp_path / "out")
    assert run_command("export", run, "--format=safetensors", f"--out={out}").code == 0
    text = (out / "README.md").read_text()
    assert "### network.jax_export" in text and "### weights.safetensors" in text
    assert "### weights.safetensors" not in (exported["stablehlo"] / "README.md").read_text()


def test_the_card_says_data_split_budget_accuracy_and_licence(run, exported, tmp_path):
    results = json.loads((run / "results.json").read_text())
    accuracy = 100 * results["accuracy"]["site"]["all"]
    for folder in exported.values():
        text = (folder / "README.md").read_text()
        for word in ("smoke", "batch, fold 0", "inductive", f" {accuracy:.1f} |", "8 of 8 steps",
                     "plate_control", "data.crop=24", "random weights"):  # fmt: skip
            assert word in text, word
        vocabulary = json.loads((folder / "vocabulary.json").read_text())
        assert vocabulary == Run.open(run).vocabulary.to_json()
    names = {"release in /x": "CC BY-NC-SA 4.0", "release": "CC BY-NC-SA 4.0",
             "synthetic": "no image of RxRx1", "arrays": "their owner's licence"}  # fmt: skip
    for source, said in names.items():
        results["data"]["source"] = source
        assert said in card.card(Run.open(run), results, "")
    copy = shutil.copytree(run, tmp_path / "run")
    with edited(copy / "config.json") as config:
        config["dataset"] |= {"init": "5ca1ab1e", "external": True}
    change_settings(copy, model__init="/w.pth")
    text = card.card(Run.open(copy), results, "")
    assert "external data: also weights" in text and "/w.pth (5ca1ab1e)" in text


def test_python_exports_too(run, exported, tmp_path):
    files = rx.export_run(rx.load_run(run), tmp_path)
    for file in files:
        assert file.read_bytes() == (exported["safetensors"] / file.name).read_bytes()
    with pytest.raises(rx.config.ConfigError, match="--format=onnx.*safetensors"):
        rx.export_run(rx.load_run(run), tmp_path, "onnx")


def without_results(path):
    (path / "results.json").unlink()


def of_another_step(path):
    with edited(path / "results.json") as results:
        results["step"] = 4


def without_checkpoints(path):
    shutil.rmtree(path / "checkpoints")


@pytest.mark.parametrize(
    "damage, words, code, said",
    [
        (without_results, [], 1, "--mode=evaluate"),
        (of_another_step, [], 1, "--mode=evaluate"),
        (without_checkpoints, [], 1, "no checkpoint"),
        (lambda path: shutil.rmtree(path), [], 1, "no run here"),
        (lambda path: None, ["--format=onnx"], 2, "safetensors"),
        (lambda path: None, ["--out", __file__], 1, "--out="),
        (lambda path: None, ["--format=stablehlo", "--data_dir=gs://x/y"], 2, "URL"),
    ],
)
def test_what_cannot_be_exported_is_a_line(run, tmp_path, damage, words, code, said):
    copy = shutil.copytree(run, tmp_path / "run")
    damage(copy)
    ended = run_command("export", copy, *words)
    assert ended.code == code and said in ended.last
    assert ended.last.startswith("error: ") and ended.err.count("\n") == 1
    assert not (copy / "export").exists()


@pytest.mark.long
def test_pytorch_and_jax_predict_as_the_run_by_the_code_of_the_card(tmp_path, monkeypatch):
    """A ResNet of torchvision, by its names; both programs of the cards are run as they stand."""
    opened = Run.open(trained(tmp_path / "run", model__name="resnet18", model__width=64))
    rows = np.arange(5)
    planes, mean, std, cell_type = arguments(opened, rows)
    for kind in ("safetensors", "stablehlo"):
        rx.export_run(opened, tmp_path / kind, kind)
    monkeypatch.setitem(sys.modules, "torchvision", torchvision)
    monkeypatch.chdir(tmp_path / "safetensors")
    names = {}
    exec(code_of(tmp_path / "safetensors"), names)
    model = names["model"]
    features = []
    model.fc.register_forward_hook(lambda module, inputs, output: features.append(inputs[0]))
    images = (planes - mean[:, :, None, None]) / std[:, :, None, None]
    with torch.no_grad():
        log_probs = torch.log_softmax(model(torch.from_numpy(images)), 1).numpy()
    assert_predicted(opened, rows, log_probs, features[0].numpy())
    monkeypatch.chdir(tmp_path / "stablehlo")
    names = {"planes": planes, "mean": mean, "std": std, "cell_type": cell_type}
    exec(code_of(tmp_path / "stablehlo"), names)
    assert_predicted(opened, rows, names["log_probs"], names["embedding"])
