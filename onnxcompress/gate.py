"""Which layers compute with integers: those for which that is faster on this machine.

Layers are timed one by one with what follows them, as floats and as integers between integers: that tells
the classes of layers that never pay. What is left forms blocks, timed with the conversions at their borders.
In the end the whole model decides: the fastest of the choices found so is taken, and none where even that
one isn't surely as fast as floats. Only latencies matter here; the ranges of a trial are those of one sample.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from onnxcompress.base import Context, Number, Pass, Result, silent
from onnxcompress.data import load_data, random_data
from onnxcompress.errors import CompressError, UsageError
from onnxcompress.layers import Layer, constant
from onnxcompress.measure import Latency
from onnxcompress.model import clone, graphs, weight_bytes
from onnxcompress.parts import Stopwatch, cut, faster

LARGE = 500_000_000  # bytes of weights; above, the whole, which would be held several times, isn't timed
Feeds = Mapping[str, np.ndarray]
Floats = Mapping[str, str]  # the layers that compute with floats, by name, and why


@dataclass
class Gate:
    """Times layers of `model` as floats and as integers.

    `classes` are the layers that can compute with integers, by name, and what class each is of. The pass
    ``trial(floats)`` makes them compute so, but for those named `floats`; ``blocks(model, floats)`` returns
    the connected parts of `model` that compute with integers then; without it, every layer is one. The whole
    is timed on `feeds`, which also give the sizes that the model leaves open. Parts are timed for about
    `seconds` in all, the whole after that for as long at most. What was found is in `latencies`, by layer,
    and in `numbers`.
    """

    model: ir.Model
    feeds: Feeds
    classes: Mapping[str, str]
    trial: Callable[[Collection[str]], Pass]
    blocks: Callable[[ir.Model, Collection[str]], list[list[ir.Node]]] | None
    context: Context
    seconds: float
    latencies: dict[str, Latency] = field(default_factory=dict, init=False)
    numbers: dict[str, Number] = field(default_factory=dict, init=False)
    _parts: Stopwatch = field(init=False)
    _whole: Stopwatch = field(init=False)

    def __post_init__(self) -> None:
        self.model = sized(self.model, self.feeds)
        self._parts = Stopwatch(self.context, self.seconds)
        self._whole = Stopwatch(self.context, self.seconds)

    def floats(self) -> Floats:
        """Return the layers for which integers don't pay."""
        integers = None if self.blocks is None else self._quantize(self.model, (), self.feeds)
        nodes = {node.name: node for graph in graphs(self.model) for node in graph}
        for name in self.classes:
            found = self._layer(nodes[name], integers)
            if found is not None:
                self.latencies[name] = found
        if missed := len(self.classes) - len(self.latencies):
            self.numbers["layers not timed"] = missed
        by_class = self._by_class()
        self.numbers.update(
            {f"time of int8 to float, {each}": ratio for each, (ratio, _) in by_class.items()}
        )
        if integers is None:
            slow = {name: each for name, each in self.latencies.items() if not faster(each)}
            choices: list[Floats] = [dict.fromkeys(slow, "int8 not faster here")]
        else:
            slow = {name: each for name, each in self.latencies.items() if each.low > 1}
            told = {
                name: f"{each}: int8 {_times(by_class[each][0])}slower here"
                for name, each in self.classes.items()
                if each in by_class and by_class[each][1] > 1
            }
            choices = [{}, told, {**dict.fromkeys(slow, "int8 slower here"), **told}]
        return self._decide(choices)

    def tell(self, result: Result, slow: Floats) -> None:
        """Put what was found into the records of `result` and what they say of the layers `slow`."""
        result.numbers.update(self.numbers)
        for record in result.records:
            stored = record.what.startswith("stored as int8")
            if record.layer in slow and stored:
                record.what = f"stored as int8, {slow[record.layer]}"
                if record.layer in self.latencies:
                    record.numbers.update(self.latencies[record.layer].numbers)

    def _quantize(self, part: ir.Model, floats: Collection[str], feeds: Feeds | None) -> ir.Model:
        """Return a copy of `part` with integers in all layers but `floats`.

        Without `feeds`, what it is calibrated on is random.
        """
        data = random_data(part, count=1) if feeds is None else load_data([feeds], part)
        copy = clone(part)
        self.trial(floats).call(copy, replace(self.context, calibration=data, progress=silent))
        return copy

    def _decide(self, choices: Sequence[Floats]) -> Floats:
        """Return the fastest of `choices`, or of what their blocks leave; all layers where none is fast."""
        if weight_bytes(self.model) > LARGE:
            self.numbers["the whole is not timed"] = f"weights of more than {LARGE // 10**6} MB"
            return choices[-1]
        try:
            chosen, latency = self._fastest(choices)
            more = {**self._slow_blocks(chosen), **chosen}
            if len(more) > len(chosen):
                chosen, latency = self._fastest([chosen, more])
        except CompressError as error:
            self.numbers["the whole is not timed"] = str(error)
            return choices[-1]
        if latency is not None:
            self.numbers["time of int8 to float, whole model"] = latency.ratio
            self.numbers["upper end of its interval"] = latency.high
        if latency is None or latency.high > 1:
            rest = dict.fromkeys(self.classes, "the model is not faster with int8 here")
            return {**rest, **choices[-1]}
        return chosen

    def _fastest(self, choices: Sequence[Floats]) -> tuple[Floats, Latency | None]:
        """Return the fastest of `choices` in the whole model, and how fast; None where all are floats."""
        different = {frozenset(each): each for each in choices if len(each) < len(self.classes)}
        if not different:
            return choices[-1], None
        models = [self._quantize(self.model, each, self.feeds) for each in different]
        found = self._whole.times([self.model, *models], self.feeds)[1:]
        best = min(range(len(found)), key=lambda place: found[place].ratio)
        return list(different.values())[best], found[best]

    def _slow_blocks(self, floats: Floats) -> Floats:
        """Return the layers of blocks that aren't faster than floats; none where all is one block."""
        blocks = self.blocks(self.model, floats) if self.blocks else []
        slow: dict[str, str] = {}
        for nodes in blocks if len(blocks) > 1 else ():
            try:
                part = cut(self.model, nodes)
                found = self._parts.times([part, self._quantize(part, floats, None)])[1]
            except CompressError:
                continue  # the whole decides
            if not faster(found):
                names = [node.name for node in nodes if node.name in self.classes]
                slow.update(
                    dict.fromkeys(
                        (name for name in names if name), "int8 not faster here with what is around it"
                    )
                )
        return slow

    def _layer(self, node: ir.Node, integers: ir.Model | None) -> Latency | None:
        """Return the latency of `node` with integers; None where it can't be timed.

        The node is taken from the model `integers`, where that is given.
        """
        try:
            if integers is None:
                part = cut(self.model, [node])
                return self._parts.times([part, self._quantize(part, (), None)])[1]
            other = next(each for each in integers.graph if each.name == node.name)
            return self._parts.times([cut(self.model, bounded(node)), cut(integers, between(other))])[1]
        except CompressError:
            return None

    def _by_class(self) -> dict[str, tuple[float, float]]:
        """Return for each class by how much its layers take longer with integers, and that at least."""
        sums: dict[str, np.ndarray] = {}
        for name, found in self.latencies.items():
            before = found.seconds / found.ratio
            times = before * np.array([1, found.ratio, found.low])
            sums[self.classes[name]] = sums.get(self.classes[name], 0) + times
        return {each: (float(ratio / one), float(low / one)) for each, (one, ratio, low) in sums.items()}


