"""Weights of torchvision and timm give their logits and features here, and ours give them there."""

import pickle
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from example_info import make_info
from flax.traverse_util import flatten_dict
from safetensors.torch import save_file
from torch_models import timm, torchvision

from rxrx1_jax.model import networks, weights

CLASSES, SIZE = 7, 64


def randomised(model):
    """With nothing at its initial value, so that nothing is compared at 0 or 1."""
    torch.manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def variables_of(name, channels, classes=CLASSES):
    model, image = networks.create_model(name), jnp.zeros((1, SIZE, SIZE, channels))
    info = make_info(classes)
    shapes = jax.eval_shape(lambda key: model.init(key, image, {}, info), jax.random.key(1))
    made = jax.tree.map(lambda x: np.full(x.shape, 0.5, x.dtype), shapes)
    return model, {name: made[name] for name in ("params", "batch_stats")}


def body_of(variables):
    return {name for name in weights.names(variables).values() if not name.startswith("fc.")}


def outputs(model, variables, images):
    """Logits and features of images [N, C, H, W]."""
    info, x = make_info(CLASSES), jnp.asarray(images.transpose(0, 2, 3, 1))
    apply = jax.jit(lambda v, x: model.apply(v, x, {}, info, mutable=["intermediates"]))
    logits, kept = apply(variables, x)
    return logits, kept["intermediates"]["embedding"][0]


def torch_outputs(model, images):
    features = []
    model.fc.register_forward_hook(lambda module, inputs, output: features.append(inputs[0]))
    with torch.no_grad():
        logits = model(torch.from_numpy(images))
    return logits.numpy(), features[0].numpy()


def assert_close(found, expected):
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=2e-4 * np.abs(two).max())


@pytest.mark.parametrize(
    "library, name, file, channels",
    [
        (torchvision, "resnet18", "w.safetensors", 3),
        (timm, "resnet18", "w.pth", 6),
        pytest.param(timm, "resnet34", "w.safetensors", 5, marks=pytest.mark.long),
        pytest.param(torchvision, "resnet50", "w.pth", 3, marks=pytest.mark.long),
        pytest.param(timm, "resnet101", "w.safetensors", 6, marks=pytest.mark.long),
    ],
)
def test_weights_of_pytorch_give_its_logits_and_features(tmp_path, library, name, file, channels):
    create = {
        torchvision: lambda **n: getattr(torchvision.models, name)(num_classes=CLASSES),
        timm: lambda **n: timm.create_model(name, num_classes=CLASSES, **n),
    }[library]
    source = randomised(create())
    state = source.state_dict()
    path = tmp_path / file
    torch.save(state, path) if file.endswith(".pth") else save_file(state, path)
    if channels != 3:  # as timm makes its own weights fit
        adapt = timm.models._manipulate.adapt_input_conv
        source = create(in_chans=channels).eval()
        stem = adapt(channels, state["conv1.weight"])
        source.load_state_dict(state | {"conv1.weight": stem})
    model, drawn = variables_of(name, channels)
    filled = weights.fill(drawn, weights.read(path), body_of(drawn))
    images = np.random.default_rng(0).normal(size=(2, channels, SIZE, SIZE)).astype(np.float32)
    expected = torch_outputs(source, images)
    assert_close(outputs(model, filled, images), expected)
    # And back: PyTorch takes each name, none is missing, and the logits are the same.
    again = create(**({} if channels == 3 else {"in_chans": channels}))
    arrays = weights.to_torch(filled)
    assert all(array.flags.c_contiguous for array in arrays.values())
    again.load_state_dict({n: torch.from_numpy(array) for n, array in arrays.items()})
    assert_close(torch_outputs(again.eval(), images), expected)


def test_a_head_of_other_classes_stays_as_it_was_drawn(tmp_path):
    path = tmp_path / "imagenet.safetensors"
    save_file(randomised(torchvision.models.resnet18()).state_dict(), path)  # 1,000 classes
    _, drawn = variables_of("resnet18", 6)
    filled = flatten_dict(weights.fill(drawn, weights.read(path), body_of(drawn)))
    for place, value in flatten_dict(drawn).items():
        assert np.array_equal(filled[place], value) == (place[1] == "fc"), place


