"""Writing a removal into the model: slices of constants, attributes and numbers that spell sizes, shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxcompress.channels.flow import Flow, captured
from onnxcompress.channels.labels import TangledError, varying
from onnxcompress.channels.removal import Removal, Slices
from onnxcompress.edit import Edit, drop
from onnxcompress.evaluate import label
from onnxcompress.layers import constant, put_constant
from onnxcompress.model import lazy

Cuts = Mapping[tuple[ir.Node, int], Slices]


def cut(model: ir.Model, removal: Removal, cuts: Cuts) -> None:
    """Slice the constants of `model` by `cuts` and make everything else fit, as `removal` says."""
    edit = Edit(model)
    _spell(edit, removal)
    for (node, place), slices in cuts.items():
        _slice(edit, removal, node, place, slices)
    for value in removal.arrays:
        _reshape(removal, value)


def spellable(model: ir.Model, removal: Removal) -> None:
    """Raise TangledError where a number to be changed is computed in a way that can't be followed.

    And where a number that would change by itself is more than a size: a factor, for one.
    """
    for (node, where), values in removal.spelled.items():
        if isinstance(where, int):
            wanted = _wanted(removal, node, where, values)
            if wanted is not None and not _reachable(removal, node.inputs[where], wanted):
                raise TangledError("a size is computed in a way that can't be followed", node)
    for node in model.graph:
        if all(removal.example.known(value) is not None for value in node.outputs):
            continue
        read = [value for place, value in enumerate(node.inputs) if (node, place) not in removal.spelled]
        if changed := next((each for each in [*read, *captured(node)] if _changes(removal, each)), None):
            raise TangledError(
                f"{label(node)} computes with a size that would change,", _maker(removal, changed)
            )
    if changed := next((value for value in model.graph.outputs if _changes(removal, value)), None):
        raise TangledError(f"output {changed.name} is a size that would change,", _maker(removal, changed))


def _changes(removal: Removal, value: ir.Value | None) -> bool:
    """Return whether what `value` computes to by itself is something else after `removal`."""
    known = removal.example.known(value)
    if value is None or known is None or removal.example.fixed(value):
        return False
    now = removal.content(value)
    return now is None or not np.array_equal(now, known)


def _maker(removal: Removal, value: ir.Value) -> ir.Node:
    """Return the Shape or Size from which a change came to `value`."""
    node = value.producer()
    while node is not None and node.op_type not in ("Shape", "Size"):
        node = next(each for each in node.inputs if _changes(removal, each)).producer()  # type: ignore[union-attr]
    assert node is not None
    return node


def _wanted(removal: Removal, node: ir.Node, place: int, values: Sequence[int]) -> list[int] | None:
    """Return what input `place` of `node` must hold; None where it does already."""
    now = removal.content(node.inputs[place])
    if now is None:
        return list(values)
    found = [int(each) for each in now.reshape(-1)]
    if node.op_type != "Reshape":
        return None if found == list(values) else list(values)
    given = removal.target(node.inputs[0])  # type: ignore[arg-type]
    assert given is not None
    if resolved(found, given) == list(values):
        return None
    same = [old == 0 and given[place] == values[place] for place, old in enumerate(found)]
    open_one = found.count(-1) == 1
    return [
        old if (old == -1 and open_one) or same[place] else values[place] for place, old in enumerate(found)
    ]


def resolved(target: Sequence[int], given: Sequence[int]) -> list[int] | None:
    """Return the shape a Reshape makes of `given` for its `target`, which may hold 0 and -1."""
    sizes = [given[place] if each == 0 and place < len(given) else each for place, each in enumerate(target)]
    rest = int(np.prod([each for each in sizes if each != -1]))
    total = int(np.prod(given))
    if rest == 0 or total % rest:
        return None
    return [total // rest if each == -1 else each for each in sizes]


def _reachable(removal: Removal, value: ir.Value | None, wanted: Sequence[int]) -> bool:
    if value is None:
        return False
    node = value.producer()
    if removal.example.fixed(value) or len(wanted) == 1 or node is None:
        return removal.example.fixed(value) or len(wanted) == 1
    if node.op_type == "Concat":
        return all(removal.example.known(each) is not None for each in node.inputs)
    return node.op_type in ("Cast", "Identity") and _reachable(removal, node.inputs[0], wanted)


def _spell(edit: Edit, removal: Removal) -> None:
    for (node, where), values in removal.spelled.items():
        if isinstance(where, int):
            wanted = _wanted(removal, node, where, values)
            if wanted is not None:
                _respell(edit, removal, node, where, wanted)
        elif where == "sizes":
            graph = node.graph
            assert isinstance(graph, ir.Graph)
            if removal.example.version < 13:
                node.attributes["split"] = ir.AttrInt64s("split", values)
            else:
                node.resize_inputs(2)
                node.replace_input_with(1, edit.constant(graph, f"{node.name}_split", np.array(values)))
                node.attributes.pop("num_outputs", None)
        else:
            old = node.attributes.get(where)
            many = old is not None and old.type == ir.AttributeType.INTS
            node.attributes[where] = ir.AttrInt64s(where, values) if many else ir.AttrInt64(where, values[0])


def _respell(edit: Edit, removal: Removal, node: ir.Node, place: int, wanted: Sequence[int]) -> None:
    """Make input `place` of `node` hold `wanted`, piece by piece where it is put together."""
    value = node.inputs[place]
    assert value is not None
    maker = value.producer()
    joined = maker is not None and maker.op_type == "Concat" and not removal.example.fixed(value)
    if not joined or maker is None:
        known = removal.example.known(value)
        assert known is not None
        assert isinstance(node.graph, ir.Graph)
        made = np.array(wanted, known.dtype).reshape(known.shape if known.size == len(wanted) else -1)
        node.replace_input_with(place, edit.constant(node.graph, f"{value.name}_kept", made))
        drop(value)
        return
    start = 0
    for each, piece in enumerate(maker.inputs):
        now = removal.content(piece)
        assert now is not None
        part = list(wanted[start : start + now.size])
        if part != now.reshape(-1).tolist():
            _respell(edit, removal, maker, each, part)
        start += now.size


def _slice(edit: Edit, flow: Flow, node: ir.Node, place: int, slices: Slices) -> None:
    """Put what `slices` leave of input `place` of `node` in its place."""
    value = node.inputs[place]
    assert value is not None
    maker = value.producer()
    if maker is not None and maker.op_type == "DequantizeLinear":
        _slice_quantized(edit, flow, node, place, maker, slices)
        return
    tensor = constant(value)
    source = ir.tensor(flow.example.content(value)) if tensor is None else tensor
    made = lazy(source, slices.take, shape=slices.shape(source.shape.numpy()), name=value.name)
    if tensor is not None and len(value.uses()) == 1 and not value.is_graph_output():
        put_constant(value, made)
        return
    assert isinstance(node.graph, ir.Graph)
    new = edit.constant(node.graph, f"{value.name}_kept", made)
    node.replace_input_with(place, new)
    _drop(value)


def _drop(value: ir.Value) -> None:
    """Remove the constant `value` where nothing reads it, and what it was computed from."""
    maker = value.producer()
    if constant(value) is not None or maker is None:
        drop(value)
    elif not any(output.uses() or output.is_graph_output() for output in maker.outputs):
        inputs = [each for each in maker.inputs if each is not None]
        assert isinstance(maker.graph, ir.Graph)
        maker.graph.remove(maker, safe=True)
        for each in inputs:
            _drop(each)


def _slice_quantized(
    edit: Edit, flow: Flow, node: ir.Node, place: int, maker: ir.Node, slices: Slices
) -> None:
    """Slice what a DequantizeLinear makes a weight of, and its scales where each slice has one."""
    scales = flow.shape(maker.inputs[1]) or ()
    if len(maker.outputs[0].uses()) > 1:
        copy = edit.node(
            "DequantizeLinear",
            list(maker.inputs),
            f"{maker.outputs[0].name}_kept",
            dtype=maker.outputs[0].dtype,
        )
        for attribute in maker.attributes.values():
            copy.attributes[attribute.name] = attribute
        assert isinstance(node.graph, ir.Graph)
        node.graph.insert_before(node, [copy])
        node.replace_input_with(place, copy.outputs[0])
        maker = copy
    _slice(edit, flow, maker, 0, slices)
    shape = maker.outputs[0].shape
    if shape is not None and shape.is_static():
        maker.outputs[0].shape = ir.Shape(slices.shape(shape.numpy()))
    rank = len(flow.shape(maker.inputs[0]) or ())
    axis = maker.attributes.get_int("axis", 1) % max(rank, 1)
    if len(scales) == 1 and scales[0] > 1 and axis in slices.plain:
        for each in (1, 2):
            if each < len(maker.inputs) and maker.inputs[each] is not None:
                _slice(edit, flow, maker, each, Slices({0: slices.plain[axis]}, []))


def _reshape(removal: Removal, value: ir.Value) -> None:
    """Write the new sizes into the shape the model declares for `value`."""
    target, axes = removal.target(value), varying(removal.before(value))
    if target is None or not axes or value.shape is None or len(value.shape) != len(target):
        return
    value.shape = ir.Shape([target[axis] if axis in axes else size for axis, size in enumerate(value.shape)])
