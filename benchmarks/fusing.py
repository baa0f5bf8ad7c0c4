"""Two layers and the one that computes the same, timed in turns: where does one layer pay?

    python benchmarks/fusing.py

Each row is a pair of layers without anything in between. "breaks even at" is how many multiply-adds a moved
element must stand for so that both cost the same; MACS_PER_ELEMENT of cost.py should lie above it where the
ratio (one layer to two) is below 1, and below it where it is above. One thread, batch 1.
"""

import numpy as np
import onnx
import onnx_ir as ir

from onnxcompress import Context
from onnxcompress.cost import MACS_PER_ELEMENT
from onnxcompress.measure import latencies
from onnxcompress.model import clone, load
from onnxcompress.passes import Fuse
from onnxcompress.runtimes import OnnxRuntime

TALL, WIDE, SMALL, POINT = (3, 1), (1, 3), (3, 3), (1, 1)
PAIRS = [
    *(
        ("3x1, 1x3", (c, TALL, 1), (c, WIDE, 1), c, n)
        for c, n in [(4, 64), (8, 64), (16, 56), (32, 28), (64, 28)]
    ),
    *(
        ("depthwise, 1x1", (c, SMALL, c), (c, POINT, 1), c, n)
        for c, n in [(4, 64), (8, 64), (16, 56), (32, 56)]
    ),
    *(("1x1, 1x1", (c // 4, POINT, 1), (c, POINT, 1), c, 56) for c in (8, 16, 32, 64)),
    *(("1x1, 3x3", (c, POINT, 1), (c, SMALL, 1), c, 56) for c in (8, 16)),
]
Layer = tuple[int, tuple[int, int], int]  # output channels, kernel, groups


def main() -> None:
    """Print a row for each pair."""
    print("| pair | channels | size | ratio | breaks even at |")
    print("|---|---|---|---|---|")
    engine = OnnxRuntime.make(threads=1)
    for name, first, second, channels, size in PAIRS:
        two = network([first, second], channels, size)
        one = clone(two)
        (record,) = Fuse(when="always").call(one, Context()).records
        numbers = {key: int(value) for key, value in record.numbers.items() if key != "second"}
        x = np.random.default_rng(0).standard_normal((1, channels, size, size), np.float32)
        found = latencies([engine.prepare(two), engine.prepare(one)], {"x": x})[1]
        even = (numbers["macs_after"] - numbers["macs_before"]) / (
            numbers["moved_before"] - numbers["moved_after"]
        )
        ratio = f"{found.ratio:.2f} ({found.low:.2f} to {found.high:.2f})"
        print(f"| {name} | {channels} | {size} | {ratio} | {even:.0f} |", flush=True)
    print(f"\nfuse counts an element as {MACS_PER_ELEMENT} multiply-adds")


def network(layers: list[Layer], channels: int, size: int) -> ir.Model:
    """Return convolutions in a row with random weights and SAME padding."""
    draw, nodes, weights, given = np.random.default_rng(0), [], [], "x"
    inputs = channels
    for place, (outputs, kernel, groups) in enumerate(layers):
        shape = (outputs, inputs // groups, *kernel)
        weights.append(onnx.numpy_helper.from_array(draw.standard_normal(shape, np.float32), f"w{place}"))
        pads = [k // 2 for k in kernel] * 2
        made = f"y{place}"
        nodes.append(onnx.helper.make_node("Conv", [given, f"w{place}"], [made], group=groups, pads=pads))
        given, inputs = made, outputs
    ports = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, count, size, size])
        for name, count in (("x", channels), (given, inputs))
    ]
    graph = onnx.helper.make_graph(nodes, "pair", ports[:1], ports[1:], weights)
    return load(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8))


if __name__ == "__main__":
    main()
