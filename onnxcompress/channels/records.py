"""What a removal did to each layer, and why it left others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxcompress.base import Result
from onnxcompress.channels.find import Channels, Plan
from onnxcompress.channels.flow import Ride
from onnxcompress.evaluate import label

_RECURRENT = ("LSTM", "GRU", "RNN")
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Gather", *_RECURRENT)


@dataclass(frozen=True)
class Span:
    """Units alike: the layers that make and that read their channels, how many there are, why they stay.

    `channels` is how many channels of the layers that make them all units have together; `reason` is None
    where they can go.
    """

    made_by: tuple[str, ...]
    read_by: tuple[str, ...]
    units: int
    channels: int
    reason: str | None


def spans(channels: Channels) -> Iterator[Span]:
    """Yield the units of `channels`, those of the same layers and the same fate together, in node order."""
    units, flow = channels.units, channels.flow
    readers: dict[int, dict[str, None]] = {}
    for ride in flow.rides.values():
        if ride.role == "in":
            for number in np.unique(units.family[units.of[ride.labels.ravel()]]).tolist():
                readers.setdefault(number, {})[name_of(ride.node)] = None
    size = np.zeros(units.count, np.int64)
    for source in flow.sources:
        np.add.at(size, units.of[source.start : source.stop], 1)
    for family in units.families:
        fates: dict[str | None, list[int]] = {}
        for unit in family.units.tolist():
            fates.setdefault(units.reason(unit), []).append(unit)
        made = tuple(map(name_of, family.layers))
        read = tuple(readers.get(int(units.family[family.units[0]]), ()))
        for reason, members in fates.items():
            yield Span(made, read, len(members), int(size[members].sum()), reason)


def name_of(node: ir.Node) -> str:
    """Return the name of `node`, or what messages call it where it has none."""
    return node.name or label(node)


def record(result: Result, channels: Channels, plan: Plan, what: str = "channels removed") -> None:
    """Record in `result` each layer that `plan` changes, with the channels it loses, and those it leaves.

    ``inputs`` and ``outputs`` are how many channels stay of how many; ``inputs_removed`` and
    ``outputs_removed`` which ones go, numbered as in the model before, such as "0-3,7"; ``outputs_stay`` why
    none of a layer's own go where it only reads fewer.
    """
    units, left = channels.units, set()
    sides: dict[ir.Node, dict[str, np.ndarray]] = {}
    for ride in channels.flow.rides.values():
        if ride.node.op_type in _LAYERS:
            sides.setdefault(ride.node, {}).update(_sides(channels, ride))
    stays = {
        node: _reason(channels, family.units)
        for family in units.families
        if plan.stay[family.units].all()
        for node in family.layers
    }
    for node, found in sides.items():
        numbers: dict[str, int | str] = {}
        for side, labels in found.items():
            gone = np.flatnonzero(~plan.removal.kept[labels])
            if len(gone):
                numbers[f"{side}_before"] = len(labels)
                numbers[side] = len(labels) - len(gone)
                numbers[f"{side}_removed"] = ranges(gone)
        if numbers and node in stays:
            numbers["outputs_stay"] = stays[node]
        if numbers:
            result.changed(name_of(node), what, **numbers)
            left.add(node)
    for node, reason in channels.flow.refusals.items():
        result.left(name_of(node), reason)
        left.add(node)
    for node, reason in stays.items():
        if node not in left:
            result.left(name_of(node), reason)
    result.left_all(channels.hidden(), "inside a body or a function")


def _reason(channels: Channels, family: np.ndarray) -> str:
    """Return why no unit of a family goes."""
    reasons = [channels.units.reason(int(unit)) for unit in family if channels.units.frozen[unit]]
    return reasons[0] or "" if reasons else "no channel to spare"


def _sides(channels: Channels, ride: Ride) -> dict[str, np.ndarray]:
    """Return the labels of the channels a layer reads ("inputs") and makes ("outputs"), as `ride` tells."""
    labels, place = ride.labels.reshape(-1), ride.place
    if ride.node.op_type in _RECURRENT:
        side = {(1, "in"): "inputs", (2, "in"): "outputs"}.get((place, ride.role))
        return {side: labels} if side else {}
    if ride.role != "with":
        return {"inputs" if ride.role == "in" else "outputs": labels}
    if place != 1 or ride.node.op_type not in ("Conv", "ConvTranspose"):
        return {}
    return {"inputs": channels.flow.labels(ride.node.inputs[0]).reshape(-1), "outputs": labels}


def ranges(numbers: Iterable[int]) -> str:
    """Return ascending `numbers` as text, neighbours together: "0-3,7"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1] = [parts[-1][0], int(number)]
        else:
            parts.append([int(number)])
    return ",".join("-".join(map(str, part)) for part in parts)