DEMO = {"conv1.weight": (2, 3, 3, 3), "bn1.weight": (2,), "fc.weight": (4, 2)}


def arrays_of(shapes):
    return {name: np.ones(shape, np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"bn1.weight": None}, ("bn1.weight", "missing", "(2,)")),
        ({"bn1.weight": (3,)}, ("bn1.weight", "(3,)", "(2,)")),
        ({"conv1.weight": (2, 4, 3, 3)}, ("conv1.weight", "(2, 4, 3, 3)", "(2, 6, 3, 3)")),
        ({"conv1.weight": (2, 3, 7, 7)}, ("conv1.weight", "(2, 6, 7, 7)", "(2, 6, 3, 3)")),
        ({"layer9.bn1.bias": (2,)}, ("layer9.bn1.bias", "(2,)", "model.name")),
    ],
)
def test_what_does_not_fit_is_refused_by_name_and_shapes(changes, said):
    variables = {
        "params": {
            "conv1": {"kernel": np.zeros((3, 3, 6, 2))}, "bn1": {"scale": np.zeros(2)},
            "fc": {"kernel": np.zeros((2, 4))},
        }
    }  # fmt: skip
    shapes = {name: shape for name, shape in (DEMO | changes).items() if shape}
    with pytest.raises(weights.WeightsError) as error:
        weights.fill(variables, arrays_of(shapes), {"conv1.weight", "bn1.weight"})
    for word in said:
        assert word in str(error.value)


class Command:
    def __reduce__(self):
        return print, ("this must not be executed",)


def spoiled(kind, path):
    tensor = torch.ones(3)
    if kind == "text":
        path.write_text("no weights")
    elif kind == "program":
        torch.save({"conv1.weight": Command()}, path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Command(), protocol=2))
    elif kind == "nested":
        torch.save({"state_dict": {"conv1.weight": tensor}, "epoch": 3}, path)
    elif kind == "list":
        torch.save([tensor], path)
    elif kind == "cut":
        save_file({"conv1.weight": tensor}, path)
        path.write_bytes(path.read_bytes()[:-4])
    elif kind == "nan":
        save_file({"conv1.weight": tensor * torch.nan}, path)


@pytest.mark.parametrize(
    "kind, file, said",
    [
        ("absent", "w.safetensors", "no such file"),
        ("absent", "w.pth", "no such file"),
        ("text", "w.safetensors", "cannot be read"),
        ("text", "w.pth", "cannot be read"),
        ("program", "w.pth", "cannot be read"),
        ("pickle", "w.pth", "cannot be read"),
        ("nested", "w.pth", "'state_dict'"),
        ("list", "w.pth", "list"),
        ("cut", "w.safetensors", "cannot be read"),
        ("nan", "w.safetensors", "conv1.weight"),
    ],
)
def test_a_file_without_weights_is_refused_in_a_line(tmp_path, capfd, kind, file, said):
    path = tmp_path / file
    spoiled(kind, path)
    with pytest.raises(weights.WeightsError, match=said) as error:
        weights.read(path)
    assert "\n" not in str(error.value)
    assert "executed" not in capfd.readouterr().out


def test_without_pytorch_a_line_says_how_to_convert(tmp_path, monkeypatch):
    path = tmp_path / "w.pth"
    torch.save({"a": torch.arange(3.0)}, path)
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "torch", None)
        with pytest.raises(weights.WeightsError, match="PyTorch") as error:
            weights.read(path)
    command = str(error.value).partition('python -c "')[2].removesuffix('"')
    monkeypatch.chdir(tmp_path)
    exec(command)
    assert weights.read(tmp_path / "w.safetensors")["a"].tolist() == [0, 1, 2]


def test_half_precision_is_read(tmp_path):
    for kind in (torch.bfloat16, torch.float16):
        save_file({"a": torch.arange(3, dtype=kind)}, tmp_path / "w.safetensors")
        found = weights.read(tmp_path / "w.safetensors")["a"]
        assert found.dtype == np.float32 and found.tolist() == [0, 1, 2]
