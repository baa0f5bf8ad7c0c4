"""Which expressions store the weights of a model in the fewest bytes, and putting them into it."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from onnxcompress.edit import Edit, home
from onnxcompress.formats import FORMATS, coding, escape, huffman, packing
from onnxcompress.formats.base import DOMAIN, VERSION, Attributes, Call, Expression, Symbols
from onnxcompress.layers import put_constant
from onnxcompress.model import SparseTensor, opset

CALL, TENSOR = 32, 16  # bytes that a node and an initializer take in a file, about, besides what they hold
SPLIT = 200  # and the call of the Huffman decoder, with the Split of its result
IR_VERSION = 8  # the first with functions
_Key = TypeVar("_Key")


@dataclass(frozen=True, eq=False)
class Way:
    """A way to store something: about how many bytes it takes, the functions it needs, and the expression.

    In the expression made, every stream of symbols that is left is to be Huffman coded. `memory` are the
    bytes that an engine takes for intermediate results while it computes the expression.
    """

    bytes: float
    names: frozenset[str]
    make: Callable[[], Expression]
    text: str = ""  # such as "Codebook(Huffman64)"
    memory: float = 0.0


def ways(expression: Expression, block: int, weigh: bool = False) -> list[Way]:
    """Return the ways to store `expression`, for Huffman codes in blocks of `block` symbols.

    They are the smallest for each set of functions; with `weigh`, those that take less memory, too.
    """
    if isinstance(expression, np.ndarray):
        return [Way(expression.nbytes + TENSOR, frozenset(), lambda: expression)]
    if isinstance(expression, Symbols):
        return _best(_symbol_ways(expression, block, weigh))
    return _best(_combined(expression, block, weigh))


def _combined(call: Call, block: int, weigh: bool) -> Iterator[Way]:
    """Yield the ways to store a call: those of its inputs in all combinations."""
    memory = _memory(call) if weigh else 0
    for inputs in itertools.product(*(ways(each, block, weigh) for each in call.inputs)):
        yield _called(call, inputs, memory)


def _called(call: Call, inputs: Sequence[Way], memory: float) -> Way:
    """Return the way that stores the inputs of `call` as `inputs` say; `memory` is what the call takes."""
    own = CALL + sum(map(_size, call.attributes.values()))
    inner = ", ".join(each.text for each in inputs if each.text)
    return Way(
        own + sum(each.bytes for each in inputs),
        frozenset({call.name}).union(*(each.names for each in inputs)),
        lambda: Call(call.name, tuple(each.make() for each in inputs), call.attributes),
        f"{call.name}({inner})" if inner else call.name,
        memory + sum(each.memory for each in inputs),
    )


def _memory(call: Call) -> int:
    """Return the bytes that the function of `call` takes, and what it is given by other calls."""
    inputs = [computed(each) for each in call.inputs]
    given = sum(
        array.nbytes for each, array in zip(call.inputs, inputs, strict=True) if isinstance(each, Call)
    )
    return given + FORMATS[call.name].memory(inputs, computed(call))


def _size(attribute: object) -> int:
    return 12 + 3 * (len(attribute) if isinstance(attribute, tuple) else 1)


def _best(found: Iterable[Way]) -> list[Way]:
    """Return the ways than which none with the same functions takes fewer bytes and less memory."""
    best: dict[frozenset[str], list[Way]] = {}
    for way in sorted(found, key=lambda each: (each.bytes, each.memory)):
        rivals = best.setdefault(way.names, [])
        if not rivals or way.memory < rivals[-1].memory:
            rivals.append(way)
    return [way for rivals in best.values() for way in rivals]


def _symbol_ways(symbols: Symbols, block: int, weigh: bool) -> Iterator[Way]:
    """Yield the ways to store `symbols`: as they are, packed, coded, and several to a byte, coded or not."""
    yield from _byte_ways(symbols, block)
    count, bits = symbols.values.size, max(1, (symbols.size - 1).bit_length())
    if bits < 8:
        size = -(-count // 8) * bits + CALL + TENSOR
        memory = (packing.TAKEN + 2) * count  # with the bytes, regrouped, and the numbers themselves
        yield Way(size, frozenset({"Unpack"}), partial(packing.unpacked, symbols), "Unpack", memory)
    several = packing.digits(symbols)
    if several is not None:
        bytes_ = several.inputs[0]
        assert isinstance(bytes_, Symbols)
        memory = _memory(several) + count if weigh else 0
        for way in _byte_ways(bytes_, block):
            yield _called(several, [way], memory)
    if (width := escape.width(symbols)) is not None:
        size = int(escape.size(symbols, width)) + 3 * (CALL + TENSOR)
        names = frozenset({"Escape", "RelativeIndex", "Digits" if width in (1, 2, 4) else "Unpack"})
        make = partial(escape.escaped, symbols, width)
        memory = _memory(make()) + count if weigh else 0
        yield Way(size, names, make, "Escape", memory)


def _byte_ways(symbols: Symbols, block: int) -> Iterator[Way]:
    """Yield the ways to store `symbols` without a call of their own: as they are, and coded."""
    yield Way(symbols.values.size + TENSOR, frozenset(), lambda: symbols.values)
    size = coding.coded_bytes(symbols, block)
    if size is not None:
        memory = huffman.memory(symbols.values.size, size, 1)
        yield Way(size, frozenset({f"Huffman{block}"}), lambda: symbols, f"Huffman{block}", memory)


def promising(found: Sequence[Way]) -> list[Way]:
    """Return those of the `found` ways that may be the smallest, whatever functions a file has anyway."""
    least = min((way.bytes + sum(map(function_bytes, way.names)) for way in found), default=0.0)
    return [way for way in found if way.bytes <= least]


def computed(expression: Expression) -> np.ndarray:
    """Return what `expression` stands for."""
    if isinstance(expression, np.ndarray):
        return expression
    if isinstance(expression, Symbols):
        return expression.values
    return FORMATS[expression.name].decode(list(map(computed, expression.inputs)), expression.attributes)


@cache
def function_bytes(name: str) -> int:
    """Return the bytes that the functions of format `name` take in a file."""
    functions = FORMATS[name].functions(17)
    own = sum(int(ir.to_proto(each).ByteSize()) + 4 for each in functions)
    return own + SPLIT if name.startswith("Huffman") else own


def choose(options: Mapping[_Key, tuple[int, Sequence[Way]]], memory: float | None = None) -> dict[_Key, Way]:
    """Return how to store each weight for which it pays; `options` are its dense bytes and ways.

    With `memory`, all of them together take at most as many bytes of it at load: memory gets a price in bytes
    of the file, the lowest at which they keep within it to a few percent; what is left then goes to the
    largest weights, for ways that were too dear.
    """
    if memory is None:
        return _chosen(options, 0.0)
    prices = [0.0, *(2.0 ** np.arange(-20, 8, 0.125)).tolist()]

    def fits(price: float) -> bool:
        return _memory_of(_chosen(options, price)) <= memory

    place = bisect.bisect_left(prices, True, key=fits)
    chosen = _chosen(options, prices[place]) if place < len(prices) else {}
    if place == 0:
        return chosen
    dearer = _chosen(options, prices[place - 1])
    spent = dict(chosen)
    for key in sorted(dearer, key=lambda each: -options[each][0]):
        more = dearer[key].memory - (spent[key].memory if key in spent else 0)
        if _memory_of(spent) + more <= memory:
            spent[key] = dearer[key]
    return min(chosen, spent, key=lambda each: _bytes_of(options, each))


def _memory_of(chosen: Mapping[_Key, Way]) -> float:
    return sum(way.memory for way in chosen.values())


def _bytes_of(options: Mapping[_Key, tuple[int, Sequence[Way]]], chosen: Mapping[_Key, Way]) -> float:
    """Return the bytes of all weights, of which those `chosen` are encoded, and of the functions."""
    plain = sum(dense + TENSOR for key, (dense, _) in options.items() if key not in chosen)
    used = {name for way in chosen.values() for name in way.names}
    return plain + sum(way.bytes for way in chosen.values()) + sum(map(function_bytes, used))


def _chosen(options: Mapping[_Key, tuple[int, Sequence[Way]]], price: float) -> dict[_Key, Way]:
    """Return how to store each weight for which it pays, where a byte of memory costs `price`.

    All functions are allowed at first, then each is taken away if the rest does as well without: a function
    must pay for itself.
    """
    allowed = {name for _, each in options.values() for way in each for name in way.names}
    total, chosen = _total(options, allowed, price)
    improved = True
    while improved:
        improved = False
        for name in sorted({name for way in chosen.values() for name in way.names}):
            less, fewer = _total(options, allowed - {name}, price)
            if less < total:
                total, chosen, improved = less, fewer, True
                allowed = allowed - {name}
    return chosen


def _total(
    options: Mapping[_Key, tuple[int, Sequence[Way]]], allowed: Collection[str], price: float
) -> tuple[float, dict[_Key, Way]]:
    """Return the cost of all weights with the functions `allowed`, and the way of each that is encoded."""

    def cost(way: Way) -> float:
        return way.bytes + price * way.memory

    total = 0.0
    chosen: dict[_Key, Way] = {}
    for key, (dense, found) in options.items():
        able = [way for way in found if way.names.issubset(allowed) and way.bytes < dense + TENSOR]
        best = min(able, key=cost, default=None)
        if best is None or cost(best) >= dense + TENSOR:
            total += dense + TENSOR
        else:
            total += cost(best)
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
        if isinstance(expression, Call) and expression.name == "COO":
            _sparse(value, expression)
            continue
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
    if used:
        model.opset_imports[DOMAIN] = VERSION
        model.ir_version = max(model.ir_version, IR_VERSION)


def _sparse(value: ir.Value, call: Call) -> None:
    """Make the constant `value` a sparse initializer."""
    values, indices = (ir.tensor(each) for each in call.inputs if isinstance(each, np.ndarray))
    shape = call.attributes["shape"]
    assert isinstance(shape, tuple)
    put_constant(value, SparseTensor(values, indices, shape, name=value.name))


class _Names:
    """Short free names."""

    def __init__(self, edit: Edit) -> None:
        self.edit = edit
        self.count = 0

    def __call__(self) -> str:
        """Return the next name, which may be taken."""
        self.count += 1
        return f"_{np.base_repr(self.count, 36).lower()}"

    def tensor(self, graph: ir.Graph, array: np.ndarray) -> ir.Value:
        """Return a new initializer of `graph`."""
        value = self.edit.constant(graph, self(), array)
        value.type, value.shape = None, None  # or the file would say them twice
        return value

    def node(self, op: str, inputs: Sequence[ir.Value], attributes: Attributes, count: int = 1) -> ir.Node:
        """Return a new node of the domain; nodes carry no names, which only take room."""
        made = ir.node(op, inputs, attributes, domain=DOMAIN if op in FORMATS else "", num_outputs=count)
        made.name = ""  # without this, it gets one when the model is copied
        for output in made.outputs:
            output.name = self.edit.name(self())
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
    packed = coding.pack(streams, block)
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
