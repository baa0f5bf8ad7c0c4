"""Binary weights: one magnitude of either sign."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxcompress.base import Context, Effect, Need, Pass, Result, option
from onnxcompress.rounding import IMPORTANCE, Rounding, chosen
from onnxcompress.schemes import binary


@dataclass(frozen=True, kw_only=True)
class Binarise(Pass):
    """Let each weight be one magnitude with its sign.

    Before: ``y = MatMul(x, W)``
    After:  ``y = MatMul(x, W')``, each output channel of W' holding only a and -a

    The magnitude a is the mean of those of its channel. Zeros become positive, so that pruned weights should
    be made ternary instead. Convolutions, matrix products, recurrent layers and look-up tables get binary;
    biases stay, and unless ``keep_ends=false`` so do the first and the last layers. Binary weights alone make
    no file smaller: ``encode`` stores them in one bit. Networks that were not trained for it lose nearly all
    they know; with ``importance=inputs`` they lose less: convolutions without groups and matrix products of
    the main graph then make up for the error of each input by the weights of the next ones, on calibration
    data.
    Source: Rastegari et al., XNOR-Net, ECCV 2016; Frantar et al., GPTQ, ICLR 2023 (importance).
    """

    name: ClassVar[str] = "binarise"
    effect: ClassVar[Effect] = Effect.LOSSY
    uses: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION, Need.RUNTIME})

    per_channel: bool = option(True, "a magnitude for each output channel, not for each weight")
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
        """Make the weights of `model` binary in place."""
        result = Result(model)
        groups = chosen(
            model,
            context,
            result,
            min_size=self.min_size,
            exclude=self.exclude,
            keep_ends=self.keep_ends,
        )
        Rounding("binarised", binary, self.per_channel, self.importance).apply(groups, model, context, result)
        return result
