"""Encoded models made plain again, and what each part of a model takes in its file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxcompress.errors import CompressError
from onnxcompress.formats import FORMATS
from onnxcompress.formats.base import DOMAIN, VERSION, Coded, Format, attributes_of, holds
from onnxcompress.formats.elements import Elements
from onnxcompress.formats.huffman import Huffman
from onnxcompress.formats.inlining import CALLS, outline
from onnxcompress.layers import constant, put_constant
from onnxcompress.model import SparseTensor, clone, external_files, graphs, load, to_proto

DEPTH = 16  # functions in one another that make a weight


@dataclass(frozen=True)
class Row:
    """One line of a ledger: a tensor, or what is said in `format`, and the bytes it takes in the file."""

    name: str
    format: str
    bytes: int


def is_encoded(model: ir.Model) -> bool:
    """Return whether weights of `model` are stored in formats of this package."""
    if CALLS in model.metadata_props or any(domain == DOMAIN for domain, _, _ in model.functions):
        return True
    return any(node.domain == DOMAIN for graph in graphs(model) for node in graph)


def unpack(model: ir.Model, *, sparse: bool = False) -> list[str]:
    """Make every encoded weight of `model` a plain initializer again, bit by bit; return their names.

    Functions that nothing calls any more are removed. With `sparse`, sparse tensors become dense ones, too,
    where they have no more elements than ``COO`` may have. CompressError where what is stored makes no sense.
    """
    names = _densify(model) if sparse else []
    outline(model)
    if not is_encoded(model):
        return names
    _check(model)
    found = dict(_weights(model))
    calls = [
        (graph, [node for node in graph if is_decoder(node)])
        for graph in graphs(model)
        if isinstance(graph, ir.Graph)
    ]
    decoder = Decoder()
    for value in found:
        array = decoder(value)
        dtype = decoder.dtypes.get(value)
        _plain(value, array, dtype)
    _tidy(model, calls)
    return names + list(found.values())


def _densify(model: ir.Model) -> list[str]:
    """Make the sparse tensors of `model` dense; return their names."""
    names = []
    for graph in graphs(model):
        made = [node.outputs[0] for node in graph if node.op_type == "Constant" and node.outputs]
        held = () if isinstance(graph, ir.Function) else tuple(graph.initializers.values())
        for value in (*held, *made):
            tensor = constant(value)
            if isinstance(tensor, SparseTensor) and holds(tensor.size, tensor.values.size):
                put_constant(value, ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=value.name))
                names.append(value.name or "")
    return names


def _check(model: ir.Model) -> None:
    """Raise CompressError where `model` is encoded in another version, or its expressions are no trees."""
    version = model.opset_imports.get(DOMAIN, VERSION)
    if version != VERSION:
        raise CompressError(f"{DOMAIN}: is encoded in version {version}, expected {VERSION}")
    depths: dict[ir.Node, int] = {}
    for graph in graphs(model):
        for node in graph if isinstance(graph, ir.Graph) else ():
            if not is_decoder(node):
                continue
            makers = [value.producer() for value in node.inputs if value is not None]
            depths[node] = 1 + max((depths.get(each, 0) for each in makers if each is not None), default=0)
            readers = sum(user.domain == DOMAIN for value in node.outputs for user, _ in value.uses())
            shared = node.op_type == "Split" or node.op_type.startswith("Huffman")
            if depths[node] > DEPTH or (readers > 1 and not shared):
                name = node.outputs[0].name if node.outputs else node.op_type
                raise CompressError(f"{name}: is nested deeper than {DEPTH} functions, or read by {readers}")


def _weights(model: ir.Model) -> Iterator[tuple[ir.Value, str]]:
    """Yield the values that formats compute and that others read, with their names."""
    for graph in graphs(model):
        if isinstance(graph, ir.Function):
            continue
        for node in graph:
            if not is_decoder(node):
                continue
            for value in node.outputs:
                read = any(not is_decoder(user) or user.op_type == "Identity" for user, _ in value.uses())
                if value.is_graph_output() or read:
                    yield value, value.name or ""


def is_decoder(node: ir.Node) -> bool:
    """Return whether `node` is a call of a format, the Split of a decoder's result, or a tied weight."""
    if node.domain == DOMAIN:
        return True
    if node.op_type not in ("Split", "Identity") or not node.inputs or node.inputs[0] is None:
        return False
    source = node.inputs[0].producer()
    return source is not None and source.domain == DOMAIN


