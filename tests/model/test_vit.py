"""The vision transformer against timm's, with random weights of timm's ported to it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from example_info import make_info
from flax import traverse_util
from screens import tiny_config, tiny_images
from torch_models import timm

from rxrx1_jax.model import networks, vit, weights
from rxrx1_jax.training import optimizers, setup

SIZE, PATCH, DEPTH, CLASSES, ROWS = 24, 8, 3, 11, 3


class PerChannel(timm.models.VisionTransformer):
    """timm's network of one channel, with the patches of further channels as further tokens."""

    def __init__(self, channels, **settings):
        super().__init__(in_chans=1, **settings)
        self.channel_embed = torch.nn.Parameter(torch.zeros(1, channels, 1, self.embed_dim))

    def forward_features(self, images, **_):
        tokens = [self.cls_token.expand(len(images), -1, -1) + self.pos_embed[:, :1]]
        for image, channel in zip(images.split(1, 1), self.channel_embed[0], strict=True):
            tokens.append(self.patch_embed(image) + self.pos_embed[:, 1:] + channel)
        return self.norm(self.blocks(torch.cat(tokens, 1)))


def reference(channels):
    """Parameters that are no layer's are drawn wide, so that an error in a token's place shows."""
    torch.manual_seed(0)
    settings = dict(img_size=SIZE, patch_size=PATCH, embed_dim=192, num_heads=3, depth=DEPTH)
    if channels > 1:
        network = PerChannel(channels, num_classes=CLASSES, **settings)
    else:
        network = timm.create_model(
            "vit_tiny_patch16_224", in_chans=1, num_classes=CLASSES, **settings
        )
    with torch.no_grad():
        for name, value in network.named_parameters():
            if name.endswith(("_token", "_embed")):
                value.normal_()
            elif value.ndim == 1:  # biases and scales: not at 0 or 1
                value.add_(torch.randn_like(value), alpha=0.1)
    return network.double()


def port(params, named_tensors):
    """Parameters with the values of timm's by the names and layouts of `weights`."""
    arrays = {name.replace("head.", "fc."): x.detach().numpy() for name, x in named_tensors}
    arrays.setdefault("channel_embed", np.zeros((1, 1, 1, 192)))  # of one channel
    return weights.fill({"params": params}, arrays, arrays.keys())["params"]


@pytest.mark.parametrize("channels", [1, 6])
def test_features_logits_and_gradients_are_timms(channels, monkeypatch):
    """In float64, but for our softmax, which runs in float32 whatever the rest."""
    monkeypatch.setattr(vit, "DEPTH", DEPTH)
    network = reference(channels)
    x = torch.randn(ROWS, channels, SIZE, SIZE, dtype=torch.float64)
    features = network.forward_head(network.forward_features(x), pre_logits=True)
    expected = network(x)
    F.cross_entropy(expected, torch.arange(ROWS)).backward()
    torchs = [(name, value.grad) for name, value in network.named_parameters()]
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        model = networks.load("model.name", f"vit_tiny(patch={PATCH})")(
            networks.NetworkSpec(dtype=jnp.float64)
        )
        images = jnp.asarray(x.numpy().transpose(0, 2, 3, 1))

        @jax.jit
        def gradient(params):
            def loss(params):
                logits, sown = model.apply(
                    {"params": params}, images, {}, make_info(CLASSES), mutable=["intermediates"]
                )
                rows = -jax.nn.log_softmax(logits)[jnp.arange(ROWS), jnp.arange(ROWS)]
                return jnp.mean(rows), (logits, sown["intermediates"]["embedding"][0])

            return jax.grad(loss, has_aux=True)(params)

        shapes = jax.eval_shape(
            lambda: model.init(jax.random.key(0), images, {}, make_info(CLASSES))
        )["params"]
        grads, (logits, embedding) = gradient(port(shapes, network.named_parameters()))
    np.testing.assert_allclose(embedding, features.detach().numpy(), rtol=0, atol=2e-6)
    np.testing.assert_allclose(logits, expected.detach().numpy(), rtol=0, atol=2e-6)
    found = traverse_util.flatten_dict(grads)
    wanted = traverse_util.flatten_dict(port(shapes, torchs))
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if channels > 1 or name != ("channel_embed",):  # which timm's network does not have
            tolerance = 1e-6 * np.abs(value).max()
            np.testing.assert_allclose(found[name], value, rtol=0, atol=tolerance, err_msg=name)


def shapes(name, size=224, channels=1, classes=1000):
    model = networks.create_model(name)
    images = jnp.zeros((1, size, size, channels))
    init = jax.eval_shape(
        lambda key: model.init(key, images, {}, make_info(classes)), jax.random.key(0)
    )
    return init["params"]


