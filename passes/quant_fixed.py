"""Dynamic fixed point: weights and activations with one power-of-two scale each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import onnx_ir as ir

from onnxcompress.base import Context, Result, option
from onnxcompress.calibrate import METHODS, calibrate
from onnxcompress.errors import UsageError
from onnxcompress.fixedpoint import OPSET, activation, fixed_range, round_activations
from onnxcompress.layers import Layer, by_weight
from onnxcompress.model import convert_up
from onnxcompress.rounding import RoundingPass
from onnxcompress.schemes import fixed


@dataclass(frozen=True, kw_only=True)
class QuantFixed(RoundingPass):
    """Let weights and what they multiply be whole numbers of few bits, times a power of two for each tensor.

    Before: ``y = Conv(x, W, b)``
    After:  ``y = Conv(Clip(Round(x * 2**-d)) * 2**d, W', b)``, W' being ``q * 2**e``, q of ``bits`` bits

    The scale of a weight is the power of two that makes the squared error least, that of an activation the
    least that holds all numbers seen on calibration data, or what ``calibrator`` leaves of them. Numbers are
    in two's complement, activations that can't be negative are unsigned. Activations are rounded by
    standard operators on floats: the model computes what fixed-point hardware does, but for the rounding of
    sums, and gets slower in a float engine; ``quant`` is what makes models faster. Rounded are activations of
    the main graph that a Conv, ConvTranspose, Gemm or MatMul multiplies by one of the weights; biases stay.
    Weights of up to 8 bits take that many bits or fewer once ``encode`` stores them, wider ones take what
    they did. With ``importance=inputs`` convolutions without groups and matrix products of the main graph
    make up for the error of each input by the weights of the next ones, on calibration data.
    Source: Courbariaux et al., Training deep neural networks with low precision multiplications, 2014;
    Gysel et al., Ristretto, 2016; Frantar et al., GPTQ, ICLR 2023 (importance).
    """

    name: ClassVar[str] = "quant-fixed"

    bits: int = option(8, "bits of a weight", within=(2, 16))
    activations: str = option(
        "auto", "none or static; auto is static with calibration data", choices=("auto", "none", "static")
    )
    activation_bits: int = option(8, "bits of an activation", within=(2, 16))
    calibrator: str = option("min-max", "how the range of an activation is found", choices=METHODS)

    def call(self, model: ir.Model, context: Context) -> Result:
        """Put weights and activations of `model` on fixed-point grids in place."""
        result = Result(model)
        static = self.activations == "static" or (
            self.activations == "auto" and context.calibration is not None
        )
        if static and (context.calibration is None or context.runtime is None):
            raise UsageError(f"{self.name}: activations=static needs calibration data, none was given")
        if static and any(reason is None for _, reason in by_weight(model, context, self.exclude)):
            convert_up(model, OPSET)
        grid = partial(fixed, bits=self.bits)
        groups = self.round(model, context, result, "rounded to fixed point", grid, False)
        if static:
            self.round_activations([layer for readers in groups for layer in readers], model, context, result)
        return result

    def round_activations(
        self, layers: Sequence[Layer], model: ir.Model, context: Context, result: Result
    ) -> None:
        """Round what `layers` multiply by their weights."""
        readers: dict[ir.Value, list[Layer]] = {}
        for layer in layers:
            value = activation(layer, model.graph)
            if isinstance(value, str):
                result.left(f"input of {layer.name}", value)
            else:
                readers.setdefault(value, []).append(layer)
        if not readers or context.calibration is None or context.runtime is None:
            return
        ranges = calibrate(
            model,
            [value.name or "" for value in readers],
            context.calibration,
            context.runtime.patient(),
            self.calibrator,
            progress=context.progress,
        ).ranges
        grids = {
            value: fixed_range(value, ranges[value.name or ""], self.activation_bits) for value in readers
        }
        round_activations(model, readers, grids)
        for value, found in grids.items():
            result.changed(value.name or "", "activation rounded to fixed point", scale=found.scale)
