"""The networks against an independent PyTorch definition of the same networks, in float64."""

import re
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from example_info import make_info
from flax import traverse_util
from torch import nn
from torch_resnet import TorchResNet, basic, bottleneck

from rxrx1_jax.model import networks, resnet

sys.path.insert(0, str(Path(__file__).parents[2]))  # `benchmarks` is no installed package
from benchmarks import plain_linen  # noqa: E402


def port(named_tensors):
    """{PyTorch name: tensor} -> the tree of Flax variables, batch_stats among them if present."""
    flat = {}
    for name, tensor in named_tensors:
        if name.endswith("num_batches_tracked"):
            continue
        name = name.replace("downsample.0", "downsample_conv")
        name = name.replace("downsample.1", "downsample_bn")
        *module, leaf = name.split(".")
        if module[0].startswith("layer"):
            module = [f"{module[0]}_{module[1]}", *module[2:]]
        value = tensor.detach().numpy().copy()
        if leaf == "weight":
            leaf = {4: "kernel", 2: "kernel", 1: "scale"}[value.ndim]
            value = value.transpose({4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[value.ndim])
        collection = "batch_stats" if leaf.startswith("running") else "params"
        leaf = {"running_mean": "mean", "running_var": "var"}.get(leaf, leaf)
        flat[(collection, *module, leaf)] = value
    return traverse_util.unflatten_dict(flat)


def assert_trees_close(found, expected, tolerance):
    found = traverse_util.flatten_dict(found, sep="/")
    expected = traverse_util.flatten_dict(expected, sep="/")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = np.abs(value).max() + 1e-12
        error = np.abs(np.asarray(found[name]) - value).max() / scale
        assert error < tolerance, f"{name}: relative difference {error:.1e}"


@pytest.mark.parametrize(
    "name, block, sizes",
    [
        ("resnet18", basic, (2, 2, 2, 2)),
        pytest.param("resnet50", bottleneck, (3, 4, 6, 3), marks=pytest.mark.long),
    ],
)
def test_logits_gradients_and_statistics_are_those_of_pytorch(name, block, sizes):
    torch.manual_seed(0)
    classes, rows, size = 11, 4, 64
    reference = TorchResNet(block, sizes, classes).double()
    with torch.no_grad():  # nothing at its initial value, so that nothing is tested at 0 or 1
        for module in reference.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
    x = torch.randn(rows, 6, size, size, dtype=torch.float64)
    labels = torch.arange(rows) % classes
    start = port(reference.state_dict().items())

    def biased(module, inputs, _):
        """Flax's running variance is biased (n), PyTorch's is not (n - 1): the one difference."""
        if module.training:
            ours, theirs = (inputs[0].var((0, 2, 3), unbiased=u) for u in (False, True))
            module.running_var.data += 0.1 * (ours - theirs)

    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(biased)

    # Standard promotion: Flax's BatchNorm relies on it for any dtype but float32.
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        model = networks.create_model(name, dtype=jnp.float64)
        variables = jax.tree.map(jnp.asarray, start)
        images = jnp.asarray(x.numpy().transpose(0, 2, 3, 1))

        def loss_fn(params, train):
            logits, updated = model.apply(
                {"params": params, "batch_stats": variables["batch_stats"]},
                images, {}, make_info(classes, train), mutable=["batch_stats"],
            )  # fmt: skip
            log_probs = jax.nn.log_softmax(logits)
            loss = -jnp.mean(log_probs[jnp.arange(rows), jnp.asarray(labels.numpy())])
            return loss, (logits, updated["batch_stats"])

        gradient = jax.jit(jax.grad(loss_fn, has_aux=True), static_argnums=1)
        for train in (False, True):
            reference.train(train)
            reference.zero_grad()
            expected = reference(x)
            F.cross_entropy(expected, labels).backward()
            grads, (logits, batch_stats) = gradient(variables["params"], train)
            expected = expected.detach().numpy()
            np.testing.assert_allclose(logits, expected, rtol=1e-8, atol=1e-8)
            torch_grads = [(n, p.grad) for n, p in reference.named_parameters()]
            assert_trees_close(grads, port(torch_grads)["params"], 1e-8)
            expected = port(reference.state_dict().items())["batch_stats"]
            assert_trees_close(batch_stats, expected, 1e-8)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("kernel, stride", [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 4), (9, 12)])
