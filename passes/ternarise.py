"""Ternary weights: zero, and one magnitude of either sign."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import onnx_ir as ir

from onnxcompress.base import Context, Result, option
from onnxcompress.rounding import RoundingPass
from onnxcompress.schemes import ternary


@dataclass(frozen=True, kw_only=True)
class Ternarise(RoundingPass):
    """Let each weight be zero, or one magnitude with its sign.

    Before: ``y = MatMul(x, W)``
    After:  ``y = MatMul(x, W')``, each output channel of W' holding only 0, a and -a

    Weights up to 0.7 times the mean magnitude of their channel become zero, and a is the mean magnitude of
    the others; with ``scales=two`` positive and negative ones have a mean each. Convolutions, matrix
    products, recurrent layers and look-up tables get ternary; biases stay, and unless ``keep_ends=false`` so
    do the first and the last layers. Ternary weights alone make no file smaller: ``encode`` stores them in 2
    bits or fewer. Networks that were not trained for it lose much; with ``importance=inputs`` they lose less:
    convolutions without groups and matrix products of the main graph then make up for the error of each
    input by the weights of the next ones, on calibration data.
    Source: Li and Liu, Ternary Weight Networks, 2016; Zhu et al., Trained Ternary Quantization, ICLR 2017;
    Frantar et al., GPTQ, ICLR 2023 (importance).
    """

    name: ClassVar[str] = "ternarise"

    scales: str = option(
        "one", "one magnitude, or two: of positive and of negative weights", choices=("one", "two")
    )
    per_channel: bool = option(True, "magnitudes for each output channel, not for each weight")
    keep_ends: bool = option(True, "leave the first and the last layers alone")

    def call(self, model: ir.Model, context: Context) -> Result:
        """Make the weights of `model` ternary in place."""
        result = Result(model)
        grid = partial(ternary, two=self.scales == "two")
        self.round(model, context, result, "ternarised", grid, self.per_channel)
        return result
