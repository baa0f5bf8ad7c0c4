"""A model run part by part on samples: each node once, so that later nodes may still change in between."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxcompress.base import Runtime

Feeds = Mapping[str, np.ndarray]
MEMORY = 1 << 29  # bytes of activations that stay in memory; what is beyond lies in temporary files


def staged(
    model: ir.Model, steps: Sequence[Sequence[str]], feeds: Sequence[Feeds], runtime: Runtime
) -> Iterator[list[Feeds]]:
    """Yield for each of `steps`, the names of values of the main graph, those values on each of `feeds`.

    A step runs what its values need and no earlier step has run, and keeps what later nodes and steps read:
    all steps together are one inference. Nodes that haven't run may be changed between steps. At most MEMORY
    bytes of activations are held in memory beside those of one feed and of the step.
    """
    stages = _Stages(model, feeds)
    later = Counter(name for step in steps for name in set(step))
    for step in steps:
        stages.run(step, runtime)
        yield [{name: held[name] for name in step} for held in stages.held]
        later.subtract(set(step))
        stages.drop({name for name, times in later.items() if times > 0})


class _Stages:
    """How far a model has run: `held` has the values that are still read, for each feed by name."""

    def __init__(self, model: ir.Model, feeds: Sequence[Feeds]) -> None:
        self.model = model
        self.values = {value.name: value for node in model.graph for value in node.outputs}
        self.held: list[dict[str, np.ndarray]] = [dict(feed) for feed in feeds]
        self.reads = {node: list(read_by(node, model.graph)) for node in model.graph}
        self.readers = Counter(value for values in self.reads.values() for value in values)
        self.done: set[ir.Node] = set()
        self.room = MEMORY - sum(array.nbytes for feed in feeds for array in feed.values())

    def run(self, names: Iterable[str], runtime: Runtime) -> None:
        """Compute the values called `names` on all feeds."""
        known = set(self.held[0])
        wanted = [self.values[name] for name in names if name not in known]
        nodes: set[ir.Node] = set()
        waiting = list(wanted)
        while waiting:
            node = waiting.pop().producer()
            if node is not None and node not in nodes and node not in self.done:
                nodes.add(node)
                waiting += [value for value in self.reads[node] if value.name not in known]
        if not nodes:
            return
        self.done |= nodes
        for node in nodes:
            self.readers.subtract(self.reads[node])
        given = {value for node in nodes for value in self.reads[node] if value.name in known}
        made = [each for node in nodes for each in node.outputs if self.readers[each] > 0 or each in wanted]
        inside, outside = ([value.name or "" for value in values] for values in (given, made))
        runnable = runtime.prepare(self._part(given, made), outputs=outside)
        for held in self.held:
            found = runnable.run({name: held[name] for name in inside})
            held.update((name, self._kept(found[name])) for name in outside)

    def drop(self, wanted: set[str]) -> None:
        """Forget what neither nodes that haven't run read nor those who call for `wanted`."""
        read = wanted | {value.name or "" for value, times in self.readers.items() if times > 0}
        for held in self.held:
            for name in set(held) - read:
                array = held.pop(name)
                self.room += 0 if isinstance(array, np.memmap) else array.nbytes

    def _part(self, given: Iterable[ir.Value], made: Sequence[ir.Value]) -> ir.Model:
        """Return the model that makes the values `made` of those `given`."""
        graph = ir.convenience.extract(self.model.graph, list(given), made)
        for value in graph.inputs:
            array = self.held[0][value.name or ""]
            value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
            value.shape = ir.Shape([None] * array.ndim)
        functions = list(self.model.functions.values())
        return ir.Model(graph, ir_version=self.model.ir_version, functions=functions)

    def _kept(self, array: np.ndarray) -> np.ndarray:
        """Return `array` to be held: in memory while there is room, then in a file that goes with it."""
        if array.nbytes <= self.room or not array.size:
            self.room -= array.nbytes
            return array
        with tempfile.TemporaryFile() as file:
            held = np.memmap(file, array.dtype, "w+", shape=array.shape)
        held[...] = array
        return held


def read_by(node: ir.Node, graph: ir.Graph) -> Iterator[ir.Value]:
    """Yield the values of `graph` that `node` or a body in it reads, initializers and Constants apart."""
    for value in node.inputs:
        if value is not None and value.graph is graph and not _constant(value):
            yield value
    for attribute in node.attributes.values():
        for body in _bodies(attribute):
            for inner in body:
                yield from read_by(inner, graph)
            yield from (each for each in body.outputs if each.graph is graph and not _constant(each))


def _bodies(attribute: ir.Attr) -> Sequence[ir.Graph]:
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    return attribute.as_graphs() if attribute.type == ir.AttributeType.GRAPHS else []


def _constant(value: ir.Value) -> bool:
    node = value.producer()
    made = node is not None and node.op_type == "Constant" and node.domain in ("", "ai.onnx")
    return made or (value.is_initializer() and not value.is_graph_input())
