"""Adding constants and nodes to a model, under names that are not taken."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from onnxcompress.layers import constant
from onnxcompress.model import graphs


class Edit:
    """Puts new constants and nodes into the graphs of one model."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.bodies = {function.graph for function in model.functions.values()}
        self._taken: set[str | None] = set()
        for graph in graphs(model):
            self._taken |= {value.name for value in graph.inputs}
            if not isinstance(graph, ir.Function):
                self._taken |= set(graph.initializers)
            for node in graph:
                self._taken |= {node.name, *(output.name for output in node.outputs)}

    def name(self, wanted: str) -> str:
        """Return `wanted`, or `wanted` with a number where that name is taken; it is taken from now on."""
        name, count = wanted, 1
        while name in self._taken:
            count += 1
            name = f"{wanted}_{count}"
        self._taken.add(name)
        return name

    def constant(self, graph: ir.Graph, wanted: str, content: np.ndarray | ir.TensorProtocol) -> ir.Value:
        """Return a new value of `graph` that holds `content`: an initializer, in a function a Constant."""
        name = self.name(wanted)
        tensor = ir.tensor(content, name=name) if isinstance(content, np.ndarray) else content
        value = ir.Value(
            name=name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(tensor.shape.numpy()),
            const_value=tensor,
        )
        if graph not in self.bodies:
            graph.register_initializer(value)
            return value
        node = ir.node("Constant", [], {"value": ir.AttrTensor("value", tensor)}, name=name)
        self._output(node, name, tensor.dtype, ir.Shape(tensor.shape.numpy()))
        self._first(graph, [node])
        return node.outputs[0]

    def node(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        wanted: str,
        attributes: Mapping[str, int | float | str | Sequence[int]] | None = None,
        *,
        dtype: ir.DataType | None = None,
        shape: ir.Shape | None = None,
        outputs: int = 1,
        domain: str = "",
    ) -> ir.Node:
        """Return a new node with a free name, not in a graph yet; `dtype` and `shape` are its output's."""
        name = self.name(wanted)
        node = ir.node(op, inputs, attributes or {}, domain=domain, name=name, num_outputs=outputs)
        self._output(node, name, dtype, shape)
        for place, output in enumerate(node.outputs[1:], 1):
            output.name = self.name(f"{wanted}_{place}")
        return node

    @staticmethod
    def _output(node: ir.Node, name: str, dtype: ir.DataType | None, shape: ir.Shape | None) -> None:
        output = node.outputs[0]
        output.name, output.shape = name, shape
        if dtype is not None:
            output.dtype = dtype

    @staticmethod
    def _first(graph: ir.Graph, nodes: Sequence[ir.Node]) -> None:
        if len(graph):
            graph.insert_before(graph[0], nodes)
        else:
            graph.extend(nodes)

    def after(self, value: ir.Value, nodes: Sequence[ir.Node], graph: ir.Graph) -> None:
        """Put `nodes` right behind the node that makes `value`; first in `graph` where no node of it does."""
        producer = value.producer()
        if producer is not None and producer.graph is graph:
            graph.insert_after(producer, nodes)
        else:
            self._first(graph, nodes)


def replace_uses(value: ir.Value, new: ir.Value, keep: Sequence[ir.Node] = ()) -> None:
    """Make every node that reads `value`, subgraphs included, read `new`, but the nodes of `keep`."""
    for node, place in value.uses():
        if node not in keep:
            node.replace_input_with(place, new)


def substitute(output: ir.Value, value: ir.Value) -> None:
    """Give `value` the readers, the name and the role as a graph output of `output`, whose producer goes."""
    producer = output.producer()
    assert producer is not None
    assert isinstance(producer.graph, ir.Graph)
    value.shape, value.type = output.shape, output.type
    ir.convenience.replace_all_uses_with(output, value, replace_graph_outputs=True)
    value.name, output.name = output.name, None
    producer.graph.remove(producer, safe=True)


def drop_identities(model: ir.Model) -> list[str]:
    """Drop each Identity, and each Dropout at rest, whose readers can read its input; return their names.

    One stays where it is an output of its graph, and its input is another one or comes from outside.
    """
    dropped = []
    for graph in graphs(model):
        for node in graph:
            given, output = (*node.inputs[:1], None)[0], (*node.outputs[:1], None)[0]
            if given is None or output is None or not _passes_on(node):
                continue
            maker, name = given.producer(), node.name or output.name or node.op_type
            if not output.is_graph_output():
                replace_uses(output, given)
                graph.remove(node, safe=True)
            elif maker is not None and maker.graph is node.graph and not given.is_graph_output():
                substitute(output, given)
            else:
                continue
            dropped.append(name)
    return dropped


def _passes_on(node: ir.Node) -> bool:
    """Return whether `node` makes nothing but its first input."""
    if node.domain not in ("", "ai.onnx") or any(output.uses() for output in node.outputs[1:]):
        return False
    if node.op_type != "Dropout" or any(output.is_graph_output() for output in node.outputs[1:]):
        return node.op_type == "Identity"
    training = node.inputs[2] if len(node.inputs) > 2 else None
    flag = constant(training)
    return training is None or (flag is not None and not flag.numpy().any())


@contextmanager
def same_ports(model: ir.Model) -> Iterator[None]:
    """Give the inputs and outputs of the main graph, by name, the types and shapes again that they had."""
    graph = model.graph
    before = {value.name: (value.type, value.shape) for value in (*graph.inputs, *graph.outputs)}
    yield
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.type, value.shape = before.get(value.name, (value.type, value.shape))


def home(value: ir.Value) -> ir.Graph:
    """Return the graph that holds the constant `value`."""
    producer = value.producer()
    graph = value.graph if producer is None else producer.graph
    assert isinstance(graph, ir.Graph)
    return graph


def drop(value: ir.Value) -> None:
    """Remove the constant `value` from its graph where nothing reads it any more; another value stays."""
    if value.uses() or value.is_graph_output() or constant(value) is None:
        return
    producer = value.producer()
    if producer is None:
        del home(value).initializers[value.name or ""]
    else:
        home(value).remove(producer, safe=True)


def tidy(model: ir.Model) -> None:
    """Drop the nodes, initializers and functions of `model` that nothing uses any more."""
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
