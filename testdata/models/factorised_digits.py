"""Factorised convolutions: 3x1 followed by 1x3.

Sources: Jaderberg et al., BMVC 2014 (nothing in between); Szegedy et al., CVPR 2016 (ReLU in between).
"""

import onnx
from digits import Digits
from export import export
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu
from training import fit


class FactorisedNet(nn.Module):
    """Three pairs, one of each kind that a fusing pass has to tell apart.

    linear:   no bias on the first, nothing in between: exactly one 3x3 convolution
    biased:   a bias on the first, nothing in between: one 3x3 convolution except at the border, where the
              second pads with zeros and not with the first one's bias
    bent:     a ReLU in between: not one convolution
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, padding=1)
        self.linear_3x1 = nn.Conv2d(32, 32, (3, 1), padding=(1, 0), bias=False)
        self.linear_1x3 = nn.Conv2d(32, 48, (1, 3), padding=(0, 1))
        self.biased_3x1 = nn.Conv2d(48, 48, (3, 1), padding=(1, 0))
        self.biased_1x3 = nn.Conv2d(48, 64, (1, 3), padding=(0, 1))
        self.bent_3x1 = nn.Conv2d(64, 64, (3, 1), padding=(1, 0))
        self.bent_1x3 = nn.Conv2d(64, 64, (1, 3), padding=(0, 1))
        self.fc = nn.Linear(64 * 2 * 2, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = relu(self.stem(image))
        x = max_pool2d(relu(self.linear_1x3(self.linear_3x1(x))), 2)
        x = max_pool2d(relu(self.biased_1x3(self.biased_3x1(x))), 2)
        x = relu(self.bent_1x3(relu(self.bent_3x1(x))))
        return self.fc(x.flatten(1))


def make(train: Digits) -> onnx.ModelProto:
    """Train and export."""
    net = FactorisedNet()
    fit(net, train, epochs=60)
    return export(net)
