"""Architectures that papers describe, built layer by layer: SqueezeNet, SqueezeNext, MobileNet, ShuffleNet.

Each function returns an ONNX model with random weights. Sources: Iandola et al. 2016 (SqueezeNet 1.0);
Gholami et al., SqueezeNext, CVPR Workshops 2018; Howard et al., MobileNets, 2017, table 1; Zhang et al.,
ShuffleNet, CVPR 2018, table 1.
"""

import math

import numpy as np
import onnx
from onnx import helper, numpy_helper


class Net:
    """A model that grows by a layer at a time; values are names, `dims` their shapes."""

    def __init__(self, side: int, bias: bool = False) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.dims = {"data": (1, 3, side, side)}
        self.bias = bias
        self._draw = np.random.default_rng(0)

    def add(self, op: str, inputs: list[str], dims: tuple[int, ...], **attributes: object) -> str:
        """Add a node; return the name of its output, of shape `dims`."""
        name = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        self.dims[name] = dims
        return name

    def weight(self, *dims: int) -> str:
        """Add a weight; return its name."""
        name = f"w{len(self.weights)}"
        values = (self._draw.random(dims, np.float32) - 0.5) / math.sqrt(math.prod(dims[1:]))
        self.weights.append(numpy_helper.from_array(values.astype(np.float32) + (len(dims) == 1), name))
        return name

    def conv(
        self,
        x: str,
        out: int,
        size: tuple[int, int] = (1, 1),
        stride: int = 1,
        pad: tuple[int, int] | None = None,
        group: int = 1,
        norm: bool = True,
        relu: bool = True,
    ) -> str:
        """Add a convolution, padded to keep the size unless `pad` is given, and what follows it."""
        n, channels, *spatial = self.dims[x]
        before = pad or (size[0] // 2, size[1] // 2)
        dims = [(s + 2 * p - k) // stride + 1 for s, p, k in zip(spatial, before, size, strict=True)]
        inputs = [x, self.weight(out, channels // group, *size)]
        if self.bias or not norm:
            inputs.append(self.weight(out))
        shape = (n, out, *dims)
        attributes = {
            "pads": [*before, *before],
            "strides": [stride] * 2,
            "group": group,
            "kernel_shape": size,
        }
        y = self.add("Conv", inputs, shape, **attributes)
        if norm:
            y = self.add("BatchNormalization", [y, *(self.weight(out) for _ in range(4))], shape)
        return self.add("Relu", [y], shape) if relu else y

    def pool(self, x: str, op: str, size: int, stride: int, pad: int = 0, ceil: bool = False) -> str:
        """Add a MaxPool or AveragePool."""
        n, channels, *spatial = self.dims[x]
        whole = [(side + 2 * pad - size) / stride + 1 for side in spatial]
        dims = (n, channels, *(math.ceil(each) if ceil else int(each) for each in whole))
        attributes = {"kernel_shape": [size] * 2, "strides": [stride] * 2, "pads": [pad] * 4}
        return self.add(op, [x], dims, ceil_mode=int(ceil), **attributes)

    def head(self, x: str, classes: int = 1000, bias: bool = True) -> onnx.ModelProto:
        """Add global average pooling, a fully connected layer and Softmax; return the model."""
        n, channels = self.dims[x][:2]
        y = self.add("GlobalAveragePool", [x], (n, channels, 1, 1))
        y = self.add("Flatten", [y], (n, channels))
        weights = [self.weight(classes, channels), *([self.weight(classes)] if bias else [])]
        y = self.add("Gemm", [y, *weights], (n, classes), transB=1)
        return self.model(self.add("Softmax", [y], (n, classes)))

    def model(self, y: str) -> onnx.ModelProto:
        """Return the model with the output `y`."""
        kind = onnx.TensorProto.FLOAT
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("data", kind, self.dims["data"])],
            [helper.make_tensor_value_info(y, kind, self.dims[y])],
            self.weights,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def squeezenet(side: int = 227) -> onnx.ModelProto:
    """SqueezeNet 1.0."""
    net = Net(side, bias=True)
    x = net.conv("data", 96, (7, 7), 2, (0, 0), norm=False)
    fires = [(16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256)]
    for number, (squeeze, expand) in enumerate(fires):
        if number in (0, 3, 7):
            x = net.pool(x, "MaxPool", 3, 2, ceil=True)
        x = net.conv(x, squeeze, norm=False)
        one, three = net.conv(x, expand, norm=False), net.conv(x, expand, (3, 3), norm=False)
        n, channels, *spatial = net.dims[one]
        x = net.add("Concat", [one, three], (n, 2 * channels, *spatial), axis=1)
    x = net.conv(x, 1000, pad=(1, 1), norm=False)
    x = net.add("GlobalAveragePool", [x], (1, 1000, 1, 1))
    return net.model(net.add("Softmax", [x], (1, 1000, 1, 1), axis=1))


def squeezenext(
    width: int = 1, depths: tuple[int, ...] = (6, 6, 8, 1), kernel: int = 7, group: int = 1
) -> onnx.ModelProto:
    """SqueezeNext with 23 modules; `group` is that of its 3x1, 1x3 and first 1x1 convolutions.

    For images of 224 x 224, from which a padded pooling makes the 55 x 55 that the published 227 x 227 give.
    """
    net = Net(224)
    x = net.conv("data", 64, (kernel, kernel), 2, (0, 0))
    x = net.pool(x, "MaxPool", 3, 2, 1)
    for stage, (out, depth) in enumerate(zip((32, 64, 128, 256), depths, strict=True)):
        for block in range(depth):
            x = _module(net, x, out * width, 2 if stage and not block else 1, group)
    return net.head(net.conv(x, 128), bias=False)


def _module(net: Net, x: str, out: int, stride: int, group: int) -> str:
    """Add a module of SqueezeNext: two 1x1 that narrow, 3x1 and 1x3, a 1x1 that widens, and a shortcut."""
    channels = net.dims[x][1]
    half = out // 2
    y = net.conv(x, half, stride=stride, group=group)
    y = net.conv(y, half // 2)
    y = net.conv(y, half, (1, 3), group=group)
    y = net.conv(y, half, (3, 1), group=group)
    y = net.conv(y, out)
    if stride == 2 or channels != out:
        x = net.conv(x, out, stride=stride)
    y = net.add("Add", [x, y], net.dims[y])
    return net.add("Relu", [y], net.dims[y])


def mobilenet() -> onnx.ModelProto:
    """1.0 MobileNet-224."""
    net = Net(224)
    x = net.conv("data", 32, (3, 3), 2)
    plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    for out, stride in plan:
        channels = net.dims[x][1]
        x = net.conv(x, channels, (3, 3), stride, group=channels)
        x = net.conv(x, out)
    return net.head(x)


def shufflenet(groups: int) -> onnx.ModelProto:
    """ShuffleNet 1x with so many groups, at 224 x 224."""
    net = Net(224)
    x = net.pool(net.conv("data", 24, (3, 3), 2), "MaxPool", 3, 2, 1)
    first = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}[groups]
    for stage, repeat in enumerate((3, 7, 3)):
        out = first * 2**stage
        for block in range(repeat + 1):
            x = _shuffle_unit(net, x, out, 1 if block else 2, groups, 1 if not (stage or block) else groups)
    return net.head(x)


def _shuffle_unit(net: Net, x: str, out: int, stride: int, groups: int, entry: int) -> str:
    """Add a unit of ShuffleNet; its first convolution, in `entry` groups, has a quarter of the outputs."""
    n, channels = net.dims[x][:2]
    y = net.conv(x, out // 4, group=entry)
    spatial = net.dims[y][2:]
    split = numpy_helper.from_array(np.array([n, groups, -1, *spatial]), f"split{len(net.nodes)}")
    joined = numpy_helper.from_array(np.array([n, -1, *spatial]), f"joined{len(net.nodes)}")
    net.weights += [split, joined]
    y = net.add("Reshape", [y, split.name], (n, groups, out // 4 // groups, *spatial))
    y = net.add("Transpose", [y], (n, out // 4 // groups, groups, *spatial), perm=[0, 2, 1, 3, 4])
    y = net.add("Reshape", [y, joined.name], (n, out // 4, *spatial))
    y = net.conv(y, out // 4, (3, 3), stride, group=out // 4, relu=False)
    if stride == 1:
        y = net.conv(y, out, group=groups, relu=False)
        y = net.add("Add", [x, y], net.dims[y])
    else:
        y = net.conv(y, out - channels, group=groups, relu=False)
        pooled = net.pool(x, "AveragePool", 3, 2, 1)
        y = net.add("Concat", [pooled, y], (n, out, *net.dims[y][2:]), axis=1)
    return net.add("Relu", [y], net.dims[y])
