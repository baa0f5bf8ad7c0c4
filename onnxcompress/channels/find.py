"""Finding the channels of a model, and removing some of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import onnx_ir as ir

from onnxcompress.base import Context
from onnxcompress.channels.example import Example
from onnxcompress.channels.flow import Flow
from onnxcompress.channels.labels import TangledError
from onnxcompress.channels.removal import Removal, plan
from onnxcompress.channels.rules import RULES, otherwise
from onnxcompress.channels.surgery import Cuts, cut, spellable
from onnxcompress.channels.units import Units
from onnxcompress.layers import Layer, layers


@dataclass
class Plan:
    """A removal that can be done: the units that stay, the flow of what they keep, and every slice."""

    stay: np.ndarray
    removal: Removal
    cuts: Cuts


@dataclass
class Channels:
    """The channels of `model`: the flow of their labels, and the units they form."""

    model: ir.Model
    flow: Flow
    units: Units = field(init=False)

    def __post_init__(self) -> None:
        self.units = Units(self.flow)

    def plan(self, choose: Callable[[Units], np.ndarray]) -> Plan:
        """Return how to remove the units that `choose` doesn't keep, bool [units].

        Where what is kept can't be arranged, the units that meet there are frozen with that reason, and
        `choose` is asked again.
        """
        while True:
            stay = choose(self.units)
            try:
                removal, cuts = plan(self.flow, stay[self.units.of], partial(walk, self.model))
                spellable(self.model, removal)
            except TangledError as error:
                self._give_up(stay, error)
            else:
                return Plan(stay, removal, cuts)

    def remove(self, made: Plan) -> None:
        """Remove from the model what the plan `made` of it says; the channels are those before, then."""
        cut(self.model, made.removal, made.cuts)

    def hidden(self) -> list[Layer]:
        """Return the layers inside bodies and functions, which no label reaches."""
        return [layer for layer in layers(self.model, Context()) if layer.node.graph is not self.model.graph]

    def _give_up(self, stay: np.ndarray, error: TangledError) -> None:
        """Freeze the families, a unit of which goes, that meet at the node of `error`."""
        assert error.node is not None
        values = [each for each in (*error.node.inputs, *error.node.outputs) if each in self.flow.arrays]
        met = np.unique(np.concatenate([self.units.of[self.flow.arrays[each].ravel()] for each in values]))
        family = self.units.family[met[self.units.family[met] >= 0]]
        units = np.flatnonzero(np.isin(self.units.family, family))
        if stay[units].all():
            raise error
        self.units.freeze(units, str(error))


def find(
    model: ir.Model,
    context: Context | None = None,
    exclude: str = "",
    shapes: Mapping[str, Sequence[int | str | None]] | None = None,
) -> Channels:
    """Return the channels of the main graph of `model`.

    Layers excluded by `context` or the pattern `exclude` keep all they read and make. `shapes` gives inputs
    the dimensions that the model leaves open.
    """
    flow = Flow(Example(model, shapes or {}), _refusals(model, context or Context(), exclude))
    for value in model.graph.inputs:
        flow.keep(value, f"graph input {value.name}")
    walk(model, flow)
    return Channels(model, flow)


def walk(model: ir.Model, flow: Flow) -> None:
    """Let `flow` pass through the main graph of `model`, whose inputs have their labels."""
    flow.walk(model.graph, RULES, otherwise)
    for value in model.graph.outputs:
        flow.freeze(flow.labels(value), None, f"graph output {value.name}")


def _refusals(model: ir.Model, context: Context, exclude: str) -> dict[ir.Node, str]:
    """Return why layers keep all their channels."""
    found: dict[ir.Node, str] = {}
    for layer in layers(model, context):
        if reason := _refusal(layer, context, exclude):
            found.setdefault(layer.node, reason)
    return found


def _refusal(layer: Layer, context: Context, exclude: str) -> str | None:
    if context.excludes(layer.name, exclude) or context.excludes(layer.weight.name or "", exclude):
        return "excluded"
    if len(layer.weight.uses()) > 1 or layer.weight.is_graph_output():
        return "its weight is shared"
    return "its weight is also a graph input" if layer.weight.is_graph_input() else None
