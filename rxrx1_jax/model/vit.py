"""A vision transformer whose patches are of one channel each.

ChannelViT (Bao, Sivanandan and Karaletsos 2023, arXiv:2309.16108): each channel is cut into patches
of its own, which one projection embeds for all channels. A patch gets the embedding of its place,
which all channels share, and that of its channel; a class token goes before them. From there on it
is timm's VisionTransformer (norm before each branch, epsilon 1e-6, exact GELU): with one channel,
whose embedding is 0, ported weights give its features and logits. The names of the parameters are
timm's, too, by the rule of `weights`.

The networks of OpenPhenom and Cell-DINO cut channels in the same way, and differ in the rest:
OpenPhenom's (github.com/recursionpharma/maes_microscopy) has sines in place of learned places, no
embedding of channels, parallel branches and the mean of the patches in place of the class token.

Initialisation is that of timm: matrices and embeddings normal with deviation 0.02, the projection
of patches uniform as a convolution of PyTorch, biases 0.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rxrx1_jax.data.info import Info
from rxrx1_jax.model.heads import Batch, Head, classifier_init, linear

EPSILON = 1e-6  # of every LayerNorm, as in timm
DEPTH, HIDDEN = 12, 4  # blocks; features of a hidden layer, over those of a token

normal = nn.initializers.normal(0.02)


class Patches(nn.Module):
    """A projection of patches that all channels share: [N, H, W, C] -> [N, C, places, features]."""

    size: int
    features: int
    dtype: Any

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        shape = (self.size, self.size, 1, self.features)  # as of a convolution of one channel
        kernel = self.param("kernel", classifier_init, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x = patches(images, self.size)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return x @ kernel.reshape(-1, self.features) + bias[None, None, None]


class Attention(nn.Module):
    """Every token looks at every other one: [N, tokens, d] -> the same."""

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        *rows, features = x.shape
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=normal)
        qkv = dense(3 * features, name="qkv")(x)
        query, key, value = jnp.moveaxis(qkv.reshape(*rows, 3, self.heads, -1), 2, 0)
        y = jax.nn.dot_product_attention(query, key, value)
        return dense(features, name="proj")(y.reshape(x.shape))


class Mlp(nn.Module):
    """Two layers for each token by itself: [N, tokens, d] -> the same."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=normal)
        y = nn.gelu(dense(HIDDEN * x.shape[-1], name="fc1")(x), approximate=False)
        return dense(x.shape[-1], name="fc2")(y)


class Block(nn.Module):
    """Attention and two layers, each after a norm and added to its input."""

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = partial(nn.LayerNorm, EPSILON, dtype=self.dtype)
        x = x + Attention(self.heads, self.dtype, name="attn")(norm(name="norm1")(x))
        return x + Mlp(self.dtype, name="mlp")(norm(name="norm2")(x))


class ViT(nn.Module):
    """A vision transformer: images [N, H, W, C] -> logits float32 [N, K], K classes of `info`.

    It has 1 + C * (H / patch) * (W / patch) tokens, and keeps their number squared per head and
    block for the backward pass; with `remat` only what passes from block to block. The embedding is
    the class token after the last block. Fields are those of `resnet.ResNet` where they have its
    names. Raises ValueError: an image that patches do not fill.
    """

    heads: int
    patch: int  # side, pixels
    width: int = 64  # features of a head; a token has `heads` times as many
    dtype: Any = jnp.float32
    bn_axis_name: str | None = None  # of a BatchNorm in the head; there is no other
    head: Head = linear()
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, batch: Batch, info: Info) -> jax.Array:
        features = self.heads * self.width
        x = Patches(self.patch, features, self.dtype, name="patch_embed")(images)
        rows, channels, places, _ = x.shape
        place = self.param("pos_embed", normal, (1, 1 + places, features))
        channel = self.param("channel_embed", normal, (1, channels, 1, features))
        first = self.param("cls_token", normal, (1, 1, features)) + place[:, :1]
        x, channel, place, first = nn.dtypes.promote_dtype(
            x, channel, place[:, None, 1:], first, dtype=self.dtype
        )
        x = (x + (channel + place)).reshape(rows, channels * places, features)
        x = jnp.concatenate([jnp.broadcast_to(first, (rows, 1, features)), x], 1)
        block = nn.remat(Block) if self.remat else Block
        for i in range(DEPTH):
            x = block(self.heads, self.dtype, name=f"blocks_{i}")(x)
        x = nn.LayerNorm(EPSILON, dtype=self.dtype, name="norm")(x[:, 0])
        self.sow("intermediates", "embedding", x)
        return self.head(self, x, batch, info)


def patches(images: jax.Array, size: int) -> jax.Array:
    """[N, H, W, C] -> [N, C, places, size * size]; places and pixels by rows."""
    n, height, width, channels = images.shape
    if height % size or width % size:
        raise ValueError(
            f"patch is {size}; expected a divisor of the images' sides, {height} x {width} px"
            " (data.crop)"
        )
    x = images.reshape(n, height // size, size, width // size, size, channels)
    return x.transpose(0, 5, 1, 3, 2, 4).reshape(n, channels, -1, size * size)
