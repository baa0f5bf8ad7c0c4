"""Products with weights in blocks beside the float product, in stock onnxruntime.

    python benchmarks/blocks.py [SIZE]

One Gemm of SIZE x SIZE (4,096), batch 1, one thread: what `quant-blocks` takes by measurement, and each way
by itself. The ratio of the times is to float32, its 95 % interval behind it; the error is that of the output,
relative to the exact product (float64) with the stored weight; bits each count scales. The second table tells
how fast weights are packed, on one core.
"""

import sys
import time

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir

from onnxcompress import Context
from onnxcompress.blocks import BITS, Blocks
from onnxcompress.layers import constant
from onnxcompress.measure import latencies
from onnxcompress.model import clone, load, materialise
from onnxcompress.passes import QuantBlocks
from onnxcompress.runtimes import Interpreter, OnnxRuntime


def main() -> None:
    """Print a row for each kind of weight and way to multiply."""
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 4096
    draw = np.random.default_rng(0)
    x = draw.standard_normal((1, size), np.float32)
    normal = draw.standard_normal((size, size), np.float32) / np.float32(size**0.5)
    ternary = np.sign(normal) * (np.abs(normal) > 0.7 * np.abs(normal).mean()) * np.float32(0.02)
    engine = OnnxRuntime.make(threads=1)
    print(
        "| weight | bits | activations | taken | ratio to float32 | error | bits each | snr of the weight |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, weight, bits in (
        *(("ternary", ternary, 2), ("normal", normal, 2), ("normal", normal, 4), ("normal", normal, 8)),
    ):
        whole = gemm(weight)
        for activations in ("auto", "int8", "float"):
            made = clone(whole)
            options = QuantBlocks(bits=bits, activations=activations, when="always")
            (record,) = options.call(made, Context(runtime=engine, threads=1)).records
            materialise(made)
            found = latencies([engine.prepare(each) for each in (whole, made)], {"x": x}, min_pairs=30)[1]
            exact = x.astype(np.float64) @ stored(made, size)
            (y,) = engine.prepare(made).run({"x": x}).values()
            error = float(np.linalg.norm(y - exact) / np.linalg.norm(exact))
            ratio = f"{found.ratio:.3f} ({found.low:.3f} to {found.high:.3f})"
            numbers = f"{error:.1e} | {record.numbers['bits_each']} | {record.numbers['snr']:.1f} dB"
            way = record.what.partition(", ")[2]
            print(f"| {name} | {bits} | {activations} | {way} | {ratio} | {numbers} |", flush=True)
    print("\n| bits | scales | GB of float32 a second |")
    print("|---|---|---|")
    for bits in BITS:
        for searched in (False, True):
            blocks = Blocks(bits, 32, searched=searched)
            began = time.process_time()
            blocks.store(normal, blocks.fit(normal))
            speed = normal.nbytes / 1e9 / (time.process_time() - began)
            print(f"| {bits} | {'mse' if searched else 'min-max'} | {speed:.2f} |", flush=True)


def gemm(weight: np.ndarray) -> ir.Model:
    """Return a Gemm with `weight` [inputs, outputs]."""
    inputs, outputs = weight.shape
    text = f"""<ir_version: 8, opset_import: ["": 17]>
    net (float[1, {inputs}] x) => (float[1, {outputs}] y) {{ y = Gemm(x, w) }}"""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    return load(proto)


def stored(model: ir.Model, size: int) -> np.ndarray:
    """Return the weight that the one product of `model` has in blocks: float64 [size, size]."""
    assert all(constant(value) is not None for value in model.graph[0].inputs[1:])
    copy = clone(model)
    copy.graph.inputs[0].shape = copy.graph.outputs[0].shape = ir.Shape([size, size])
    (rows,) = Interpreter().prepare(copy).run({"x": np.eye(size, dtype=np.float32)}).values()
    return rows.astype(np.float64)


if __name__ == "__main__":
    main()
