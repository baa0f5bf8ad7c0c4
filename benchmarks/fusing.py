"""Two layers and the one that computes the same, timed in turns: where does one layer pay?

    python benchmarks/fusing.py [MODEL ...]

Each row of the first table is a pair of layers without anything in between. "breaks even at" is how many
multiply-adds a moved element must stand for so that both cost the same; MACS_PER_ELEMENT of cost.py should
lie above it where the ratio (one layer to two) is below 1, and below it where it is above. "merged by" tells
what multiply-adds alone, the price of cost.py (when=cheaper) and time (when=faster) decide. The second table
is of a block of SqueezeNext and of the models given: how many merges each way does, and how long the whole
model then takes. One thread, batch 1.
"""

import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir

from onnxcompress import Context
from onnxcompress.cost import MACS_PER_ELEMENT
from onnxcompress.data import random_data
from onnxcompress.measure import latencies
from onnxcompress.model import clone, load
from onnxcompress.parts import faster
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
    """Print a row for each pair, and one for each model and way."""
    print("| pair | channels | size | ratio | breaks even at | merged by |")
    print("|---|---|---|---|---|---|")
    wrong = {"macs": 0, "price": 0}
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
        ways = {
            "macs": numbers["macs_after"] <= numbers["macs_before"],
            "price": even <= MACS_PER_ELEMENT,
            "time": faster(found),
        }
        for way in wrong:
            wrong[way] += ways[way] != ways["time"]
        said = ", ".join(way for way, merged in ways.items() if merged) or "none"
        print(f"| {name} | {channels} | {size} | {ratio} | {even:.0f} | {said} |", flush=True)
    print(f"\nfuse counts an element as {MACS_PER_ELEMENT} multiply-adds")
    print(
        f"of {len(PAIRS)} pairs, time disagrees with {wrong['macs']} by macs and {wrong['price']} by price\n"
    )
    print("| model | when | merged | stay | ratio of the whole model |")
    print("|---|---|---|---|---|")
    for path in sys.argv[1:]:
        whole(Path(path).stem, load(path), engine)
    for channels, size in ((16, 28), (64, 28), (128, 14)):
        whole(f"SqueezeNext block, {channels} at {size}", squeezenext(channels, size), engine)


def whole(name: str, model: ir.Model, engine: OnnxRuntime) -> None:
    """Print a row for each way to fuse `model`."""
    (feeds,) = random_data(model, count=1)
    for when in ("always", "cheaper", "faster"):
        fused = clone(model)
        records = Fuse(when=when).call(fused, Context(runtime=engine, threads=1)).records
        tried = [record for record in records if "macs_before" in record.numbers]
        merged = sum(record.changed for record in tried)
        found = latencies([engine.prepare(model), engine.prepare(fused)], feeds, min_pairs=30)[1]
        ratio = f"{found.ratio:.3f} ({found.low:.3f} to {found.high:.3f})"
        print(f"| {name} | {when} | {merged} | {len(tried) - merged} | {ratio} |", flush=True)


def squeezenext(channels: int, size: int) -> ir.Model:
    """Return a block of SqueezeNext without a non-linearity between its 3x1 and 1x3 (Gholami et al.)."""
    draw, weights = np.random.default_rng(0), []

    def conv(place: str, given: str, inputs: int, outputs: int, kernel: tuple[int, int]) -> str:
        array = draw.standard_normal((outputs, inputs, *kernel), np.float32) / np.float32(inputs)
        weights.append(onnx.numpy_helper.from_array(array, f"w{place}"))
        pads = [k // 2 for k in kernel] * 2
        return f"{place} = Conv<pads = {pads}>({given}, w{place})"

    half, quarter = channels // 2, channels // 4
    lines = [
        *(conv("a", "x", channels, half, POINT), "r = Relu(a)", conv("b", "r", half, quarter, POINT)),
        *("s = Relu(b)", conv("c", "s", quarter, half, TALL), conv("d", "c", half, half, WIDE)),
        *("t = Relu(d)", conv("e", "t", half, channels, POINT), "f = Add(e, x)", "y = Relu(f)"),
    ]
    shape = f"float[1, {channels}, {size}, {size}]"
    text = (
        f"""<ir_version: 8, opset_import: ["": 17]> net ({shape} x) => ({shape} y) {{ {" ".join(lines)} }}"""
    )
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(weights)
    return load(model)


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
