"""Binary weights: one magnitude of either sign."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxcompress.base import Context, Result, option
from onnxcompress.edit import Edit
from onnxcompress.layers import by_weight
from onnxcompress.model import convert_up
from onnxcompress.rounding import RoundingPass
from onnxcompress.schemes import binary
from onnxcompress.signs import OPSET, binarise_input, refusal


@dataclass(frozen=True, kw_only=True)
class Binarise(RoundingPass):
    """Let each weight be one magnitude with its sign.

    Before: ``y = MatMul(x, W)``
    After:  ``y = MatMul(x, W')``, each output channel of W' holding only a and -a
    After, with ``activations=sign``: ``y = MatMul(Sign(x), W') * k``, k being a magnitude for each row of x

    The magnitude a is the mean of those of its channel. Zeros become positive, so that pruned weights should
    be made ternary instead. Convolutions, matrix products, recurrent layers and look-up tables get binary;
    biases stay, and unless ``keep_ends=false`` so do the first and the last layers. Binary weights alone make
    no file smaller: ``encode`` stores them in one bit. Networks that were not trained for it lose nearly all
    they know; with ``importance=inputs`` they lose less: convolutions without groups and matrix products of
    the main graph then make up for the error of each input by the weights of the next ones, on calibration
    data. With ``activations=sign`` matrix products and convolutions without groups read but the signs of
    activations, 0 being one behind a Relu, and are scaled by the mean magnitude of those in each window: what
    XNOR gates compute, if on floats here. Hardly a network that wasn't trained for it bears that.
    Source: Rastegari et al., XNOR-Net, ECCV 2016; Frantar et al., GPTQ, ICLR 2023 (importance).
    """

    name: ClassVar[str] = "binarise"

    per_channel: bool = option(True, "a magnitude for each output channel, not for each weight")
    activations: str = option(
        "none",
        "none, or sign: multiply signs of activations, and scale by their magnitudes",
        choices=("none", "sign"),
    )
    keep_ends: bool = option(True, "leave the first and the last layers alone")

    def call(self, model: ir.Model, context: Context) -> Result:
        """Make the weights of `model` binary in place."""
        result = Result(model)
        signs = self.activations == "sign"
        if signs and any(reason is None for _, reason in by_weight(model, context, self.exclude)):
            convert_up(model, OPSET)
        groups = self.round(model, context, result, "binarised", binary, self.per_channel)
        edit = Edit(model)
        for layer in (layer for readers in groups for layer in readers if signs):
            if reason := refusal(layer):
                result.left(f"input of {layer.name}", reason)
            else:
                binarise_input(edit, layer)
                result.changed(f"input of {layer.name}", "activation binarised")
        return result
