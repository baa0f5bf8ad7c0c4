"""Functions written in line, for engines that have none, and the calls of formats put back afterwards.

The model keeps a record of the calls of formats in its metadata: function, output, inputs and attributes of
each. It proves nothing by itself: a call is put back only where the nodes compute what the function's body
says, so that a file that another tool has changed never gives wrong weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from onnxcompress.edit import Edit
from onnxcompress.errors import CompressError
from onnxcompress.formats import FORMATS
from onnxcompress.formats.base import DOMAIN, VERSION, Attributes, attributes_of
from onnxcompress.model import opset

CALLS = "onnxcompress.calls"  # key in the metadata: JSON, {"version": 1, "calls": [...]}
_MARK = "\0"  # begins the names of a body's nodes and values until they get new ones


class _Line(NamedTuple):
    """A call of a format that was written in line; `output` and `inputs` are names."""

    function: str
    output: str
    inputs: list[str]
    attributes: Attributes


def inline(model: ir.Model) -> None:
    """Write the bodies of the functions of `model` in place of their calls; functions are gone then.

    Nodes that nothing reads are dropped. CompressError where it can't be done; `model` is half changed then.
    """
    outline(model)
    if not model.functions:
        return
    calls = [_line(node) for node in _nodes(model) if node.domain == DOMAIN and node.op_type in FORMATS]
    _prepare(model)
    try:
        common.InlinePass()(model)
    except (ValueError, RuntimeError) as error:
        raise CompressError(f"functions can't be written in line: {_reason(error)}") from error
    model.functions.clear()
    _rename(model)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    if calls:
        record = {"version": VERSION, "calls": calls}
        model.metadata_props[CALLS] = json.dumps(record, separators=(",", ":"), ensure_ascii=False)


def _graphs(model: ir.Model) -> list[ir.Graph]:
    """Return the main graph and the subgraphs in it, outer ones first."""
    return [model.graph, *model.graph.subgraphs()]


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    for graph in _graphs(model):
        yield from graph


def _line(node: ir.Node) -> _Line:
    inputs = [value.name or "" if value is not None else "" for value in node.inputs]
    return _Line(node.op_type, node.outputs[0].name or "", inputs, attributes_of(node))


def _prepare(model: ir.Model) -> None:
    """Make calls and bodies such that ``InlinePass`` writes them in line well.

    It takes the name of an output that a call leaves out for a name, renames an input that a body hands out,
    gives values of a body names that a subgraph may have, too, and wants the same operator set everywhere.
    """
    for node in _nodes(model):
        for output in node.outputs:
            output.name = output.name or None
    numbers = count()
    for function in model.functions.values():
        if "" in function.opset_imports:  # the checker takes no function that another number changes
            function.opset_imports[""] = opset(model)
        for place, value in enumerate(function.outputs):
            if value in function.inputs:
                node = ir.node("Identity", [value])
                function.append(node)
                function.outputs[place] = node.outputs[0]
        for body in (function.graph, *function.subgraphs()):
            for node in body:
                node.name = f"{_MARK}{next(numbers)}"
                for value in node.outputs:
                    value.name = f"{_MARK}{next(numbers)}"
            for value in (*body.inputs, *list(body.initializers.values())):
                value.name = f"{_MARK}{next(numbers)}"


def _rename(model: ir.Model) -> None:
    """Give the values that came out of bodies short free names; nodes carry none."""
    edit, numbers = Edit(model), count(1)
    for graph in _graphs(model):
        outputs = [value for node in graph for value in node.outputs]
        for value in (*graph.inputs, *list(graph.initializers.values()), *outputs):
            if (value.name or "").startswith(_MARK):
                value.name = edit.name(f"_{np.base_repr(next(numbers), 36).lower()}")
        for node in graph:
            if (node.name or "").startswith(_MARK):
                node.name = ""


def _reason(error: BaseException) -> str:
    """Return what `error` comes from, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:200]


def outline(model: ir.Model) -> int:
    """Put the calls of formats back that :func:`inline` wrote in line, and the functions that they call.

    Returns the bytes that the nodes in line took in the file: 0 where there are none, or where all have been
    folded into plain weights since. CompressError, `model` being as before, where the record of the calls
    makes no sense, or nodes don't compute what it says.
    """
    if CALLS not in model.metadata_props:
        return 0
    calls = _read(model.metadata_props[CALLS])
    made: dict[str, list[ir.Value]] = {}
    for node in _nodes(model):
        for value in node.outputs if node.op_type != "Constant" else ():
            made.setdefault(value.name or "", []).append(value)
    size = 0
    if any(call.output in made for call in calls):
        size = _put_back(model, [(call, *_find(call, made, opset(model))) for call in calls])
    del model.metadata_props[CALLS]
    return size


