"""Static quantization: layers that compute with integers whose ranges are found on calibration data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxcompress.base import Context, Result
from onnxcompress.calibrate import Statistics, calibrate
from onnxcompress.correction import takes_bias
from onnxcompress.integer import Integers
from onnxcompress.layers import Layer, constant
from onnxcompress.placement import Placement, place
from onnxcompress.qdq import write
from onnxcompress.quantize import Activations
from onnxcompress.spreading import Spread, spreads

Means = dict[Layer, np.ndarray]  # of the input channels of layers, float64 [channels]


@dataclass(frozen=True)
class Placed:
    """Where integers go, the layers that compute with them, by weight, and why other readers don't."""

    placement: Placement
    able: list[list[Layer]]
    reasons: dict[Layer, str | None]


@dataclass(frozen=True, kw_only=True)
class Static:
    """How layers get to compute with integers.

    `refusal` says why one can't or mustn't. Weights have a scale for each output channel where `per_channel`,
    `levels` steps on each side, and scales that round best with `clip`; activations are of `form`, their
    ranges found by `calibrator` and `percentile` (see :func:`onnxcompress.calibrate.calibrate`). Where
    `correct`, biases make up for what rounding does to means; of layers that keep computing with floats only
    those of at least `min_size` elements are rounded.
    """

    refusal: Callable[[Layer], str | None]
    per_channel: bool
    levels: int
    clip: bool
    form: Activations
    calibrator: str
    percentile: float
    correct: bool
    min_size: int

    def place(self, graph: ir.Graph, groups: Sequence[list[Layer]]) -> Placed:
        """Return where in `graph` integers go; `groups` are the layers that may be changed, by weight."""
        able, reasons = [], dict[Layer, str | None]()
        for readers in groups:
            reasons |= {layer: self.refusal(layer) for layer in readers}
            fit = [layer for layer in readers if reasons[layer] is None]
            for layer in fit:
                if layer.channel_axes != fit[0].channel_axes:
                    reasons[layer] = f"{fit[0].name} has the channels of their weight along another axis"
            if fit:
                able.append([layer for layer in fit if reasons[layer] is None])
        weighted = {layer.node: layer for fit in able for layer in fit}
        return Placed(place(graph, weighted, absorb=not self.form.symmetric), able, reasons)

    def compute(
        self, integers: Integers, context: Context, result: Result, groups: Sequence[list[Layer]]
    ) -> tuple[list[list[Layer]], Means]:
        """Make what can compute with integers do so; return the layers of `groups` that are left, by weight.

        With them the means of their input channels, as far as they are known.
        """
        model = integers.edit.model
        placed = self.place(model.graph, groups)
        placement, weights = placed.placement, {fit[0].weight for fit in placed.able}
        rest = [readers for readers in groups if readers[0].weight not in weights]
        done = [
            (layer, placed.reasons[layer], layer.size)
            for readers in groups
            if readers[0].weight in weights
            for layer in readers
        ]
        gaps = list(placement.gaps())
        layers = [layer for fit in placed.able for layer in fit]
        left = [layer for readers in rest for layer in readers]
        spread = spreads(placement, layers, left) if self.per_channel and not self.form.symmetric else []
        reads = {
            layer: value.name or ""
            for layer in [*layers, *(layer for layer in left if layer.size >= self.min_size)]
            if self._corrects(layer, model.graph) and (value := layer.node.inputs[0]) and not constant(value)
        }
        found = self._observe(model, context, placement, set(reads.values()), spread)
        steps = write(
            integers,
            placement,
            placed.able,
            found,
            self.per_channel,
            self.form,
            self.levels,
            self.clip,
            spread,
        )
        for layer, reason, size in done:
            result.changed(layer, f"stored as int8, {reason}" if reason else "computes with int8", size=size)
        for node in gaps:
            result.left(node.name or node.op_type, f"no 8-bit {node.op_type}")
        means = {
            layer: found.means[name] / steps.get(layer, 1) for layer, name in reads.items() if found.means
        }
        return rest, means

    def _observe(
        self,
        model: ir.Model,
        context: Context,
        placement: Placement,
        means: Collection[str],
        spread: Sequence[Spread],
    ) -> Statistics:
        """Return what is found of activations on the calibration data, and the means of those in `means`."""
        names = [value.name or "" for value in placement.observed() if constant(value) is None]
        if not (names or means) or context.calibration is None or context.runtime is None:
            return Statistics({}, {}, {})
        return calibrate(
            model,
            names,
            context.calibration,
            context.runtime,
            self.calibrator,
            percentile=self.percentile,
            maxima=[each.value.name or "" for each in spread],
            means=sorted(means),
            progress=context.progress,
        )

    def _corrects(self, layer: Layer, main: ir.Graph) -> bool:
        """Return whether the bias of `layer` is to make up for what rounding its weight does to means."""
        able = self.correct and takes_bias(layer) and layer.node.graph is main and layer.position == 1
        return able and layer.bias() is not None
