"""Depthwise-separable convolutions with batch normalisation. Source: Howard et al., MobileNets, 2017."""

import onnx
from digits import Digits
from export import export
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, relu
from training import fit


class Separable(nn.Module):
    """A 3x3 convolution of each channel alone, then a 1x1 convolution across channels."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, stride, padding=1, groups=inputs, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.bn1(self.depthwise(x)))
        return relu(self.bn2(self.pointwise(x)))


class DepthwiseNet(nn.Module):
    """A plain convolution, four separable blocks, global average, classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.block1 = Separable(32, 64)
        self.block2 = Separable(64, 128, stride=2)
        self.block3 = Separable(128, 128)
        self.block4 = Separable(128, 256, stride=2)
        self.fc = nn.Linear(256, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = relu(self.bn1(self.conv1(image)))
        x = self.block4(self.block3(self.block2(self.block1(x))))
        return self.fc(adaptive_avg_pool2d(x, 1).flatten(1))


def make(train: Digits) -> onnx.ModelProto:
    """Train and export."""
    net = DepthwiseNet()
    fit(net, train, epochs=60)
    return export(net)