@pytest.mark.parametrize(
    "name, features, timms",
    [("vit_tiny", 192, 5_717_416), ("vit_small", 384, 22_050_664), ("vit_base", 768, 86_567_656)],
)
def test_parameter_count(name, features, timms):
    """timm's of three channels at 224 px; one channel takes a third of the projection."""
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes(name)))
    assert count == timms - 2 * 16 * 16 * features + features  # and the embedding of the channel


def test_initialisation_and_what_decays(monkeypatch):
    monkeypatch.setattr(vit, "DEPTH", DEPTH)
    model = networks.create_model("vit_tiny")
    init = jax.jit(lambda key: model.init(key, jnp.zeros((1, 32, 32, 6)), {}, make_info(CLASSES)))
    params = init(jax.random.key(0))["params"]
    decayed = traverse_util.flatten_dict(optimizers.is_decayed(params))
    for path, value in traverse_util.flatten_dict(params).items():
        assert decayed[path] == (path[-1] == "kernel"), path
        if path[-1] in ("scale", "bias"):
            assert np.all(value == float(path[-1] == "scale")), path
        elif path[0] in ("patch_embed", "fc"):
            limit = 1 / np.sqrt(value.size / value.shape[-1])
            assert 0.98 * limit < np.abs(value).max() <= limit, path
        else:  # five standard errors
            assert abs(np.std(value) / 0.02 - 1) < 5 / np.sqrt(2 * value.size), path


def test_bfloat16_and_remat_change_no_more_than_rounding(monkeypatch):
    monkeypatch.setattr(vit, "DEPTH", 2)
    images = jax.random.normal(jax.random.key(1), (4, 32, 32, 6))

    def found(**settings):
        model = networks.create_model("vit_tiny", width=16, **settings)

        def total(params):
            logits = model.apply({"params": params}, images, {}, make_info(CLASSES, train=True))
            return jnp.sum(jnp.sin(logits)), logits

        init = jax.jit(lambda key: model.init(key, images, {}, make_info(CLASSES)))
        params = init(jax.random.key(0))["params"]
        return jax.jit(jax.grad(total, has_aux=True))(params)

    with jax.numpy_dtype_promotion("standard"):
        (grads, logits), again, (low_grads, low) = (
            found(), found(remat=True), found(dtype=jnp.bfloat16)
        )  # fmt: skip
    for one, other in zip(*map(jax.tree.leaves, ((grads, logits), again)), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-4)
    assert {x.dtype for x in jax.tree.leaves((low_grads, low))} == {jnp.dtype("float32")}
    # bfloat16 keeps 8 bits: its error is there (it is really used), and small.
    assert 1e-5 * np.std(logits) < np.abs(low - logits).max() < 0.1 * np.std(logits)


@pytest.mark.parametrize("parallelism", ["jit", "pmap"])
@pytest.mark.parametrize("patch, said", [(3, "divisor.*16 x 16"), (0, "1 or more"), ("8", "patch")])
def test_patches_that_do_not_fit_are_a_line(patch, said, parallelism):
    config = tiny_config(model__name=f"vit_tiny(patch={patch!r})", train__parallelism=parallelism)
    with pytest.raises(ValueError, match=f"model.name=.*{said}") as refused:
        setup.prepare(config, tiny_images())
    assert "\n" not in str(refused.value)


@pytest.mark.devices
def test_pmap_takes_the_step_of_jit(monkeypatch):
    monkeypatch.setattr(vit, "DEPTH", 1)
    found = {}
    for parallelism in ("jit", "pmap"):
        config = tiny_config(
            model__name="vit_tiny(patch=8)", optim__warmup_epochs=0.0, optim__clip_norm=1.0,
            train__parallelism=parallelism,
        )  # fmt: skip
        with jax.numpy_dtype_promotion("standard"):
            ready = setup.prepare(config, tiny_images())
            draw = next(ready.train_draws(0))
            state, metrics = ready.train_step(ready.init(), ready.train_store(), draw)
        found[parallelism] = jax.device_get((state.params, metrics))
    start = jax.device_get(ready.init().params)
    moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), found["pmap"][0], start)
    assert max(jax.tree.leaves(moved)) > 1e-3
    jax.tree.map(partial(np.testing.assert_allclose, atol=2e-6), *found.values())


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_a_step_lowers_for_accelerators(platform, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: {"cuda": "gpu"}.get(platform, platform))
    monkeypatch.setattr(vit, "DEPTH", 1)
    with jax.numpy_dtype_promotion("standard"):
        ready = setup.prepare(tiny_config(model__name="vit_tiny(patch=8)"), tiny_images())
        draw = next(ready.train_draws(0))
        traced = ready.train_step.trace(ready.abstract_state, ready.train_store(), draw)
        text = traced.lower(lowering_platforms=(platform,)).as_text()
    # Patches, qkv, weights, values, proj, fc1, fc2, fc; two gradients of each, one of patches.
    assert text.count("stablehlo.dot_general") == 8 + 15 and "bf16" in text
