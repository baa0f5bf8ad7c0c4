"""Which expressions store the weights of a model in the fewest bytes, and putting them into it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from onnxcompress.edit import Edit, home
from onnxcompress.formats import FORMATS, huffman, packing
from onnxcompress.formats.base import DOMAIN, VERSION, Attributes, Call, Expression, Symbols
from onnxcompress.model import opset

CALL, TENSOR = 60, 16  # bytes that a node and an initializer take in a file, about, besides what they hold
SPLIT = 200  # and the call of the Huffman decoder, with the Split of its result
IR_VERSION = 8  # the first with functions
_Key = TypeVar("_Key")


@dataclass(frozen=True, eq=False)
class Way:
    """A way to store something: about how many bytes it takes, the functions it needs, and the expression.

    In the expression made, every stream of symbols that is left is to be Huffman coded.
    """

    bytes: float
    names: frozenset[str]
    make: Callable[[], Expression]
    text: str = ""  # such as "Codebook(Huffman64)"


def ways(expression: Expression, block: int) -> list[Way]:
    """Return the ways to store `expression`, for Huffman codes in blocks of `block` symbols."""
    if isinstance(expression, np.ndarray):
        return [Way(expression.nbytes + TENSOR, frozenset(), lambda: expression)]
    if isinstance(expression, Symbols):
        return _symbol_ways(expression, block)
    return _best(_combined(expression, block))


def _combined(call: Call, block: int) -> list[Way]:
    """Return the ways to store a call: those of its inputs in all combinations."""
    parts = itertools.product(*(ways(each, block) for each in call.inputs))
    return [_called(call, inputs) for inputs in parts]


def _called(call: Call, inputs: Sequence[Way]) -> Way:
    """Return the way that stores the inputs of `call` as `inputs` say."""
    own = CALL + sum(map(_size, call.attributes.values()))
    inner = ", ".join(each.text for each in inputs if each.text)
    return Way(
        own + sum(each.bytes for each in inputs),
        frozenset({call.name}).union(*(each.names for each in inputs)),
        lambda: Call(call.name, tuple(each.make() for each in inputs), call.attributes),
        f"{call.name}({inner})" if inner else call.name,
    )


def _size(attribute: object) -> int:
    return 12 + 3 * (len(attribute) if isinstance(attribute, tuple) else 1)


def _best(found: Iterable[Way]) -> list[Way]:
    """Return the smallest way for each set of functions."""
    best: dict[frozenset[str], Way] = {}
    for way in found:
        if way.names not in best or way.bytes < best[way.names].bytes:
            best[way.names] = way
    return list(best.values())


def _symbol_ways(symbols: Symbols, block: int) -> list[Way]:
    """Return the ways to store `symbols`: as they are, packed, coded, and several to a byte, coded or not."""
    found = _byte_ways(symbols, block)
    width = max(1, (symbols.size - 1).bit_length())
    if width < 8:
        packed = -(-symbols.values.size // 8) * width
        make = partial(packing.unpacked, symbols)
        found.append(Way(packed + CALL + TENSOR, frozenset({"Unpack"}), make, "Unpack"))
    several = packing.digits(symbols)
    if several is not None:
        bytes_ = several.inputs[0]
        assert isinstance(bytes_, Symbols)
        found += [_called(several, [way]) for way in _byte_ways(bytes_, block)]
    return _best(found)


def _byte_ways(symbols: Symbols, block: int) -> list[Way]:
    """Return the ways to store `symbols` without a call of their own: as they are, and coded."""
    found = [Way(symbols.values.size + TENSOR, frozenset(), lambda: symbols.values)]
    size = huffman.coded_bytes(symbols, block)
    if size is not None:
        found.append(Way(size, frozenset({f"Huffman{block}"}), lambda: symbols, f"Huffman{block}"))
    return found


@cache
def function_bytes(name: str) -> int:
    """Return the bytes that the functions of format `name` take in a file."""
    functions = FORMATS[name].functions(17)
    own = sum(int(ir.to_proto(each).ByteSize()) + 4 for each in functions)
    return own + SPLIT if name.startswith("Huffman") else own


def choose(options: Mapping[_Key, tuple[int, Sequence[Way]]]) -> dict[_Key, Way]:
    """Return how to store each weight for which it pays; `options` are its dense bytes and ways.

    All functions are allowed at first, then each is taken away if the rest does as well without: a function
    must pay for itself.
    """
    allowed = {name for _, each in options.values() for way in each for name in way.names}
    total, chosen = _total(options, allowed)
    improved = True
    while improved:
        improved = False
        for name in sorted({name for way in chosen.values() for name in way.names}):
            less, fewer = _total(options, allowed - {name})
            if less < total:
                total, chosen, improved = less, fewer, True
                allowed = allowed - {name}
    return chosen


def _total(
    options: Mapping[_Key, tuple[int, Sequence[Way]]], allowed: Collection[str]
) -> tuple[float, dict[_Key, Way]]:
    """Return the bytes of all weights with the functions `allowed`, and the way of each that is encoded."""
    total = 0.0
    chosen: dict[_Key, Way] = {}
    for key, (dense, found) in options.items():
        able = [way for way in found if way.names.issubset(allowed)]
        best = min(able, key=lambda way: way.bytes, default=None)
        if best is None or best.bytes >= dense + TENSOR:
            total += dense + TENSOR
        else:
            total += best.bytes
            chosen[key] = best
    used = {name for way in chosen.values() for name in way.names}
    return total + sum(map(function_bytes, used)), chosen


def store(
    model: ir.Model, expressions: Mapping[ir.Value, Expression], tied: Mapping[ir.Value, ir.Value], block: int
) -> None:
    """Make the nodes of `expressions` compute the values, which are constants of `model`, instead.

    Streams of symbols in them are Huffman coded together. Constants of the main graph that are `tied` to one
    of the values take what that computes.
    """
    if not expressions:
        return
    edit, graph = Edit(model), model.graph
    names = _Names(edit)
    streams = [each for expression in expressions.values() for each in _streams(expression)]
    nodes: list[ir.Node] = []
    made: dict[int, ir.Value] = {}
    if streams:
        nodes = _decoder(names, graph, streams, block, made)
    used = {f"Huffman{block}"} if streams else set()
    _insert(graph, nodes, None)
    results: dict[ir.Value, ir.Value] = {}
    for value, expression in expressions.items():
        own: list[ir.Node] = []
        place = home(value)
        results[value] = _write(names, place, expression, own, made, used)
        _insert(place, own, nodes[-1] if nodes and place is graph else None)
        _replace(value, results[value], place)
    for value, owner in tied.items():
        node = names.node("Identity", [results[owner]], {})
        maker = results[owner].producer()
        assert maker is not None
        graph.insert_after(maker, node)
        _replace(value, node.outputs[0], graph)
    for name in sorted(used):
        for function in FORMATS[name].functions(opset(model)):
            model.functions[function.identifier()] = function
    model.opset_imports[DOMAIN] = VERSION
    model.ir_version = max(model.ir_version, IR_VERSION)


class _Names:
    """Short free names."""

    def __init__(self, edit: Edit) -> None:
        self.edit = edit
        self.count = 0

    def __call__(self) -> str:
        """Return the next free name."""
        self.count += 1
        return self.edit.name(f"_{np.base_repr(self.count, 36).lower()}")

    def tensor(self, graph: ir.Graph, array: np.ndarray) -> ir.Value:
        """Return a new initializer of `graph`."""
        value = self.edit.constant(graph, self(), array)
        value.type, value.shape = None, None  # or the file would say them twice
        return value

    def node(self, op: str, inputs: Sequence[ir.Value], attributes: Attributes, count: int = 1) -> ir.Node:
        """Return a new node of the domain; nodes carry no names, which only take room."""
        made = ir.node(op, inputs, attributes, domain=DOMAIN if op in FORMATS else "", num_outputs=count)
        for output in made.outputs:
            output.name = self()
        return made


def _streams(expression: Expression) -> Iterator[Symbols]:
    if isinstance(expression, Symbols):
        yield expression
    elif isinstance(expression, Call):
        for each in expression.inputs:
            yield from _streams(each)


def _decoder(
    names: _Names, graph: ir.Graph, streams: Sequence[Symbols], block: int, made: dict[int, ir.Value]
) -> list[ir.Node]:
    """Return the nodes that decode all `streams`; `made` gets the value of each by its id."""
    packed = huffman.pack(streams, block)
    inputs = [names.tensor(graph, array) for array in packed.inputs]
    node = names.node(f"Huffman{block}", inputs, packed.attributes)
    if len(streams) == 1:
        made[id(streams[0])] = node.outputs[0]
        return [node]
    sizes = names.node("Constant", [], {"value_ints": packed.sizes})
    split = names.node("Split", [node.outputs[0], sizes.outputs[0]], {"axis": 1}, len(streams))
    for number, output in zip(packed.order, split.outputs, strict=True):
        made[id(streams[number])] = output
    return [node, sizes, split]


def _write(
    names: _Names,
    graph: ir.Graph,
    expression: Expression,
    nodes: list[ir.Node],
    made: dict[int, ir.Value],
    used: set[str],
) -> ir.Value:
    """Return the value of `expression`; `nodes` gets the nodes to compute it, `used` their formats."""
    if id(expression) in made:
        return made[id(expression)]
    if isinstance(expression, Call):
        inputs = [_write(names, graph, each, nodes, made, used) for each in expression.inputs]
        nodes.append(names.node(expression.name, inputs, expression.attributes))
        used.add(expression.name)
        return nodes[-1].outputs[0]
    assert isinstance(expression, np.ndarray)
    return names.tensor(graph, expression)


def _insert(graph: ir.Graph, nodes: Sequence[ir.Node], behind: ir.Node | None) -> None:
    """Put `nodes` into `graph` behind a node, or first."""
    if behind is not None:
        graph.insert_after(behind, nodes)
    elif len(graph):
        graph.insert_before(graph[0], nodes)
    else:
        graph.extend(nodes)


def _replace(value: ir.Value, result: ir.Value, graph: ir.Graph) -> None:
    """Put `result` in the place of `value`, a constant of `graph`, and give it the name."""
    ir.convenience.replace_all_uses_with(value, result)
    name, producer = value.name, value.producer()
    if producer is None:
        del graph.initializers[name or ""]
    else:
        value.name = None
        graph.remove(producer, safe=True)
    result.name = name
