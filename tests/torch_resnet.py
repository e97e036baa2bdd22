"""The networks of `model/resnet.py` as PyTorch defines them: the oracle of their tests."""

import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """Convolutions of (kernel, stride, outputs), each with BatchNorm, and a shortcut."""

    def __init__(self, inputs, *convolutions):
        super().__init__()
        self.downsample = nn.Identity()
        outputs, stride = convolutions[-1][2], max(stride for _, stride, _ in convolutions)
        if stride > 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(outputs))
        self.layers = []
        for i, (kernel, stride, features) in enumerate(convolutions, 1):
            conv = nn.Conv2d(inputs, features, kernel, stride, kernel // 2, bias=False)
            self.layers.append((conv, nn.BatchNorm2d(features)))
            self.add_module(f"conv{i}", self.layers[-1][0])
            self.add_module(f"bn{i}", self.layers[-1][1])
            inputs = features

    def forward(self, x):
        y = x
        for conv, norm in self.layers[:-1]:
            y = F.relu(norm(conv(y)))
        conv, norm = self.layers[-1]
        return F.relu(norm(conv(y)) + self.downsample(x))


def basic(inputs, features, stride):
    return Block(inputs, (3, stride, features), (3, 1, features))


def bottleneck(inputs, features, stride):
    return Block(inputs, (1, 1, features), (3, stride, features), (1, 1, 4 * features))


class TorchResNet(nn.Module):
    """ResNet v1.5 with six input channels, in the words of PyTorch."""

    def __init__(self, block, sizes, classes):
        super().__init__()
        self.conv1 = nn.Conv2d(6, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.pool = nn.MaxPool2d(3, 2, 1)
        inputs = 64
        for stage, size in enumerate(sizes, 1):
            features = 64 * 2 ** (stage - 1)
            blocks = []
            for i in range(size):
                blocks.append(block(inputs, features, 2 if stage > 1 and i == 0 else 1))
                inputs = blocks[-1].layers[-1][0].out_channels
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x):
        x = self.pool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))