def test_convolve_is_pytorchs_on_every_path(monkeypatch, backend, kernel, stride, size):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *size, 3)).astype(np.float32)
    weights = rng.normal(size=(kernel, kernel, 3, 5)).astype(np.float32)
    torch_x, torch_weights = x.transpose(0, 3, 1, 2), weights.transpose(3, 2, 0, 1)
    expected = F.conv2d(*map(torch.from_numpy, (torch_x, torch_weights)), None, stride, kernel // 2)
    found = resnet.convolve(jnp.asarray(x), jnp.asarray(weights), stride)
    np.testing.assert_allclose(found, expected.numpy().transpose(0, 2, 3, 1), rtol=0, atol=2e-5)


def plain_max_pool(x):
    return flax.linen.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (8, 8), (9, 12), (7, 5)])
def test_max_pool_and_its_gradient_are_the_plain_ones_also_at_ties(size):
    # Few values, so that most windows have several largest ones.
    x = np.random.default_rng(0).integers(-1, 3, (3, *size, 4)).astype(np.float64)
    with jax.enable_x64(True):
        expected, backward = jax.vjp(plain_max_pool, jnp.asarray(x))
        found, ours = jax.vjp(resnet.max_pool, jnp.asarray(x))
        cotangent = jnp.asarray(np.random.default_rng(1).normal(size=expected.shape))
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_allclose(ours(cotangent), backward(cotangent), rtol=0, atol=1e-14)


def test_not_a_number_is_not_pooled_away():
    x = jnp.ones((1, 4, 4, 1)).at[0, 1, 1, 0].set(jnp.nan)
    assert np.all(np.isnan(resnet.max_pool(x)))


def shapes(model, images, classes):
    info = make_info(classes)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, {}, info), images)


@pytest.mark.parametrize(
    "name, classes, expected",
    [
        ("resnet50", 1108, 25_787_732),
        # torchvision's 11,689,512, 21,797,672 and 44,549,160 with 3 more channels in the stem.
        ("resnet18", 1000, 11_689_512 + 3 * 49 * 64),
        ("resnet34", 1000, 21_797_672 + 3 * 49 * 64),
        ("resnet101", 1000, 44_549_160 + 3 * 49 * 64),
        ("resnet_demo", 32, 95_840),
    ],
)
def test_parameter_count(name, classes, expected):
    images = jax.ShapeDtypeStruct((1, 64, 64, 6), jnp.float32)
    params = shapes(networks.create_model(name), images, classes)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def initialised(model, images, classes=10):
    info = make_info(classes)
    with jax.numpy_dtype_promotion("standard"):
        return jax.jit(lambda key: model.init(key, images, {}, info))(jax.random.key(0))


def test_initialisation():
    model = resnet.ResNet((1, 1), resnet.BasicBlock, width=32)
    images = jnp.zeros((1, 32, 32, 6))
    variables = initialised(model, images, 1000)
    for path, value in traverse_util.flatten_dict(variables["params"]).items():
        if path[-1] == "scale":
            assert np.all(value == (0 if path[-2] == "bn2" else 1)), path
        elif path[-1] == "bias":
            assert np.all(value == 0), path
        elif path[0] == "fc":
            limit = 1 / np.sqrt(value.shape[0])
            assert 0.99 * limit < np.abs(value).max() <= limit
        else:
            expected = np.sqrt(2 / (value.shape[0] * value.shape[1] * value.shape[3]))
            # Five standard errors of a standard deviation over value.size normal draws.
            assert abs(np.std(value) / expected - 1) < 5 / np.sqrt(2 * value.size), path


SMALL = [partial(resnet.ResNet, (1, 1), resnet.BottleneckBlock, 8), partial(resnet.DemoResNet, 16)]


