"""The time of each node, measured: onnxruntime's profile mapped back to the nodes of the model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import onnx_ir as ir

from onnxcompress.data import random_data
from onnxcompress.model import clone
from onnxcompress.runtimes.onnxruntime import Event, OnnxRuntime

RUNS = 20
_MARK = re.compile(r"~(\d+)~")


class Profile(NamedTuple):
    """Seconds by node, and for other nodes the one they were made one with; `added` are those of neither."""

    seconds: dict[str, float]
    groups: dict[str, str]
    added: float


def profile(
    model: ir.Model, shapes: Mapping[str, tuple[int, ...]], macs: Mapping[str, int], threads: int, seed: int
) -> Profile:
    """Return how long the nodes of `model` take onnxruntime on random inputs of `shapes`.

    The engine names what it makes of several nodes after one of them or after the value it makes, so that
    all nodes and values are given names that tell the node. A node that isn't found in any of these was made
    one with the node that alone reads it, or else with the one that it reads. The time of a group stands at
    the node with the most multiply-adds, which `macs` tells by name.
    """
    marked = clone(model)
    feeds = next(iter(random_data(marked, shapes=shapes, count=1, seed=seed)))
    nodes = list(marked.graph)
    for number, (node, original) in enumerate(zip(nodes, model.graph, strict=True)):
        node.name = f"{original.name} ~{number}~"
        for place, value in enumerate(node.outputs):
            if original.outputs[place].name:
                value.name = f"~{number}~{place}"
    events = OnnxRuntime.make(threads=threads).profile(marked, feeds, RUNS)
    times, added = _found(events)
    leaders = _leaders(nodes, set(times))
    names = [node.name or "" for node in model.graph]
    members: dict[int, list[int]] = {}
    for number, leader in leaders.items():
        members.setdefault(leader, []).append(number)
    seconds, groups = {}, {}
    for leader, group in members.items():
        main = max(group, key=lambda number: (macs.get(names[number], 0), number == leader, -number))
        seconds[names[main]] = times[leader]
        groups.update({names[number]: names[main] for number in group if number != main})
    return Profile(seconds, groups, added)


def _found(events: Iterable[Event]) -> tuple[dict[int, float], float]:
    """Return the seconds by the number of a node, and those of events that tell none."""
    times: dict[int, float] = {}
    added = 0.0
    for event in events:
        marks = _MARK.findall(event.name) or [mark for name in event.outputs for mark in _MARK.findall(name)]
        if marks:
            number = max(map(int, marks))
            times[number] = times.get(number, 0.0) + event.seconds
        else:
            added += event.seconds
    return times, added


def _leaders(nodes: list[ir.Node], seen: set[int]) -> dict[int, int]:
    """Return for each node the one of `seen` that it was made one with; itself for those."""
    numbers = {node: number for number, node in enumerate(nodes)}
    leaders = {number: number for number in seen}
    for number in reversed(range(len(nodes))):
        users = [user for value in nodes[number].outputs for user, _ in value.uses()]
        after = {leaders.get(numbers.get(user, -1)) for user in users}
        (only,) = after if len(after) == 1 else (None,)
        if number not in leaders and only is not None:
            leaders[number] = only
    for number, node in enumerate(nodes):
        makers = [value.producer() for value in node.inputs if value is not None]
        before = [leaders.get(numbers[maker]) for maker in makers if maker in numbers]
        found = next((each for each in before if each is not None), None)
        if number not in leaders and found is not None:
            leaders[number] = found
    return leaders
