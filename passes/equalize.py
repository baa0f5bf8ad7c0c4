"""Equalization: channels counted in such units that one scale serves all of an activation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxcompress.base import Context, Effect, Need, Pass, Result, option
from onnxcompress.channels.equalizing import equalize


@dataclass(frozen=True, kw_only=True)
class Equalize(Pass):
    """Equalize the ranges of channels between the layers that make them and those that read them.

    Before: ``y = Conv(Relu(Conv(x, A, b)), B)``
    After:  ``y = Conv(Relu(Conv(x, A / s, b / s)), B * s)``, s having one number for each channel between

    That changes no output but by rounding, and quantized activations, which have one scale for all channels,
    lose less. It needs operators between that are positively homogeneous: Relu, LeakyRelu and PRelu, pooling,
    sums with shortcuts, Concat and what only moves numbers; depthwise convolutions go along. A Clip is not,
    nor are Sigmoid and what is made of it. Channels keep their units where they meet another operator, an
    input or an output of the model. ``s`` is what a channel holds at most to the power of 3/4, over the norm
    of the weights that read it to the power of 1/4, each relative to other channels; without calibration
    data, largest weights that make a channel stand for what it holds. Where no channel is off by more than a
    quarter, a layer stays.
    In chains of layers, where one factor changes what another is made of, a second run changes a little more.
    ``quant`` does the same before it calibrates. Source: Nagel et al., Data-Free Quantization Through Weight
    Equalization and Bias Correction, ICCV 2019; Meller et al., Same, Same But Different, ICML 2019.
    """

    name: ClassVar[str] = "equalize"
    effect: ClassVar[Effect] = Effect.EXACT
    uses: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION, Need.RUNTIME})

    exclude: str = option(
        "", "leave layers alone whose whole name matches this regular expression", pattern=True
    )

    def call(self, model: ir.Model, context: Context) -> Result:
        """Equalize `model` in place."""
        result = Result(model)
        changed, stay = equalize(model, context, self.exclude)
        for name, factor in changed.items():
            result.changed(name, "outputs equalized", factor=factor)
        for name, reason in stay.items():
            result.left(name, reason)
        return result