@pytest.mark.parametrize("create", SMALL)
def test_bfloat16_computes_close_to_float32_and_keeps_float32_state(create):
    images = jax.random.normal(jax.random.key(1), (8, 32, 32, 6))
    variables = initialised(create(jnp.dtype("bfloat16")), images)
    logits = {}
    for dtype in ("float32", "bfloat16"):
        model = create(jnp.dtype(dtype))
        # Standard promotion: Flax's BatchNorm relies on it for any dtype but float32.
        with jax.numpy_dtype_promotion("standard"):
            logits[dtype], updated = jax.jit(
                lambda v, m=model: m.apply(
                    v, images, {}, make_info(10, train=True), mutable=["batch_stats"]
                )
            )(variables)
        assert logits[dtype].dtype == jnp.float32
        for leaf in jax.tree.leaves((variables, updated)):
            assert leaf.dtype == jnp.float32
    scale = np.std(logits["float32"])
    difference = np.abs(logits["bfloat16"] - logits["float32"]).max()
    # bfloat16 keeps 8 bits: its error is there (it is really used), and small.
    assert 1e-5 * scale < difference < 0.1 * scale


def test_demo_network_has_finite_gradients_on_constant_images():
    model = networks.create_model("resnet_demo", width=16)
    images = jnp.zeros((2, 16, 16, 6))
    variables = initialised(model, images)

    def total(params):
        variables_ = {"params": params, "batch_stats": variables["batch_stats"]}
        return jnp.sum(model.apply(variables_, images, {}, make_info(10)))

    for leaf in jax.tree.leaves(jax.jit(jax.grad(total))(variables["params"])):
        assert np.all(np.isfinite(leaf))


@pytest.mark.parametrize("create", SMALL)
def test_remat_computes_blocks_again_and_gives_the_same_numbers(create):
    """Operation by operation: XLA's CPU back-end may merge what is computed twice."""
    images = np.random.default_rng(0).normal(size=(4, 16, 16, 6)).astype(np.float32)
    variables = initialised(create(), images)
    found = []
    for remat in (False, True):
        model = create(remat=remat)
        assert jax.tree.structure(shapes(model, images, 10)) == jax.tree.structure(variables)

        def loss(params, model=model):
            logits, updated = model.apply(
                variables | {"params": params}, images, {}, make_info(10, train=True),
                mutable=["batch_stats"],
            )  # fmt: skip
            return jnp.sum(jnp.sin(logits)), (logits, updated["batch_stats"])

        found.append(jax.grad(loss, has_aux=True)(variables["params"]))
    for once, again in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(again, once, rtol=1e-4, atol=1e-5)
    assert operations(create(remat=True), "cuda").total() > operations(create(), "cuda").total()


def operations(model, platform):
    """How often each operation, with its types and attributes, is in a lowered gradient."""
    images = jax.ShapeDtypeStruct((2, 64, 64, 6), jnp.float32)
    variables = shapes(model, images, 11)

    def loss(params, batch_stats, images):
        logits, updated = model.apply(
            {"params": params, "batch_stats": batch_stats}, images, {}, make_info(11, train=True),
            mutable=["batch_stats"],
        )  # fmt: skip
        return jnp.sum(logits), updated

    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    traced = gradient.trace(variables["params"], variables["batch_stats"], images)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    # Without the names of values and functions.
    lines = (re.sub(r"%[\w#:]+|@\w+", "", line).strip() for line in text.splitlines())
    return Counter(line for line in lines if "stablehlo" in line)


@pytest.mark.parametrize("platform, backend", [("cuda", "gpu"), ("tpu", "tpu")])
def test_other_platforms_get_the_plain_network(monkeypatch, platform, backend):
    """What is lowered for them is what flax.linen's own layers give, operation by operation, but
    for the pooling."""
    ours, plain = networks.create_model("resnet50"), plain_linen.PlainResNet50()
    monkeypatch.setattr(flax.linen, "max_pool", lambda x, *_: resnet.max_pool(x))
    on_cpu = operations(ours, platform)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    found, expected = operations(ours, platform), operations(plain, platform)
    assert found == expected

    def count(lines, name):
        return sum(count for line, count in lines.items() if f"stablehlo.{name}" in line)

    # 53 forward, 53 gradients of kernels and 52 of inputs: the images need none.
    assert count(found, "convolution") == 158 and count(on_cpu, "convolution") < 50
    assert count(found, "dot_general") == 3  # products are left to the classifier
