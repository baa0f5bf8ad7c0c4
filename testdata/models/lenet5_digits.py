"""LeNet-5 as pruning papers use it (20 and 50 filters, 500 hidden units).

Source: LeCun et al., Proceedings of the IEEE 86(11), 1998; the widths are those of Han et al., NIPS 2015.
"""

import onnx
from digits import Digits
from export import export
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu
from training import fit


class LeNet5(nn.Module):
    """Two 5x5 convolutions, each padded and pooled (8x8 to 4x4 to 2x2), and two fully connected layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5, padding=2)
        self.conv2 = nn.Conv2d(20, 50, 5, padding=2)
        self.fc1 = nn.Linear(50 * 2 * 2, 500)
        self.fc2 = nn.Linear(500, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = max_pool2d(relu(self.conv1(image)), 2)
        x = max_pool2d(relu(self.conv2(x)), 2)
        x = relu(self.fc1(x.flatten(1)))
        return self.fc2(x)


def make(train: Digits) -> onnx.ModelProto:
    """Train and export."""
    net = LeNet5()
    fit(net, train)
    return export(net)
