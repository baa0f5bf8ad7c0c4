"""What each node of a model costs: a row of the table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxcompress.analysis.settle import Settled
from onnxcompress.cost import GATES, PRODUCTS, node_cost
from onnxcompress.crossbar import WEIGHT_BITS, Crossbars, crossbars
from onnxcompress.energy import Energy, Spent
from onnxcompress.layers import constant
from onnxcompress.liveness import read_by
from onnxcompress.model import MappedTensor
from onnxcompress.target import Machine

# operator -> the inputs that may be weights, each element of which is used equally often
_WEIGHTS = {
    **dict.fromkeys(("Conv", "ConvInteger", "ConvTranspose"), (1,)),
    **dict.fromkeys(("Gemm", "MatMul", "MatMulInteger"), (0, 1)),
    **dict.fromkeys(GATES, (1, 2)),
    "QLinearConv": (3,),
    "QLinearMatMul": (0, 3),
}

# What engines compute with a product as its results come, or put into its weights.
_JOINED = ("BatchNormalization", "Clip", "HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Tanh")


@dataclass
class Row:
    """One node, or all of them together. Whatever shapes don't tell, or nobody counts, is None.

    `bits` are those of the numbers multiplied, `macs` all multiply-adds and `effective_macs` those with a
    weight that isn't zero. `read` and `written` are elements of activations. Bytes: `stored_bytes` of its
    weights in the file, `weight_bytes` of them in an engine's memory, `moved_bytes` of weights, inputs and
    outputs, each once, and none where engines compute the node with the product before it. Energies are
    picojoules, times seconds. `seconds` was measured, of all nodes that the engine made one with this one,
    and is None where it is counted at the node `measured_with`.
    """

    name: str
    op: str
    matrix: str | None = None  # gemm, or gemv: products of a matrix with one vector
    bits: int = 32
    parameters: int = 0
    nonzeros: int = 0
    stored_bytes: int = 0
    weight_bytes: int = 0
    macs: int | None = None
    effective_macs: int | None = None
    read: int | None = None
    written: int | None = None
    moved_bytes: int | None = None
    compute_energy: float | None = None
    sram_energy: float | None = None
    dram_energy: float | None = None
    roofline_seconds: float | None = None
    bound: str | None = None  # what the roofline says it waits for: compute or memory
    seconds: float | None = None
    measured_with: str | None = None
    crossbars: Crossbars | None = None
    unknown: str | None = None  # why counts are None

    @property
    def kind(self) -> str:
        """What nodes alike are called: the operator, whether it multiplies a vector, and bits where few."""
        return " ".join(
            filter(None, (self.op, self.matrix, f"int{self.bits}" if self.macs and self.bits <= 8 else ""))
        )

    @property
    def energy(self) -> float | None:
        """Picojoules of computing and moving."""
        return _sum(self.compute_energy, self.sram_energy, self.dram_energy)

    @property
    def macs_per_parameter(self) -> float | None:
        """How often each parameter is used."""
        return _ratio(self.macs, self.parameters)

    @property
    def macs_per_activation(self) -> float | None:
        """Multiply-adds for each element of activations written."""
        return _ratio(self.macs, self.written)

    @property
    def intensity(self) -> float | None:
        """Multiply-adds for each byte moved."""
        return _ratio(self.macs, self.moved_bytes)


def _ratio(over: float | None, under: float | None) -> float | None:
    return over / under if over is not None and under else None


def _sum(*parts: float | None) -> float | None:
    return sum(part for part in parts if part is not None) if None not in parts else None


class Counter:
    """Counts the nodes of a settled model; each weight is read once."""

    def __init__(self, settled: Settled, crossbar: tuple[int, int] | None) -> None:
        self._settled = settled
        self._crossbar = crossbar
        self._nonzeros: dict[ir.Value, int] = {}

    def rows(self) -> Iterator[Row]:
        """Yield the row of each node of the main graph, in the file's order."""
        for node in self._settled.model.graph:
            row = Row(node.name or "", node.op_type)
            weights = self.weights(node)
            row.parameters, row.nonzeros, row.stored_bytes = self.stored(weights)
            row.weight_bytes = sum(self.held(node, weights).values())
            row.bits = _bits(node)
            if (cost := node_cost(node)) is None:
                row.unknown = _reason(node)
            else:
                row.macs, row.read, row.written = cost.macs, cost.read, cost.written
                row.effective_macs = self._effective(node, cost.macs)
                moved = _bytes(node.outputs) if cost.written else 0
                moved += _bytes(node.inputs) if cost.read else 0
                row.moved_bytes = moved + (row.weight_bytes if cost.parameters else 0)
                if self._joined(node):
                    row.moved_bytes = 0
                row.matrix = _matrix(node)
                if self._crossbar and row.matrix:
                    row.crossbars = self._crossbars(node, self._crossbar)
            yield row

    def _joined(self, node: ir.Node) -> bool:
        """Return whether engines compute `node` with the product before it, which writes the result."""
        value = node.inputs[0] if node.op_type in _JOINED and node.domain in ("", "ai.onnx") else None
        maker = value.producer() if value is not None else None
        if maker is None or value is None or len(value.uses()) > 1 or value.is_graph_output():
            return False
        return maker.op_type in PRODUCTS or self._joined(maker)

    def weights(self, node: ir.Node) -> dict[ir.Value, ir.TensorProtocol]:
        """Return the constants that `node`, or a graph inside it, reads, and their tensors."""
        found = {value: constant(value) for value in read_by(node)}
        return {
            value: tensor
            for value, tensor in found.items()
            if tensor is not None and tensor.dtype is not ir.DataType.STRING
        }

    def held(self, node: ir.Node, weights: dict[ir.Value, ir.TensorProtocol]) -> dict[ir.Value, int]:
        """Return the bytes of the `weights` of `node` in an engine's memory."""
        small = self._settled.held if _bits(node) <= 8 else {}
        return {value: small.get(value, tensor.nbytes) for value, tensor in weights.items()}

    def stored(self, weights: Mapping[ir.Value, ir.TensorProtocol]) -> tuple[int, int, int]:
        """Return the elements of `weights`, those that aren't zero, and their bytes in the file."""
        elements = sum(tensor.size for tensor in weights.values())
        stored = (self._settled.stored.get(value, tensor.nbytes) for value, tensor in weights.items())
        return elements, sum(map(self.nonzeros, weights)), sum(stored)

    def total(self, rows: Iterable[Row]) -> Row:
        """Return the sums of what is known of `rows`; a weight that several nodes read counts once."""
        rows = list(rows)
        total = Row("all", "")
        for name in ("macs", "effective_macs", "read", "written", "moved_bytes"):
            setattr(total, name, sum(getattr(row, name) or 0 for row in rows))
        found = [row.crossbars for row in rows if row.crossbars]
        total.crossbars = Crossbars(*map(sum, zip(*found, strict=True))) if found else None
        total.bits = max((row.bits for row in rows if row.macs), default=total.bits)
        missing = sum(row.unknown is not None for row in rows)
        total.unknown = f"without {missing} nodes that are not counted" if missing else None
        weights: dict[ir.Value, tuple[ir.Value, ir.TensorProtocol]] = {}
        held: dict[ir.Value, int] = {}
        for node in self._settled.model.graph:
            own = self.weights(node)
            for value, tensor in own.items():
                weights.setdefault(self._settled.origins.get(value, value), (value, tensor))
            for value, size in self.held(node, own).items():
                held[value] = max(size, held.get(value, 0))
        total.parameters, total.nonzeros, total.stored_bytes = self.stored(dict(weights.values()))
        total.weight_bytes = sum(held.values())
        return total

    def nonzeros(self, value: ir.Value) -> int:
        """Return how many elements of the constant `value` aren't zero."""
        if value not in self._nonzeros:
            tensor = constant(value)
            assert tensor is not None
            self._nonzeros[value] = int(np.count_nonzero(tensor.numpy()))
            if isinstance(tensor, MappedTensor):
                tensor.release()
        return self._nonzeros[value]

    def _effective(self, node: ir.Node, macs: int) -> int:
        """Return how many of `macs` are with a weight that isn't zero; each weight is used equally often."""
        values = [node.inputs[place] for place in _WEIGHTS.get(node.op_type, ())]
        weights = [value for value in values if value is not None and constant(value) is not None]
        sizes = [tensor.size for value in weights if (tensor := constant(value)) is not None]
        return macs * sum(map(self.nonzeros, weights)) // sum(sizes) if sum(sizes) else macs

    def _crossbars(self, node: ir.Node, size: tuple[int, int]) -> Crossbars | None:
        """Return the crossbars that the weight of a Conv, Gemm or MatMul takes; None of others."""
        value = node.inputs[1] if node.op_type in ("Conv", "Gemm", "MatMul") else None
        tensor = constant(value)
        if tensor is None or len(tensor.shape) < 2:
            return None
        weight, groups = tensor.numpy(), 1
        if node.op_type == "Conv":
            groups = node.attributes.get_int("group", 1)
            weight = weight.reshape(groups, -1, math.prod(weight.shape[1:])).swapaxes(1, 2)
        elif node.attributes.get_int("transB", 0):
            weight = weight.T
        matrices = weight.reshape(-1, *weight.shape[-2:])
        return crossbars(matrices, size, 8 if _bits(node) <= 8 else WEIGHT_BITS)


