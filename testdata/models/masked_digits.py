"""Node pruning with mask layers. Source: Yu et al., Scalpel, ISCA 2017.

Scalpel learns which nodes to block; here they are ranked by the norm of their outgoing weights (He et al.,
ICASSP 2014), which needs no second loss.
"""

import onnx
import torch
from digits import Digits
from export import export
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu
from training import fit


class Mask(nn.Module):
    """Multiplies each node (channel or neuron) by a constant 0 or 1; `shape` broadcasts over the rest."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("keep", torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.keep

    def block(self, score: Tensor, share: float) -> None:
        """Set `share` of the mask, the nodes with the smallest `score` [nodes], to zero."""
        order = score.argsort(stable=True)
        self.keep.view(-1)[order[: round(share * len(order))]] = 0


class MaskedNet(nn.Module):
    """LeNet-5 with a mask after each hidden layer: after the ReLU, before it, or after the pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5, padding=2)
        self.mask1 = Mask(1, 20, 1, 1)
        self.conv2 = nn.Conv2d(20, 50, 5, padding=2)
        self.mask2 = Mask(50, 1, 1)
        self.fc1 = nn.Linear(50 * 2 * 2, 300)
        self.mask3 = Mask(300)
        self.fc2 = nn.Linear(300, 100)
        self.mask4 = Mask(1, 100)
        self.fc3 = nn.Linear(100, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = max_pool2d(self.mask1(relu(self.conv1(image))), 2)
        x = self.mask2(max_pool2d(relu(self.conv2(x)), 2))
        x = self.mask3(relu(self.fc1(x.flatten(1))))
        x = relu(self.mask4(self.fc2(x)))
        return self.fc3(x)


def reading_norms(weight: Tensor, nodes: int) -> Tensor:
    """Return for each input node of a layer the norm of the weights [outputs, inputs, ...] that read it."""
    return weight.detach().reshape(len(weight), nodes, -1).norm(dim=(0, 2))


def make(train: Digits) -> onnx.ModelProto:
    """Train, rank the nodes, block the least important, fine-tune, export."""
    net = MaskedNet()
    fit(net, train, epochs=60)
    for mask, reader, share in (
        (net.mask1, net.conv2, 0.3),
        (net.mask2, net.fc1, 0.4),
        (net.mask3, net.fc2, 0.5),
        (net.mask4, net.fc3, 0.4),
    ):
        mask.block(reading_norms(reader.weight, mask.keep.numel()), share)
    fit(net, train, epochs=30, rate=1e-3)
    return export(net)
