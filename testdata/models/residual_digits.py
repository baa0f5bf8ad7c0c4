"""Residual blocks and an inception block with batch normalisation.

Sources: He et al., CVPR 2016 (residual); Szegedy et al., CVPR 2015 (inception).
"""

import onnx
import torch
from digits import Digits
from export import export
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, max_pool2d, relu
from training import fit


class Normed(nn.Module):
    """A convolution without bias, padded to keep the size, and its batch normalisation."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class Residual(nn.Module):
    """Two 3x3 convolutions added to the input, or to its 1x1 projection where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = Normed(inputs, outputs, 3, stride)
        self.conv2 = Normed(outputs, outputs, 3)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else Normed(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.conv2(relu(self.conv1(x))) + self.shortcut(x))


class Inception(nn.Module):
    """Three branches side by side, concatenated: 1x1; 1x1 then 3x3; max pooling then 1x1."""

    def __init__(self, inputs: int, point: int, reduced: int, wide: int, pooled: int) -> None:
        super().__init__()
        self.point = Normed(inputs, point, 1)
        self.reduce = Normed(inputs, reduced, 1)
        self.wide = Normed(reduced, wide, 3)
        self.pooled = Normed(inputs, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        point = relu(self.point(x))
        wide = relu(self.wide(relu(self.reduce(x))))
        pooled = relu(self.pooled(max_pool2d(x, 3, stride=1, padding=1)))
        return torch.cat([point, wide, pooled], 1)


class ResidualNet(nn.Module):
    """Identity block, projection block, inception block, and an identity block over the concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Normed(1, 24, 3)
        self.identity = Residual(24, 24)
        self.projection = Residual(24, 48, stride=2)
        self.inception = Inception(48, point=16, reduced=24, wide=32, pooled=16)
        self.last = Residual(64, 64)
        self.fc = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.identity(relu(self.stem(image)))
        x = self.inception(self.projection(x))
        return self.fc(adaptive_avg_pool2d(self.last(x), 1).flatten(1))


def make(train: Digits) -> onnx.ModelProto:
    """Train and export."""
    net = ResidualNet()
    fit(net, train, epochs=60)
    return export(net)