def spend(row: Row, energy: Energy, machine: Machine | None, off_chip: int) -> None:
    """Fill in the energies of `row`, of whose bytes moved `off_chip` come from outside, and its roofline."""
    if row.macs is None or row.moved_bytes is None:
        return
    row.compute_energy = energy.compute(row.macs, row.bits)
    row.sram_energy, row.dram_energy = energy.moving(row.moved_bytes, off_chip)
    if machine is not None:
        computing, moving = machine.seconds(row.macs, row.bits, off_chip)
        row.roofline_seconds = max(computing, moving)
        row.bound = ("compute" if computing >= moving else "memory") if row.roofline_seconds else None


def spent_by_kind(rows: Iterable[Row]) -> list[Spent]:
    """Return the energy of nodes by their kind, the most first; kinds that take none are left out."""
    kinds: dict[tuple[str, bool], list[Row]] = {}
    for row in rows:
        kinds.setdefault((row.kind, row.energy is None), []).append(row)
    found = []
    for (kind, unknown), alike in kinds.items():
        names = ("compute_energy", "sram_energy", "dram_energy")
        parts = [None if unknown else sum(getattr(row, name) for row in alike) for name in names]
        if unknown or sum(filter(None, parts)):
            found.append(Spent(kind, len(alike), *parts))
    return sorted(found, key=lambda each: -each.total)