class Decoder:
    """Computes the values of formats; `dtypes` are those of types that numpy has none of its own for."""

    def __init__(self) -> None:
        self._made: dict[ir.Node, list[np.ndarray]] = {}
        self.dtypes: dict[ir.Value, ir.DataType] = {}

    def __call__(self, value: ir.Value | None) -> np.ndarray:
        """Return what `value` holds."""
        if value is None:
            raise CompressError(f"{DOMAIN}: a function is called without an input")
        tensor = constant(value)
        if tensor is not None:
            return tensor.numpy()
        node = value.producer()
        if node is not None and node.op_type == "Constant" and "value_ints" in node.attributes:
            return np.array(node.attributes["value_ints"].as_ints(), np.int64)
        if node is not None and node.op_type == "Identity" and constant(node.inputs[0]) is not None:
            return self(node.inputs[0])  # of a weight that is plain by now
        if node is None or not is_decoder(node):
            raise CompressError(f"{value.name}: is read by a function of {DOMAIN}, expected a constant")
        if node.op_type == "Identity":
            return self(node.inputs[0])
        if node.domain == DOMAIN and not node.op_type.startswith("Huffman"):
            return self._call(node)
        if node not in self._made:  # read by several
            self._made[node] = self._split(node) if node.op_type == "Split" else [self._call(node)]
        return self._made[node][value.index() or 0]

    def elements(self, value: ir.Value | None) -> Elements | None:
        """Return what `value` holds, not made yet; None where no format that can tell computes it."""
        tensor = constant(value)
        if isinstance(tensor, SparseTensor):
            return _listed(tensor)
        node = value.producer() if value is not None else None
        if node is not None and node.op_type == "Identity":
            return self.elements(node.inputs[0])
        if node is None or node.domain != DOMAIN or node.op_type not in FORMATS:
            return None
        known = _known(node)
        told = self.elements(node.inputs[0]) if isinstance(known, Coded) else None
        codes = told.looked_up() if told is not None else None
        if isinstance(known, Coded) and codes is not None:
            every = np.append(codes.values, np.asarray(codes.background))
            inputs = [every, *(self(each) for each in node.inputs[1:])]
            with _named(node):
                attributes = attributes_of(node)
                tables, shape = known.tables(inputs, attributes), known.shape(codes.shape, attributes)
            fits = math.prod(shape) == math.prod(codes.shape)
            return replace(codes, shape=shape, tables=tables) if fits else None
        inputs = [self(each) for each in node.inputs]
        with _named(node):
            return known.elements(inputs, attributes_of(node))

    def _call(self, node: ir.Node) -> np.ndarray:
        known = _known(node)
        inputs = [self(each) for each in node.inputs]
        with _named(node):
            return known.decode(inputs, attributes_of(node))

    def _split(self, node: ir.Node) -> list[np.ndarray]:
        whole, sizes = (self(each) for each in node.inputs[:2])
        if sizes.sum() != whole.shape[-1] or (sizes < 0).any() or len(sizes) != len(node.outputs):
            raise CompressError(
                f"{node.outputs[0].name}: {whole.shape[-1]} blocks are split into {sizes.sum()}"
            )
        return np.split(whole, np.cumsum(sizes)[:-1], axis=1)


def _listed(tensor: SparseTensor) -> Elements:
    """Return the elements of a sparse tensor."""
    shape, values, indices = tuple(tensor.shape.numpy()), tensor.values.numpy(), tensor.indices.numpy()
    positions = np.ravel_multi_index(tuple(indices.T), shape) if indices.ndim == 2 else indices
    return Elements(shape, values, np.asarray(positions), np.zeros((), values.dtype))


def _known(node: ir.Node) -> Format:
    """Return the format that `node` is a call of."""
    name = node.outputs[0].name or node.op_type
    if node.op_type not in FORMATS:
        raise CompressError(f"{name}: is stored as {node.op_type}, expected one of {', '.join(FORMATS)}")
    known = FORMATS[node.op_type]
    if len(node.inputs) != known.inputs:
        raise CompressError(f"{name}: has {len(node.inputs)} inputs, expected {known.inputs}")
    return known


@contextmanager
def _named(node: ir.Node) -> Iterator[None]:
    """Say in every error that passes by what `node` computes."""
    try:
        yield
    except CompressError as error:
        raise CompressError(f"{node.outputs[0].name or node.op_type}: {error}") from error


def _plain(value: ir.Value, array: np.ndarray, dtype: ir.DataType | None) -> None:
    """Put an initializer with `array` in the place of `value`."""
    node = value.producer()
    assert node is not None
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    tensor = (
        ir.tensor(array, name=value.name) if dtype is None else ir.Tensor(array, dtype=dtype, name=value.name)
    )
    new = ir.Value(
        name=value.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
    )
    ir.convenience.replace_all_uses_with(value, new, replace_graph_outputs=True)
    value.name = None
    graph.register_initializer(new)


