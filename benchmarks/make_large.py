"""Make a model that is larger than memory should have to be.

    python benchmarks/make_large.py large.onnx --gigabytes 3
    python benchmarks/make_large.py decoder.onnx --decoder 32

Two convolutions and a stack of Gemm and MatMul with ReLUs, float32, symbolic batch, weights of 48 to 128 MiB
each in external data. The values are drawn while the file is written, from a seed: the same file every time.

With --decoder: a language model with so many layers, float16, as wide as those of 7 billion parameters, which
have 32 layers: 6.7 billion numbers, 13.5 GB. See :mod:`decoder`.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import decoder
import numpy as np
import onnx_ir as ir

from onnxcompress.model import lazy, save

CHANNELS, NARROW, WIDE = 1536, 4096, 8192
SEED = 2015


def make(path: Path, gigabytes: float) -> None:
    """Write a model with about `gigabytes` (10^9 bytes) of weights to `path`, its data beside it."""
    save(model(round(gigabytes * 1e9)), path, external_data=True)


def model(size: int) -> ir.Model:
    """Return the model with at least `size` bytes of weights, of which none is in memory."""
    stack = Stack()
    for _ in range(2):
        stack.add("Conv", (CHANNELS, CHANNELS, 3, 3), (CHANNELS,), pads=[1, 1, 1, 1])
    stack.add("GlobalAveragePool")
    stack.add("Flatten")
    width = CHANNELS
    while stack.size < size:
        target = NARROW if width == WIDE else WIDE
        if len(stack.nodes) % 4:
            stack.add("Gemm", (target, width), (target,), transB=1)
        else:
            stack.add("MatMul", (width, target))
        stack.add("Relu")
        width = target
    stack.add("MatMul", (width, 10))
    stack.value.name = "y"
    stack.value.type, stack.value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(("N", 10))
    graph = ir.Graph(
        [stack.input],
        [stack.value],
        nodes=stack.nodes,
        initializers=stack.weights,
        opset_imports={"": 17},
        name="large",
    )
    return ir.Model(graph, ir_version=8, producer_name="make_large")


class Stack:
    """Nodes in a row, each reading what the one before it makes."""

    def __init__(self) -> None:
        shape = ir.Shape(("N", CHANNELS, 4, 4))
        self.input = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=shape)
        self.value = self.input
        self.nodes: list[ir.Node] = []
        self.weights: list[ir.Value] = []

    @property
    def size(self) -> int:
        """The bytes of all weights."""
        return sum(each.const_value.nbytes for each in self.weights)

    def add(self, op: str, *shapes: Sequence[int], **attributes: int | Sequence[int]) -> None:
        """Add a node with weights of these `shapes`."""
        weights = [self._weight(shape) for shape in shapes]
        self.weights += weights
        node = ir.node(op, [self.value, *weights], attributes, name=f"{op}_{len(self.nodes)}")
        self.nodes.append(node)
        self.value = node.outputs[0]
        self.value.name = f"v{len(self.nodes)}"

    def _weight(self, shape: Sequence[int]) -> ir.Value:
        name = f"w{len(self.nodes)}_{len(shape)}d"
        seed = ir.tensor(np.array([SEED, len(self.nodes), len(shape)]), name=name)
        tensor = lazy(seed, partial(drawn, shape=tuple(shape)), ir.DataType.FLOAT, shape)
        return ir.Value(
            name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape), const_value=tensor
        )


def drawn(seed: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return normal float32 numbers of `shape` that keep the variance of what they are multiplied with."""
    inputs = int(np.prod(shape[1:])) if len(shape) > 1 else 1_000_000
    values = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    values *= np.float32(np.sqrt(2 / inputs))
    return values


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Make a large model.")
    parser.add_argument("path", type=Path)
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--decoder", type=int, metavar="LAYERS")
    arguments = parser.parse_args()
    if arguments.decoder is None:
        make(arguments.path, arguments.gigabytes)
    else:
        save(decoder.model(arguments.decoder), arguments.path, external_data=True, jobs=0)


if __name__ == "__main__":
    main()
