"""The units of ShuffleNet with dense 1x1 convolutions, nothing shuffled.

Source: Zhang et al., ShuffleNet, CVPR 2018; it compares with one group.
"""

import onnx
from digits import Digits
from export import export
from training import fit

from models.shufflenet_digits import ShuffleNet


def make(train: Digits) -> onnx.ModelProto:
    """Train and export."""
    net = ShuffleNet(groups=1)
    fit(net, train, epochs=60)
    return export(net)