def bytes_of(value: ir.Value) -> int | None:
    """Return the bytes of a value that isn't constant; None where its shape or type isn't known."""
    if value.shape is None or value.dtype in (None, ir.DataType.STRING, ir.DataType.UNDEFINED):
        return None
    dims = [dim for dim in value.shape if isinstance(dim, int)]
    if len(dims) < len(value.shape):
        return None
    assert value.dtype is not None
    return math.ceil(math.prod(dims) * value.dtype.bitwidth / 8)


def _bytes(values: Iterable[ir.Value | None]) -> int:
    """Return the bytes of those `values` that aren't constant."""
    return sum(bytes_of(value) or 0 for value in values if value is not None and constant(value) is None)


def _bits(node: ir.Node) -> int:
    """Return the bits of the numbers that `node` computes with: those of its first input."""
    value = next((each for each in node.inputs if each is not None), None)
    kind = value.dtype if value is not None else None
    return 32 if kind is None or kind in (ir.DataType.STRING, ir.DataType.UNDEFINED) else kind.bitwidth


def _reason(node: ir.Node) -> str:
    """Return why what `node` costs isn't known."""
    if node.domain not in ("", "ai.onnx"):
        return f"the operator is of {node.domain}"
    if any(
        each.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for each in node.attributes.values()
    ):
        return "how often its graph runs depends on the data"
    unshaped = [value for value in (*node.inputs, *node.outputs) if value is not None and value.name]
    if any(constant(value) is None and bytes_of(value) is None for value in unshaped):
        return "shapes depend on the data"
    return "its arithmetic is not counted"


def _matrix(node: ir.Node) -> str | None:
    """Return whether products of `node` are of two matrices, or of a matrix and a vector.

    A convolution multiplies, in each of its groups, a matrix of as many rows as it has output channels with
    one of as many columns as there are positions; GEMV is where either is one.
    """
    if node.op_type in GATES:
        x = node.inputs[0]
        batch = x.shape[0 if node.attributes.get_int("layout", 0) else 1] if x is not None and x.shape else 1
        return "gemv" if batch == 1 else "gemm"
    if node.op_type not in PRODUCTS:
        return None
    out = node.outputs[0].shape
    assert out is not None
    dims = [dim for dim in out if isinstance(dim, int)]
    if node.op_type in ("Conv", "ConvInteger", "QLinearConv", "ConvTranspose"):
        rows, columns = dims[1] // node.attributes.get_int("group", 1), dims[0] * math.prod(dims[2:])
    else:
        other = node.inputs[3 if node.op_type == "QLinearMatMul" else 1]
        flat = other is not None and other.shape is not None and len(other.shape) < 3
        columns = dims[-1] if dims and (other is None or other.shape is None or len(other.shape) > 1) else 1
        rows = math.prod(dims) // max(columns, 1) if flat else math.prod(dims[-2:-1])
    return "gemv" if 1 in (rows, columns) else "gemm"