def _read(text: str) -> list[_Line]:
    """Return the calls that the record `text` tells of; CompressError where it makes no sense."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CompressError(f"{CALLS}: is no JSON: {_reason(error)}") from error
    match record:
        case {"version": version, "calls": list(calls)} if version == VERSION:
            return [_call(each) for each in calls]
        case {"version": int(version)} if version != VERSION:
            raise CompressError(f"{CALLS}: is of version {version}, expected {VERSION}")
    raise CompressError(f"{CALLS}: holds {json.dumps(record)[:80]}, expected version and calls")


def _call(entry: Any) -> _Line:
    """Return the call that `entry` of a record tells of."""
    match entry:
        case [str(function), str(output), list(inputs), dict(attributes)] if (
            function in FORMATS
            and len(inputs) == FORMATS[function].inputs
            and all(isinstance(each, str) for each in inputs)
            and all(map(_is_attribute, attributes.values()))
        ):
            found = {
                name: tuple(each) if isinstance(each, list) else each for name, each in attributes.items()
            }
            return _Line(function, output, inputs, found)
    raise CompressError(
        f"{CALLS}: holds {json.dumps(entry)[:80]}, expected function, output, inputs, attributes"
    )


def _is_attribute(value: object) -> bool:
    numbers = value if isinstance(value, list) else [value]
    return all(type(each) is int and -(2**63) <= each < 2**63 for each in numbers)


_Found = dict[ir.Value, ir.Value]


def _find(call: _Line, made: dict[str, list[ir.Value]], version: int) -> tuple[ir.Graph, _Found]:
    """Return the body of `call` in line, and which value of the model each of its values is.

    Subgraphs may have outputs of the same name: what is found is taken out of `made`.
    """
    body = _body(call, version)
    for value in made.get(call.output, ()):
        found = _matched(body, value)
        if found and [found[each].name for each in body.inputs] == call.inputs:
            made[call.output].remove(value)
            return body, found
    raise CompressError(
        f"{call.output}: is not what {DOMAIN}.{call.function} makes of {', '.join(call.inputs)}, "
        f"as {CALLS} says: another tool has changed the file, expected it as it was written"
    )


def _body(call: _Line, version: int) -> ir.Graph:
    """Return a graph of what `call` does, without calls, in the operator set `version`."""
    inputs = [ir.Value(name=f"input{place}") for place in range(len(call.inputs))]
    node = _node(call, inputs)
    imports = {"": version, DOMAIN: VERSION}
    graph = ir.Graph(inputs, node.outputs, nodes=[node], opset_imports=imports)
    functions = FORMATS[call.function].functions(version)
    model = ir.Model(graph, ir_version=8, functions=functions)
    _prepare(model)
    common.InlinePass()(model)
    return graph


def _node(call: _Line, inputs: list[ir.Value]) -> ir.Node:
    attributes = [
        ir.AttrInt64s(name, each) if isinstance(each, tuple) else ir.AttrInt64(name, each)
        for name, each in call.attributes.items()
    ]
    node = ir.Node(DOMAIN, call.function, inputs, attributes)
    node.outputs[0].name = "output"
    return node


def _matched(body: ir.Graph, value: ir.Value) -> _Found | None:
    """Return which value of the model each value of `body` is, if `value` is its output; None if it isn't."""
    found: _Found = {body.outputs[0]: value}
    for node in reversed(body):  # readers first
        made = [output for output in node.outputs if output in found]
        if not made:
            continue
        twin = found[made[0]].producer()
        if twin is None or not _alike(node, twin):
            return None
        if any(twin.outputs[output.index() or 0] is not found[output] for output in made):
            return None
        for own, other in zip(node.inputs, twin.inputs, strict=True):
            if own is not None and (other is None or found.setdefault(own, other) is not other):
                return None
    return found if all(each in found for each in body.inputs) else None


def _alike(node: ir.Node, other: ir.Node) -> bool:
    """Return whether two nodes are the same but for the names of what they read and make."""
    if node.op_identifier() != other.op_identifier() or len(node.inputs) != len(other.inputs):
        return False
    if len(node.outputs) != len(other.outputs) or node.attributes.keys() != other.attributes.keys():
        return False
    pairs = [(node.attributes[name], other.attributes[name]) for name in node.attributes]
    return all(
        one.type == two.type and ir.serde.serialize_attribute(one) == ir.serde.serialize_attribute(two)
        for one, two in pairs
    )


def _put_back(model: ir.Model, calls: list[tuple[_Line, ir.Graph, _Found]]) -> int:
    """Make calls of what was found; return the bytes of the nodes that are gone."""
    new: dict[ir.Value, ir.Value] = {}
    for call, body, found in calls:
        old = found[body.outputs[0]]
        node = _node(call, [new.get(found[each], found[each]) for each in body.inputs])
        new[old] = node.outputs[0]
        maker = old.producer()
        assert maker is not None
        assert isinstance(maker.graph, ir.Graph)
        maker.graph.insert_before(maker, node)
        node.outputs[0].type, node.outputs[0].shape = old.type, old.shape
        ir.convenience.replace_all_uses_with(old, node.outputs[0], replace_graph_outputs=True)
        node.outputs[0].name, old.name = old.name, None
        for function in FORMATS[call.function].functions(opset(model)):
            model.functions[function.identifier()] = function
    model.opset_imports[DOMAIN] = VERSION
    found_nodes = {value.producer() for _, _, found in calls for value in found.values()}
    size = 0
    for graph in reversed(_graphs(model)):
        for node in reversed(graph):
            if node in found_nodes and not any(
                each.uses() or each.is_graph_output() for each in node.outputs
            ):
                size += ir.to_proto(node).ByteSize() + 2
                graph.remove(node, safe=True)
    return size
