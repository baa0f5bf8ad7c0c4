"""LeNet-300-100: three fully connected layers. Source: LeCun et al., Proceedings of the IEEE 86(11), 1998."""

import onnx
from digits import Digits
from export import export
from torch import Tensor, nn
from torch.nn.functional import relu
from training import fit


class LeNet300(nn.Module):
    """64-300-100-10; each layer is one Gemm."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(64, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = relu(self.fc1(image.flatten(1)))
        x = relu(self.fc2(x))
        return self.fc3(x)


def make(train: Digits) -> onnx.ModelProto:
    """Train and export."""
    net = LeNet300()
    fit(net, train, epochs=200)
    return export(net, opset=13)
