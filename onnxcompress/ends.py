"""The first and last layers of a model, which coarse weights hurt most."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from onnxcompress.channels.flow import captured, inner
from onnxcompress.layers import Layer


def ends(main: ir.Graph, layers: Iterable[Layer]) -> set[Layer]:
    """Return those of `layers` with no other of them before them, or none behind.

    `main` is the main graph, whose nodes are in topological order. A node with bodies stands for all layers
    in them; layers of functions are no ends.
    """
    by_node: dict[ir.Node, list[Layer]] = {}
    for layer in layers:
        by_node.setdefault(layer.node, []).append(layer)
    held: dict[ir.Node, list[Layer]] = {}
    read: dict[ir.Node, set[ir.Value | None]] = {}
    for node in main:
        inside = [each for graph in inner(node) for each in graph]
        held[node] = [layer for each in (node, *inside) for layer in by_node.get(each, ())]
        read[node] = {*node.inputs, *captured(node)}
    behind: set[ir.Value | None] = set()
    found: set[Layer] = set()
    for node in main:
        follows = not behind.isdisjoint(read[node])
        found.update(() if follows else held[node])
        behind.update(node.outputs if follows or held[node] else ())
    before: set[ir.Value | None] = set()
    for node in reversed(main):
        leads = not before.isdisjoint(node.outputs)
        found.update(() if leads else held[node])
        before.update({*read[node]} - {None} if leads or held[node] else ())
    return found
