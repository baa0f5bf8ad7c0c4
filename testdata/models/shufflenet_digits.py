"""Grouped 1x1 convolutions with channel shuffle. Source: Zhang et al., ShuffleNet, CVPR 2018."""

import onnx
import torch
from digits import Digits
from export import export
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, relu
from training import fit

GROUPS = 4


def shuffle(x: Tensor, channels: int, size: int, groups: int) -> Tensor:
    """Deal the channels of each group out over all groups; x is [any batch, channels, size, size]."""
    x = x.reshape(-1, groups, channels // groups, size, size).transpose(1, 2)
    return x.reshape(-1, channels, size, size)


class Unit(nn.Module):
    """A ShuffleNet unit: grouped 1x1, shuffle, depthwise 3x3, grouped 1x1.

    With stride 1 the input is added to the result; with stride 2 its 3x3 average is concatenated. With one
    group there is nothing to shuffle.
    """

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1, groups: int = GROUPS) -> None:
        super().__init__()
        self.size = size
        self.groups = groups
        self.stride = stride
        self.middle = middle = outputs // 2
        added = outputs if stride == 1 else outputs - inputs
        self.squeeze = nn.Conv2d(inputs, middle, 1, groups=groups, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.depthwise = nn.Conv2d(middle, middle, 3, stride, padding=1, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.expand = nn.Conv2d(middle, added, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(added)

    def forward(self, x: Tensor) -> Tensor:
        y = relu(self.bn1(self.squeeze(x)))
        if self.groups > 1:
            y = shuffle(y, self.middle, self.size, self.groups)
        y = self.bn3(self.expand(self.bn2(self.depthwise(y))))
        if self.stride == 1:
            return relu(x + y)
        return relu(torch.cat([avg_pool2d(x, 3, self.stride, padding=1), y], 1))


class ShuffleNet(nn.Module):
    """A plain convolution, one stage at 8x8, one at 4x4, global average, classifier."""

    def __init__(self, groups: int = GROUPS) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.unit1 = Unit(64, 64, size=8, groups=groups)
        self.unit2 = Unit(64, 192, size=8, stride=2, groups=groups)
        self.unit3 = Unit(192, 192, size=4, groups=groups)
        self.unit4 = Unit(192, 192, size=4, groups=groups)
        self.fc = nn.Linear(192, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = relu(self.bn1(self.conv1(image)))
        x = self.unit4(self.unit3(self.unit2(self.unit1(x))))
        return self.fc(adaptive_avg_pool2d(x, 1).flatten(1))


def make(train: Digits) -> onnx.ModelProto:
    """Train and export."""
    net = ShuffleNet()
    fit(net, train, epochs=60)
    return export(net)
