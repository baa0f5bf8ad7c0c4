"""Shuffling: dense convolutions as grouped ones, with channels permuted between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from onnxcompress.base import Context, Effect, Need, Pass, Result, option
from onnxcompress.channels import find
from onnxcompress.channels.labels import varying
from onnxcompress.channels.reorder import Grouping, Reordered, aims, reordered
from onnxcompress.channels.repair import REPAIRS, repair
from onnxcompress.channels.surgery import cut
from onnxcompress.convolve import Window
from onnxcompress.cost import MACS_PER_ELEMENT, chain_cost
from onnxcompress.edit import Edit, same_ports
from onnxcompress.errors import UsageError
from onnxcompress.geometry import known_sizes, window
from onnxcompress.grouping import blocks, contiguous, dealt, kept, search
from onnxcompress.layers import Layer, by_weight, constant, put_constant
from onnxcompress.model import clone, lazy
from onnxcompress.moments import mean_squares
from onnxcompress.shuffling import Writer, entrance, stand_behind, stand_in

_ODD = "its channels can't be divided into so many groups"


@dataclass(frozen=True, kw_only=True)
class Shuffle(Pass):
    """Write dense convolutions as grouped ones, and permute channels so that little of the weight is lost.

    Before: ``y = Conv(Relu(Conv(x, A [64, 64, 1, 1])), B [64, 64, 3, 3])``
    After:  ``y = Conv<group = 4>(Shuffle(Relu(Conv<group = 4>(x, A' [64, 16, 1, 1]))), B' [64, 16, 3, 3])``

    Which channels go into which group is searched for: what the weights between channels of one group hold of
    the energy shall be much. Energy is the sum of squares; on calibration data each input counts by its mean
    square. The channels of whole chains are then reordered in the weights and constants that hold them, so
    that groups lie one after the other at no cost. What permutations are left between two layers are Reshape,
    Transpose, Reshape where one is ShuffleNet's, and a Gather where it isn't. With ``search=false`` groups
    are blocks of the channels as they lie, and nothing is permuted. With ``explicit=true`` they are too, but
    between two layers with only depthwise convolutions, pooling, normalisation and activations between them
    ShuffleNet's shuffle comes right after the activation: its units.

    Parameters and multiplications of the layers are divided by ``groups``. Layers whose channels ``groups``
    doesn't divide stay, and those where moving the channels might cost more than is saved, as well as
    grouped ones: so a second run is idle. Source: Zhang et al., ShuffleNet, CVPR 2018.
    """

    name: ClassVar[str] = "shuffle"
    effect: ClassVar[Effect] = Effect.LOSSY
    uses: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION, Need.RUNTIME, Need.SEED})

    groups: int = option(4, "into how many groups", within=(2, 1024))
    search: bool = option(True, "search for the channels of each group; false: as they lie")
    explicit: bool = option(False, "no search, and plain shuffles between layers: ShuffleNet's units")
    energy: float = option(
        0.0, "leave layers alone that would keep a smaller share of their energy", within=(0.0, 1.0)
    )
    repair: str = option(
        "none", "what calibration data mend afterwards: biases, or weights as well", choices=REPAIRS
    )
    when: str = option(
        "cheaper",
        "only where multiplications saved outweigh moving what is read once",
        choices=("cheaper", "always"),
    )
    min_size: int = option(1024, "leave weights with fewer elements alone", within=(0, 2**62))
    exclude: str = option(
        "", "leave layers alone whose whole name matches this regular expression", pattern=True
    )

    def call(self, model: ir.Model, context: Context) -> Result:
        """Group the convolutions of `model` in place."""
        if self.repair != "none" and (context.calibration is None or context.runtime is None):
            raise UsageError(f"shuffle: repair={self.repair} needs calibration data, none was given")
        result, edit = Result(model), Edit(model)
        with same_ports(model):
            ShapeInferencePass()(model)  # sizes tell what layers cost, and how to write shuffles
        chosen = self.chosen(model, context, result)
        whole = clone(model)
        squares = mean_squares(whole, chosen, context)
        energies = {layer: energy(layer.value(), means) for layer, means in squares.items()}
        groupings, layers = self.groupings(edit, chosen, energies, context, result)
        if not groupings:
            return result
        channels = find(model, context, self.exclude)
        flow, cuts, groupings = reordered(channels, groupings, absorb=self.search and not self.explicit)
        cut(model, flow, cuts)
        writer = Writer(edit)
        for each in groupings:
            layer = layers[each.node]
            ends = [writer.write(value, flow.places[value]) for value in (each.before, each.behind)]
            share = kept(energies[layer], each.outputs, each.inputs)
            self.write(layer, chosen[layer], share, ends, result)
        if self.repair != "none":
            self.mend(whole, model, flow, set(layers), context, result)
        return result

    def chosen(self, model: ir.Model, context: Context, result: Result) -> dict[Layer, Window]:
        """Return the layers to group, and record why others stay."""
        found: dict[Layer, Window] = {}
        flow = find(model, context, self.exclude).flow
        for readers, reason in by_weight(model, context, self.exclude):
            layer = readers[0]
            fit = reason or self.fit(layer, model)
            ends = [] if isinstance(fit, str) else [layer.node.inputs[0], layer.node.outputs[0]]
            if any(varying(flow.labels(end)) != [1] for end in ends):
                fit = "what it reads or makes are no channels of their own"
            if isinstance(fit, str):
                numbers = {"inputs": layer.shape[1], "outputs": layer.shape[0]} if fit == _ODD else {}
                result.left_all(readers, fit, **numbers)
            else:
                found[layer] = fit
        return found

    def fit(self, layer: Layer, model: ir.Model) -> Window | str:
        """Return the window of `layer`, or why it must stay."""
        node, weight = layer.node, layer.weight
        if layer.op != "Conv":
            return "not a convolution"
        if node.graph is not model.graph:
            return "inside a body or a function"
        if len(weight.uses()) > 1 or weight.is_graph_output():
            return "its weight is read more than once"
        if node.attributes.get_int("group", 1) != 1:
            return "grouped already"
        if layer.size < self.min_size:
            return "too small"
        outputs, inputs = layer.shape[:2]
        if outputs % self.groups or inputs % self.groups:
            return _ODD
        if inputs == self.groups:
            return "a group would have one channel"
        if node.outputs[0].is_graph_output():
            return "it makes an output of the graph"
        if layer.bias() is None or (len(node.inputs) > 2 and constant(node.inputs[2]) is None):
            return "its bias is no constant"
        whole = window(layer)
        if isinstance(whole, str):
            return whole
        sizes, _ = known_sizes(layer)
        macs = chain_cost([whole], sizes).macs
        price = MACS_PER_ELEMENT * inputs * math.prod(sizes)
        if self.when == "cheaper" and macs - macs // self.groups <= price:
            return "moving its inputs might cost more than it saves"
        return whole

    def groupings(
        self,
        edit: Edit,
        chosen: dict[Layer, Window],
        energies: dict[Layer, np.ndarray],
        context: Context,
        result: Result,
    ) -> tuple[list[Grouping], dict[ir.Node, Layer]]:
        """Return which channels go into which groups, with places to permute them in the model."""
        groupings: list[Grouping] = []
        layers: dict[ir.Node, Layer] = {}
        for number, layer in enumerate(chosen):
            context.progress(number, len(chosen), "searching")
            between, node = energies[layer], layer.node
            if not between.any():
                result.left(layer, "all its weights are zero")
                continue
            outputs, inputs = (contiguous(size, self.groups) for size in layer.shape[:2])
            exits = {each.behind.producer() for each in groupings}
            door = entrance(node, exits, context, self.exclude) if self.explicit else None
            if door is not None:
                inputs[dealt(len(inputs), self.groups)] = inputs.copy()
            elif self.search and not self.explicit:
                outputs, inputs = search(between, self.groups, context.seed)
            share = kept(between, outputs, inputs)
            if share < self.energy:
                result.left(layer, "it would lose too much of its energy", energy=share)
                continue
            before = stand_in(edit, door or node)
            behind = stand_behind(edit, node, context, self.exclude)
            groupings.append(Grouping(node, before, behind, inputs, outputs))
            layers[node] = layer
        return groupings, layers

    def write(self, layer: Layer, whole: Window, share: float, ends: Sequence[str], result: Result) -> None:
        """Leave of the weight of `layer`, in its new order, what lies within groups."""
        outputs, inputs, *kernel = layer.shape
        dims = (outputs, inputs // self.groups, *kernel)
        sizes, known = known_sizes(layer)
        old, new = (chain_cost([each], sizes) for each in (whole, replace(whole, groups=self.groups)))
        result.changed(
            layer,
            "grouped",
            groups=self.groups,
            energy=share,
            before=ends[0],
            behind=ends[1],
            parameters=old.parameters,
            parameters_after=new.parameters,
            **({"macs": old.macs, "macs_after": new.macs} if known else {}),
        )
        put_constant(layer.weight, lazy(layer.tensor, partial(blocks, groups=self.groups), shape=dims))
        layer.node.attributes["group"] = ir.AttrInt64("group", self.groups)

    def mend(
        self,
        whole: ir.Model,
        model: ir.Model,
        flow: Reordered,
        grouped: set[ir.Node],
        context: Context,
        result: Result,
    ) -> None:
        """Repair the `grouped` layers of `model`, and the means of what comes after the first of them."""
        assert context.calibration is not None
        assert context.runtime is not None
        data, runtime = context.calibration, context.runtime
        layers = aims(model, flow, grouped)
        done = repair(
            whole, model, layers, data, runtime, self.repair, seed=context.seed, progress=context.progress
        )
        for record in result.records:
            if record.layer in done:
                record.numbers["repair"] = done[record.layer]


def energy(weight: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Return what `weight` [outputs, inputs, *kernel] carries between channels, float64 [outputs, inputs].

    `squares` [inputs, *kernel] is the mean square of what it is multiplied by.
    """
    carried = weight.astype(np.float64) ** 2 * squares
    return np.asarray(carried.reshape(*weight.shape[:2], -1).sum(axis=2))
