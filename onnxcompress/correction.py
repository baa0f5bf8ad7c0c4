"""What a changed weight adds to the mean of each output of its layer, to be taken off its bias.

Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019,
section 4.2, with the mean of inputs measured on data, or told by BatchNormalization.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from onnxcompress.channels.comparison import comparison
from onnxcompress.channels.fitting import Weights
from onnxcompress.edit import Edit
from onnxcompress.errors import UsageError
from onnxcompress.expectation import Moments, expected
from onnxcompress.folding import fold_batch_norms
from onnxcompress.geometry import spatial, window
from onnxcompress.layers import LINEAR, Layer, constant
from onnxcompress.linear import linear
from onnxcompress.model import clone
from onnxcompress.observing import is_image
from onnxcompress.quantize import FULL, to_int8
from onnxcompress.windows import Windows

NIL = 1e-6  # of the largest bias, that a correction is at least


def takes_bias(layer: Layer) -> bool:
    """Return whether the node of `layer` can add a bias."""
    return layer.op in ("Conv", "Gemm")


def rounded_off(weight: np.ndarray, scale: np.ndarray, levels: int = FULL) -> np.ndarray:
    """Return what `weight` loses, float64, when it is rounded to at most `levels` steps of `scale`.

    `scale` is broadcastable to it.
    """
    lost: np.ndarray = weight.astype(np.float64) - to_int8(weight, scale, levels) * scale.astype(np.float64)
    return lost


def fallen(layer: Layer, lost: np.ndarray, means: np.ndarray | None) -> np.ndarray:
    """Return by how much the mean of each output of `layer` falls, float64 [outputs]; zeros where unknown.

    That is when its weight loses `lost` [the weight's shape], and its input channels have the `means`
    [channels] on average, at any place alike. Padding holds zeros, so that places in the window that reach
    into it count less.
    """
    found, value = window(layer), layer.node.inputs[0]
    if means is None or value is None or isinstance(found, str) or is_image(value) != bool(found.sizes):
        return np.zeros(layer.shape[layer.channel_axes[-1]])
    if not found.sizes:
        rows = lost if layer.channel_axes[-1] == 0 else lost.T
        alpha = layer.node.attributes.get_float("alpha", 1.0)
        return np.asarray(alpha * (rows @ means))
    sizes = spatial(value, len(found.sizes))
    shares = np.ones(found.sizes)
    if sizes is not None:
        places = Windows(
            sizes, found.sizes, found.strides, found.dilations, found.front + found.back, "NOTSET"
        )
        inside = places.pad(np.ones(sizes), 0)
        shares = np.array([view.mean() for view in places.views(inside)]).reshape(found.sizes)
    groups = found.groups
    seen = means.reshape((groups, 1, -1) + (1,) * len(found.sizes)) * shares
    split = lost.reshape(groups, -1, *lost.shape[1:])
    return np.asarray((split * seen).sum(axis=tuple(range(2, split.ndim))).reshape(-1))


def recall(whole: ir.Model, model: ir.Model, layers: Iterable[Layer]) -> dict[str, str]:
    """Give `layers` of `model` the means back that they have in the `whole` model it came from, without data.

    Returns what was done to each, or why nothing. Each is corrected for what its own weight lost, by the
    means that BatchNormalization tells of its input in `whole`
    (:func:`onnxcompress.expectation.expected`). What both compute at a place has the same name; shapes of
    both are inferred. UsageError where nothing is told.
    """
    told = expected(whole)
    if not told:
        raise UsageError(
            "correct-bias: needs calibration data, as no BatchNormalization tells the means of activations"
        )
    folded = clone(whole)
    fold_batch_norms(folded)
    known = {value.name: node for each in (whole, folded) for node in each.graph for value in node.outputs}
    done, edit = {}, Edit(model)
    for layer in layers:
        done[layer.name] = _recall(layer, known[layer.node.outputs[0].name], told, edit)
    return done


def _recall(layer: Layer, before: ir.Node, told: Mapping[str, Moments], edit: Edit) -> str:
    """Correct the bias of `layer`, which was the node `before`; return what was done, or why nothing."""
    line, value = linear(layer), layer.node.inputs[0]
    if isinstance(line, str):
        return f"none: {line}"
    if before.op_type not in LINEAR or constant(before.inputs[1]) is None:
        return "none: the reference computes it otherwise"
    other = linear(Layer(before, 1))
    if isinstance(other, str) or other.window != line.window:
        return "none: the reference has a weight of another form"
    moments = told.get(value.name or "") if value is not None else None
    flat = value is not None and value.shape is not None and len(value.shape) == 2
    if moments is None or not (line.convolution or flat):
        return "none: no BatchNormalization tells the means of what it reads"
    lost = other.weight() - line.weight()
    if not lost.any():
        return "none: its own weight is what it was"
    place, origin = (comparison(each, None, lambda end, added: False) for each in (line, other))
    if not place.biased:
        return "none: there is no place for a bias"
    fall = fallen(layer, lost, moments.mean) if line.convolution else lost @ moments.mean
    fall = fall + other.bias() - line.bias()
    if place.normalization is not None and origin.normalization is not None:
        fall = fall + place.normalization.mean - origin.normalization.mean
    weights, mean = place.weights(), place.normalization and place.normalization.mean
    if np.abs(fall).max() <= NIL * np.abs(line.bias() if mean is None else mean).max():
        return "none: its mean is what it was"
    done = place.put(edit, Weights(weights.matrix, weights.bias + fall))
    return "mean corrected by statistics" if done else "none: its dtype can't hold what is corrected"
