"""Control flow: an `If` between two branches, then a `Loop` that applies one layer three times.

The batch's mean brightness picks the branch. The weights of the branches and of the loop are initializers
of their own subgraphs; `shared.weight` and `shared.bias` belong to the main graph and both branches capture
them.
"""

import onnx
import torch
from digits import Digits
from export import IR_VERSION, graphs
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu
from training import fit

THRESHOLD = 0.305
REPEATS = 3
OPSET = 17

GRAPH = f"""
<ir_version: {IR_VERSION[OPSET]}, opset_import: ["": {OPSET}]>
main (float[batch, 1, 8, 8] image) => (float[batch, 10] logits)
    <float threshold = {{{THRESHOLD}}}, int64 repeats = {{{REPEATS}}}, bool forever = {{1}}>
{{
    ["stem.conv"] stem_conv = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]>
        (image, "stem.weight", "stem.bias")
    ["stem.relu"] stem_relu = Relu(stem_conv)
    ["stem.pool"] features = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (stem_relu)
    ["brightness"] brightness = ReduceMean <keepdims = 0> (image)
    ["is_bright"] is_bright = Greater(brightness, threshold)
    ["branch"] start = If(is_bright) <
        then_branch = bright () => (float[batch, 64] bright_out) {{
            ["bright.conv"] bright_conv = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]>
                (features, "bright.weight", "bright.bias")
            ["bright.relu"] bright_relu = Relu(bright_conv)
            ["bright.flatten"] bright_flat = Flatten(bright_relu)
            ["bright.shared"] bright_out = Gemm <transB = 1> (bright_flat, "shared.weight", "shared.bias")
        }},
        else_branch = dark () => (float[batch, 64] dark_out) {{
            ["dark.flatten"] dark_flat = Flatten(features)
            ["dark.fc"] dark_fc = Gemm <transB = 1> (dark_flat, "dark.weight", "dark.bias")
            ["dark.relu"] dark_relu = Relu(dark_fc)
            ["dark.shared"] dark_out = Gemm <transB = 1> (dark_relu, "shared.weight", "shared.bias")
        }}
    >
    ["refine"] refined = Loop(repeats, forever, start) <
        body = refine (int64 step, bool go, float[batch, 64] state) => (bool go_on, float[batch, 64] next) {{
            ["refine.go_on"] go_on = Identity(go)
            ["refine.fc"] refine_fc = Gemm <transB = 1> (state, "refine.weight", "refine.bias")
            ["refine.relu"] refine_relu = Relu(refine_fc)
            ["refine.add"] next = Add(state, refine_relu)
        }}
    >
    ["fc"] logits = Gemm <transB = 1> (refined, "fc.weight", "fc.bias")
}}
"""


class BranchNet(nn.Module):
    """What GRAPH computes; in training a coin picks the branch, so that each branch learns all digits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.bright = nn.Conv2d(16, 32, 3, padding=1)
        self.dark = nn.Linear(16 * 4 * 4, 32 * 4 * 4)
        self.shared = nn.Linear(32 * 4 * 4, 64)
        self.refine = nn.Linear(64, 64)
        self.fc = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        features = max_pool2d(relu(self.stem(image)), 2)
        is_bright = torch.rand(()) < 0.5 if self.training else image.mean() > THRESHOLD
        hidden = relu(self.bright(features)).flatten(1) if is_bright else relu(self.dark(features.flatten(1)))
        state = self.shared(hidden)
        for _ in range(REPEATS):
            state = state + relu(self.refine(state))
        return self.fc(state)


def make(train: Digits) -> onnx.ModelProto:
    """Train, then give GRAPH the trained weights, each subgraph those that carry its name."""
    net = BranchNet()
    fit(net, train, epochs=100)
    model = onnx.parser.parse_model(GRAPH)
    places = {graph.name: graph for graph in graphs(model.graph)}
    for name, weight in net.state_dict().items():
        place = places.get(name.split(".")[0], model.graph)
        place.initializer.append(numpy_helper.from_array(weight.numpy(), name))
    return model
