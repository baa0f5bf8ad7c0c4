"""Which units are blocked wherever they are read, and the constants they leave in their readers' biases."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxcompress.channels.blocked import Carried, carried, offset, padded
from onnxcompress.channels.find import Channels, Plan
from onnxcompress.channels.flow import Ride
from onnxcompress.channels.labels import matched
from onnxcompress.channels.score import norms
from onnxcompress.edit import Edit
from onnxcompress.layers import Layer
from onnxcompress.linear import put_bias

BORDER = "its constant can't be folded: zeros lie beyond the border of a layer that reads it"
PARTLY = "blocked, but not everywhere it is read"
SUMMED = "blocked, but summed with others without weights"
EQUAL = "blocked, but groups must keep equal counts"
LAST = "blocked, but the last channel of its layer or part"


@dataclass
class Blocking:
    """The blocked units of `channels`: which are `allowed` to go, and why others stay, by unit."""

    channels: Channels
    values: Carried = field(init=False)
    allowed: np.ndarray = field(init=False)
    reasons: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        units = self.channels.units
        self.values = carried(self.channels)
        fine, blocked, some = np.ones((3, units.count), bool)
        some[:] = False
        for ride in self._reads():
            number = units.of[ride.labels.ravel()]
            zero, constant = self._unread(ride), self._constant(ride)
            known = zero | np.isfinite(constant)
            np.logical_and.at(blocked, number, known)
            np.logical_or.at(some, number, known)
            np.logical_and.at(fine, number, zero | (constant == 0) | (known & self._foldable(ride)))
        summed = np.zeros(units.count, bool)
        for node, place in self.channels.flow.summed:
            labels = self.channels.flow.labels(node.inputs[place])
            number, constant = units.of[labels.ravel()], self._carried(node.inputs[place], labels.size)
            np.logical_and.at(blocked, number, np.isfinite(constant))
            np.logical_or.at(some, number, np.isfinite(constant))
            summed[number[constant != 0]] = True
        self.allowed = fine & ~summed & ~units.frozen & (units.family >= 0)
        for reason, which in (
            (PARTLY, some & ~blocked),
            (BORDER, some & blocked & ~fine),
            (SUMMED, some & fine & summed),
        ):
            self.reasons |= dict.fromkeys(np.flatnonzero(which & ~units.frozen).tolist(), reason)
        for unit in np.flatnonzero(some & blocked & units.frozen & (units.family >= 0)).tolist():
            self.reasons[unit] = f"blocked, but {units.reason(unit)}"

    def choose(self) -> np.ndarray:
        """Return which units stay, bool [units]."""
        units = self.channels.units
        return units.choose(np.zeros(units.count), np.ones(units.count), allowed=self.allowed)

    def left(self, stay: np.ndarray) -> dict[tuple[str, str], int]:
        """Return how many blocked units stay, by the name of their first layer and the reason."""
        units, found = self.channels.units, dict(self.reasons)
        left = [np.unique(whole[stay[whole]]) for whole in units.wholes]
        last = {int(whole[0]) for whole in left if len(whole) == 1}
        for unit in np.flatnonzero(self.allowed & stay).tolist():
            found[unit] = LAST if unit in last else units.reason(unit) or EQUAL
        names = {int(units.family[each.units[0]]): each.name for each in units.families}
        counts: dict[tuple[str, str], int] = {}
        for unit, reason in sorted(found.items()):
            key = names[int(units.family[unit])], reason
            counts[key] = counts.get(key, 0) + 1
        return counts

    def offsets(self, plan: Plan) -> dict[ir.Node, np.ndarray]:
        """Return what the channels that go add to each output that stays of the layers that read them."""
        found = {}
        flow, removal = self.channels.flow, plan.removal
        for ride in self._reads():
            constant = np.nan_to_num(self._constant(ride))
            constant[removal.kept[ride.labels.ravel()] | self._unread(ride)] = 0
            if constant.any():
                made = offset(flow, ride.node, constant)
                for key, own in flow.rides.items():
                    if own.node is ride.node and own.role == "out":
                        made = made[matched(removal.rides[key].labels, own.labels)]
                found[ride.node] = made
        return found

    def _reads(self) -> list[Ride]:
        return [ride for ride in self.channels.flow.rides.values() if ride.role == "in"]

    def _unread(self, ride: Ride) -> np.ndarray:
        """Return for each channel of `ride` whether the layer's weights for it are all zero."""
        return np.asarray(norms(self.channels, ride, "l1").ravel() == 0)

    def _constant(self, ride: Ride) -> np.ndarray:
        """Return what the channels carry that a layer reads as `ride` says; NaN where that varies."""
        if ride.place == 2:
            return np.full(ride.labels.size, np.nan)
        return self._carried(ride.node.inputs[0 if ride.place else 1], ride.labels.size)

    def _carried(self, value: ir.Value | None, size: int) -> np.ndarray:
        """Return what the `size` channels of `value` carry, float64 [size]; NaN where that varies."""
        found = self.values.get(value) if value is not None else None
        return np.full(size, np.nan) if found is None or found.size != size else found.reshape(-1).copy()

    def _foldable(self, ride: Ride) -> bool:
        """Return whether a constant that a layer reads can become part of its bias."""
        node = ride.node
        if node.op_type == "MatMul":
            return True
        layer = Layer(node, ride.place)
        plain = node.op_type in ("Conv", "Gemm") and not padded(node) and not layer.weight.producer()
        return plain and layer.bias() is not None


def add_offset(edit: Edit, node: ir.Node, offset: np.ndarray) -> None:
    """Add `offset` [outputs] to what the Conv, Gemm or MatMul `node` computes."""
    graph = edit.model.graph
    layer = Layer(node, 1)
    if node.op_type != "MatMul":
        bias = layer.bias()
        assert bias is not None
        put_bias(edit, layer, bias + offset)
        return
    left = node.inputs[1] is not None and node.inputs[1].const_value is None
    tensor = Layer(node, 0 if left else 1).tensor
    made = offset.astype(tensor.dtype.numpy())
    output = node.outputs[0]
    added = edit.constant(graph, f"{layer.name}_offset", made.reshape(-1, 1) if left else made)
    add = edit.node("Add", [output, added], f"{layer.name}_shifted")
    graph.insert_after(node, [add])
    total = add.outputs[0]
    total.shape, total.type = output.shape, output.type
    ir.convenience.replace_all_uses_with(output, total, replace_graph_outputs=True)
    add.replace_input_with(0, output)
    total.name, output.name = output.name, total.name