def _tidy(model: ir.Model, calls: Sequence[tuple[ir.Graph, list[ir.Node]]]) -> None:
    """Remove `calls` of formats, by graph, the constants that only they read, and the functions."""
    for graph, gone in reversed(calls):  # inner graphs read what outer ones decode
        constants = {value for node in gone for value in node.inputs if value is not None}
        graph.remove(gone, safe=True)
        for value in constants:
            if value.uses() or value.is_graph_output() or value.is_graph_input():
                continue
            maker = value.producer()
            if maker is not None and maker.graph is not None and maker.op_type == "Constant":
                maker.graph.remove(maker, safe=True)
            elif value.is_initializer() and value.graph is not None:
                del value.graph.initializers[value.name or ""]
    for key in [key for key in model.functions if key[0] == DOMAIN]:
        del model.functions[key]
    model.opset_imports.pop(DOMAIN, None)


def ledger(source: ir.Model | str | Path) -> list[Row]:
    """Return what the parts of a model take in its file: each tensor with its format, decoders, and graph.

    The bytes of all rows together are those of the file, external data included. Decoders are functions, or
    the nodes of those that were written in line.
    """
    model = source if isinstance(source, ir.Model) else load(source)
    if isinstance(source, ir.Model):
        total = to_proto(model).ByteSize()
    else:
        total = Path(source).stat().st_size + sum(external_files(model, source).values())
    model = clone(model)
    decoders = outline(model)
    _check(model)
    if not decoders:
        functions = [each for key, each in model.functions.items() if key[0] == DOMAIN]
        decoders = sum(ir.to_proto(each).ByteSize() + 4 for each in functions)
    rows: list[Row] = []
    counted: set[ir.Value] = set()
    streams = stream_bytes(model, counted)
    for value, name in _weights(model) if is_encoded(model) else ():
        bytes_, formats = _stored(value, streams, counted)
        rows.append(Row(name, formats, bytes_))
    for graph in graphs(model):
        if isinstance(graph, ir.Graph):
            rows += [
                Row(value.name or "", *_plain_row(tensor))
                for value in graph.initializers.values()
                if value not in counted and (tensor := value.const_value) is not None
            ]
    rows.sort(key=lambda row: -row.bytes)
    if decoders:
        rows.append(Row("", "decoders", decoders))
    rows.append(Row("", "graph", total - sum(row.bytes for row in rows)))
    return rows


def _plain_row(tensor: ir.TensorProtocol) -> tuple[str, int]:
    """Return how a tensor that no format computes is stored, and its bytes."""
    if isinstance(tensor, SparseTensor):
        return "COO", tensor.stored_bytes
    return tensor.dtype.name.lower(), tensor.nbytes


def stream_bytes(model: ir.Model, counted: set[ir.Value]) -> dict[ir.Value, int]:
    """Return the bytes of each Huffman coded stream: its bits, block lengths, and codes."""
    found: dict[ir.Value, int] = {}
    decoder = Decoder()
    for node in model.graph:
        known = FORMATS.get(node.op_type) if node.domain == DOMAIN else None
        if not isinstance(known, Huffman):
            continue
        values = [each for each in node.inputs if each is not None]
        arrays = [decoder(each) for each in values]
        counted.update(values)
        users = [user for user, _ in node.outputs[0].uses()]
        split = users[0] if len(users) == 1 and users[0].op_type == "Split" else None
        attributes = attributes_of(node)
        outputs, sizes = node.outputs[:1], [sum(known.each(attributes, "blocks"))]
        if split is not None:
            outputs, sizes = split.outputs, [int(each) for each in decoder(split.inputs[1])]
            counted.update(each for each in split.inputs[1:] if each is not None)
        found.update(zip(outputs, known.stream_bytes(arrays, attributes, sizes), strict=False))
    return found


def _stored(value: ir.Value, streams: dict[ir.Value, int], counted: set[ir.Value]) -> tuple[int, str]:
    """Return the bytes that `value` is stored in, and its formats, such as "Codebook(Huffman64)"."""
    if value in streams:
        return streams.pop(value), "Huffman"
    tensor = constant(value)
    if tensor is not None:
        new = value not in counted
        counted.add(value)
        return tensor.nbytes if new else 0, ""
    node = value.producer()
    if node is None or not is_decoder(node):
        return 0, ""
    if node.op_type == "Split" or node.op_type.startswith("Huffman"):
        return 0, "Huffman"
    if node.op_type == "Identity":
        return 0, f"tied to {node.inputs[0].name if node.inputs[0] is not None else ''}"
    parts = [_stored(each, streams, counted) for each in node.inputs if each is not None]
    inner = ", ".join(text for _, text in parts if text)
    return sum(size for size, _ in parts), f"{node.op_type}({inner})" if inner else node.op_type
