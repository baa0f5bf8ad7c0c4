"""Ternary weights: zero, and one magnitude of either sign."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import onnx_ir as ir

from onnxcompress.base import Context, Effect, Need, Pass, Result, option
from onnxcompress.rounding import IMPORTANCE, Rounding, chosen
from onnxcompress.schemes import ternary


@dataclass(frozen=True, kw_only=True)
class Ternarise(Pass):
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
    effect: ClassVar[Effect] = Effect.LOSSY
    uses: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION, Need.RUNTIME})

    scales: str = option(
        "one", "one magnitude, or two: of positive and of negative weights", choices=("one", "two")
    )
    per_channel: bool = option(True, "magnitudes for each output channel, not for each weight")
    importance: str = option(
        "equal",
        "which errors are made least: of the weights, or (inputs) of what layers make on calibration data",
        choices=IMPORTANCE,
    )
    keep_ends: bool = option(True, "leave the first and the last layers alone")
    min_size: int = option(1024, "leave weights with fewer elements alone", within=(0, 2**62))
    exclude: str = option(
        "", "leave layers alone whose whole name matches this regular expression", pattern=True
    )

    def call(self, model: ir.Model, context: Context) -> Result:
        """Make the weights of `model` ternary in place."""
        result = Result(model)
        groups = chosen(
            model,
            context,
            result,
            min_size=self.min_size,
            exclude=self.exclude,
            keep_ends=self.keep_ends,
        )
        grid = partial(ternary, two=self.scales == "two")
        Rounding("ternarised", grid, self.per_channel, self.importance).apply(groups, model, context, result)
        return result