def _times(ratio: float) -> str:
    return f"{ratio:.2g}x " if ratio >= 1.05 else ""


def kind_of(layer: Layer) -> str:
    """Return the class of `layer`: its operator, of a convolution also its kernel or that it has groups."""
    if layer.op != "Conv":
        return layer.op
    if layer.node.attributes.get_int("group", 1) == 1:
        return "x".join(map(str, layer.shape[2:])) + " Conv"
    return "depthwise Conv" if layer.shape[1] == 1 else "group Conv"


def either(pattern: str, names: Iterable[str]) -> str:
    """Return a regular expression for `names` and for what `pattern`, unless it is empty, matches."""
    return "|".join(each for each in (pattern, *map(re.escape, sorted(names))) if each)


def sized(model: ir.Model, feeds: Feeds) -> ir.Model:
    """Return a copy of `model` for inputs of the shapes of `feeds`, with the sizes this gives its values."""
    copy = clone(model)
    for value in copy.graph.inputs:
        if (feed := feeds.get(value.name or "")) is not None:
            value.shape = ir.Shape(feed.shape)
    for node in copy.graph:
        for value in node.outputs:
            if value.shape is not None and not value.shape.is_static():
                value.shape = None
    ShapeInferencePass()(copy)
    return copy


def batched(model: ir.Model, feeds: Feeds, batch: int) -> Feeds:
    """Return `feeds` with `batch` samples, repeated as needed; UsageError where `model` takes others."""
    found = dict(feeds)
    for value in model.graph.inputs:
        name, shape = value.name or "", value.shape
        if name in feeds and shape and not isinstance(shape[0], int):
            found[name] = np.resize(feeds[name], (batch, *feeds[name].shape[1:]))
        elif name in feeds and feeds[name].ndim and len(feeds[name]) != batch:
            raise UsageError(f"quant: batch is {batch}, but {name} takes {len(feeds[name])} samples")
    return found


def bounded(node: ir.Node) -> list[ir.Node]:
    """Return `node` and the Relu or Clip that is all that follows it, if there is one."""
    uses = [*node.outputs[0].uses()]
    follower = [use.node for use in uses if use.node.op_type in ("Relu", "Clip")]
    return [node, *follower] if len(uses) == 1 and follower[:1] else [node]


def between(node: ir.Node) -> list[ir.Node]:
    """Return `node` of a quantized model with the conversions that belong to it."""
    makers = [value.producer() for value in node.inputs if value is not None and constant(value) is None]
    before = [maker for maker in makers if maker is not None and maker.op_type == "DequantizeLinear"]
    readers = [use.node for use in node.outputs[0].uses()]
    after = [reader for reader in readers if reader.op_type == "QuantizeLinear"]
    return [*before, node, *after]
