"""What rounding a weight adds to the mean of each output of its layer, to be taken off its bias.

Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019,
section 4.2, with the mean of inputs measured on data.
"""

from __future__ import annotations

import numpy as np

from onnxcompress.geometry import spatial, window
from onnxcompress.layers import Layer
from onnxcompress.observing import is_image
from onnxcompress.quantize import FULL, to_int8
from onnxcompress.windows import Windows


def takes_bias(layer: Layer) -> bool:
    """Return whether the node of `layer` can add a bias."""
    return layer.op in ("Conv", "Gemm")


def fallen(
    layer: Layer, weight: np.ndarray, scale: np.ndarray, means: np.ndarray | None, levels: int = FULL
) -> np.ndarray:
    """Return by how much the mean of each output of `layer` falls, float64 [outputs]; zeros where unknown.

    That is when its `weight` is rounded to at most `levels` steps of `scale` [broadcastable], and its input
    channels have the `means` [channels] on average, at any place alike. Padding holds zeros, so that places
    in the window that reach into it count less.
    """
    found, value = window(layer), layer.node.inputs[0]
    if means is None or value is None or isinstance(found, str) or is_image(value) != bool(found.sizes):
        return np.zeros(layer.shape[layer.channel_axes[-1]])
    lost = weight.astype(np.float64) - to_int8(weight, scale, levels) * scale.astype(np.float64)
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
