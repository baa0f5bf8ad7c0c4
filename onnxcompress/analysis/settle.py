"""A model made ready to be counted: shapes are numbers, weights plain, int8 operations seen as such."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir
import onnx_ir.passes.common as common

from onnxcompress.channels.example import Example
from onnxcompress.cost import PRODUCTS
from onnxcompress.data.inputs import inputs_of
from onnxcompress.formats.unpack import is_encoded, ledger, unpack
from onnxcompress.layers import constant
from onnxcompress.model import SparseTensor, clone, external_files, load, tensors, weight_bytes

# They make as many elements as the data have it.
_OPEN_ENDED = ("Compress", "NonMaxSuppression", "NonZero", "StringSplit", "Unique")


@dataclass
class Settled:
    """A copy of a model to be counted, for inputs of `shapes`; `file_bytes` is its size.

    Every node has a name of its own. Weights that nodes compute from constants are initializers. Operators
    between DequantizeLinear and QuantizeLinear read and make the quantized values themselves. `stored` are
    the bytes of weights in the file, `held` those an engine keeps in memory, where either isn't what the
    tensor says; `origins` are the constants of their size that computed weights come from. `plain` is the
    model before that, with the same names, weights plain and functions in line.
    """

    model: ir.Model
    plain: ir.Model
    shapes: dict[str, tuple[int, ...]]
    file_bytes: int
    stored: dict[ir.Value, int] = field(default_factory=dict)
    held: dict[ir.Value, int] = field(default_factory=dict)
    origins: dict[ir.Value, ir.Value] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def settle(source: str | Path | ir.Model, shapes: Mapping[str, tuple[int, ...]]) -> Settled:
    """Return the model `source`, a path or in memory, ready to be counted; dimensions left open are 1.

    Raises UsageError where `shapes` contradict the model, CompressError where it can't be read.
    """
    model = load(source)
    given = {name: each.dims or () for name, each in inputs_of(model, shapes).items()}
    if isinstance(source, ir.Model):
        size = weight_bytes(model)
    else:
        size = Path(source).stat().st_size + sum(external_files(model, source).values())
    rows = {}
    if is_encoded(model) or any(isinstance(each, SparseTensor) for each in tensors(model)):
        rows = {row.name: row.bytes for row in ledger(source) if row.name}
        unpack(model, sparse=True)
    if model.functions:
        model = common.InlinePass()(model).model
    _name(model.graph)
    example = Example(model, given)
    shape_of = {each.name or "": example.shape(each) or () for each in model.graph.inputs}
    settled = Settled(model, clone(model), shape_of, size)
    settled.stored = {value: rows[name] for name, value in model.graph.initializers.items() if name in rows}
    for value in _values(model.graph):
        if (shape := example.shape(value)) is not None:
            value.shape = ir.Shape(shape)
        if value.dtype is None and (kind := example.kind(value)):
            value.dtype = ir.DataType(kind)
    _fold(settled, example)
    _bypass(settled)
    if names := [node.name or "" for node in settled.model.graph if node.op_type in _OPEN_ENDED]:
        settled.notes.append(f"how much {', '.join(names)} make depends on the data: counted as one")
    return settled


def _name(graph: ir.Graph) -> None:
    """Give each node a name of its own: that of its first output where it has none."""
    names: set[str] = set()
    for node in graph:
        name = node.name or node.outputs[0].name or node.op_type
        while name in names:
            name += "_"
        node.name = name
        names.add(name)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph:
        yield from node.outputs


def _fold(settled: Settled, example: Example) -> None:
    """Make initializers of what nodes compute from constants alone, as engines do when they load a model."""
    graph = settled.model.graph
    fixed = [
        node
        for node in graph
        if all(example.fixed(value) and not value.is_graph_output() for value in node.outputs)
    ]
    gone = set(fixed)
    for node in fixed:
        for value in node.outputs:
            users = [(user, place) for user, place in value.uses() if user not in gone]
            if users and constant(value) is None and value.dtype is not None and value.shape is not None:
                new = _initializer(value, example)
                graph.register_initializer(new)
                for user, place in users:
                    user.replace_input_with(place, new)
                tensors = dict(_roots(value))
                stored = (settled.stored.get(each, tensor.nbytes) for each, tensor in tensors.items())
                settled.stored[new] = sum(stored)
                alike = [
                    each for each, tensor in tensors.items() if tensor.size == math.prod(value.shape.numpy())
                ]
                if len(alike) == 1:
                    settled.origins[new] = alike[0]
                source = constant(node.inputs[0]) if node.op_type == "DequantizeLinear" else None
                if source is not None:
                    settled.held[new] = source.nbytes
    graph.remove(fixed)


def _initializer(value: ir.Value, example: Example) -> ir.Value:
    """Return an initializer with what `value` always holds, made when it is read; it takes over the name."""
    assert value.dtype is not None
    assert value.shape is not None
    dtype, name = value.dtype, value.name
    tensor = ir.LazyTensor(
        lambda: ir.Tensor(example.content(value), dtype=dtype, name=name), dtype, value.shape, name=name
    )
    value.name = f"{name} before folding"
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=value.shape, const_value=tensor)


def _roots(value: ir.Value) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    """Yield the constants that `value` is computed from."""
    node, tensor = value.producer(), constant(value)
    if tensor is not None:
        yield value, tensor
    elif node is not None:
        for each in node.inputs:
            yield from () if each is None else _roots(each)


def _bypass(settled: Settled) -> None:
    """Let operators between DequantizeLinear and QuantizeLinear read and make the quantized values.

    That is how engines with int8 kernels run them; a Relu or Clip may stand before QuantizeLinear. A product
    whose result isn't quantized again counts as such, too. What quantizes or dequantizes for other operators
    stays a node of its own.
    """
    graph = settled.model.graph
    small: set[ir.Node] = set()
    joined: list[ir.Node] = []
    for node in list(graph):
        data = [
            (place, value) for place, value in enumerate(node.inputs) if value and constant(value) is None
        ]
        makers = [value.producer() for _, value in data]
        clipped = node.op_type in ("Clip", "Relu") and makers[:1] != [] and makers[0] in small
        if not data or not (clipped or all(map(_dequantizes, makers))) or not _small(node, settled):
            continue
        readers = [user for value in node.outputs for user, _ in value.uses()]
        ends = bool(readers) and all(user.op_type == "QuantizeLinear" for user in readers)
        ends = ends and not any(value.is_graph_output() for value in node.outputs)
        if not ends and (clipped or node.op_type not in PRODUCTS):
            continue
        for (place, value), maker in zip(data, makers, strict=True):
            if clipped:
                value.type = readers[0].outputs[0].type
            elif maker is not None:
                node.replace_input_with(place, maker.inputs[0])
        if len(readers) == 1 and readers[0].op_type in ("Clip", "Relu"):
            small.add(node)
        for user in readers if ends else ():
            made, value = user.outputs[0], node.outputs[0]
            ir.convenience.replace_all_uses_with(made, value, replace_graph_outputs=True)
            value.type = made.type
        joined += readers if ends else []
        graph.remove(readers if ends else ())
    spare = [node for node in graph if _dequantizes(node) and not node.outputs[0].uses()]
    spare = [node for node in spare if not node.outputs[0].is_graph_output()]
    graph.remove(spare)
    if joined or spare:
        settled.notes.append(
            f"{len(joined)} QuantizeLinear and {len(spare)} DequantizeLinear count as part of int8 operations"
        )


def _dequantizes(node: ir.Node | None) -> bool:
    return node is not None and node.op_type == "DequantizeLinear" and node.domain in ("", "ai.onnx")


def _small(node: ir.Node, settled: Settled) -> bool:
    """Return whether the constants that `node` multiplies with are stored in 8 bits or fewer."""
    if node.domain not in ("", "ai.onnx") or node.op_type in ("DequantizeLinear", "QuantizeLinear"):
        return False
    weights = node.inputs[:2] if node.op_type in PRODUCTS else ()
    return all(
        value in settled.held for value in weights if value is not None and constant(value) is not None
    )
