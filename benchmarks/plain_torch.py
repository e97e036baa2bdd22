"""ResNet-50 as PyTorch users write it (torchvision's v1.5), with six input channels."""

import torch
from torch import nn


class PlainBlock(nn.Module):
    """1x1, 3x3 (with the stride), 1x1 to four times the features, and a shortcut."""

    def __init__(self, inputs: int, features: int, stride: int):
        super().__init__()
        outputs = 4 * features
        self.conv1 = nn.Conv2d(inputs, features, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        self.conv3 = nn.Conv2d(features, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module = nn.Identity()
        if inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += self.downsample(x)
        return self.relu(y)


def plain_resnet50(num_classes: int, stages: tuple[int, ...] = (3, 4, 6, 3)) -> nn.Sequential:
    """images [N, 6, H, W] -> logits [N, num_classes]. stages: blocks of each."""
    layers = [
        nn.Conv2d(6, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
    ]  # fmt: skip
    inputs = 64
    for stage, blocks in enumerate(stages):
        features = 64 * 2**stage
        for i in range(blocks):
            layers.append(PlainBlock(inputs, features, 2 if stage and not i else 1))
            inputs = 4 * features
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, num_classes)]
    return nn.Sequential(*layers)
