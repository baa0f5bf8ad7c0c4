"""Logarithmic weights: a sign and an exponent."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import onnx_ir as ir

from onnxcompress.base import Context, Result, option
from onnxcompress.rounding import RoundingPass
from onnxcompress.schemes import logarithmic


@dataclass(frozen=True, kw_only=True)
class QuantLog(RoundingPass):
    """Let each weight be a power of two with its sign, or zero.

    Before: ``y = MatMul(x, W)``
    After:  ``y = MatMul(x, W')``, W' holding only 0 and ``+-2**(e - i)``, i below ``2**(bits - 1) - 1``

    Each weight becomes the nearest of these. The full scale e of an output channel, or of a weight, is the
    whole number that makes the squared error least. With ``base=sqrt2`` powers are of the square root of
    two: half the step, and half the range for the same bits. Multiplications by powers of two are shifts, and
    a shift and an addition for those of its root. Convolutions, matrix products, recurrent layers and look-up
    tables get logarithmic; biases stay. That alone makes no file smaller: ``encode`` stores sign and exponent
    in about ``bits`` bits or fewer. With ``importance=inputs`` convolutions without groups and matrix
    products of the main graph make up for the error of each input by the weights of the next ones, on
    calibration data.
    Source: Miyashita et al., Convolutional Neural Networks using Logarithmic Data Representation, 2016;
    Frantar et al., GPTQ, ICLR 2023 (importance).
    """

    name: ClassVar[str] = "quant-log"

    bits: int = option(4, "bits of a code: zero, and a sign and an exponent", within=(2, 8))
    base: str = option("two", "powers of which number", choices=("two", "sqrt2"))
    per_channel: bool = option(True, "a full scale for each output channel, not for each weight")

    def call(self, model: ir.Model, context: Context) -> Result:
        """Make the weights of `model` logarithmic in place."""
        result = Result(model)
        grid = partial(logarithmic, bits=self.bits, steps=2 if self.base == "sqrt2" else 1)
        what = "rounded to powers of two" if self.base == "two" else "rounded to powers of sqrt2"
        self.round(model, context, result, what, grid, self.per_channel)
        return result
