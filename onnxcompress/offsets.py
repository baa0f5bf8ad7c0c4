"""Zero points that go into biases, so that layers multiply the integers they read as they are.

With zero point z a layer sums up ``(q - z) * w``, which is ``q * w`` and, as long as no window reaches into
padding, the same number for each output at every place: less z times the sum of its weights. In the int32
bias it costs nothing, exactly; engines that don't put it there spend time on it (OpenVINO 2026.4: a third of
that of the first convolution of SqueezeNet 1.1). For uint8: with int8, onnxruntime 1.31 finds no integer
kernel where QuantizeLinear and DequantizeLinear have different zero points.
Source: Jacob et al., CVPR 2018, section 2.3.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxcompress.correction import takes_bias
from onnxcompress.geometry import window
from onnxcompress.layers import Layer, constant
from onnxcompress.placement import Placement

_MOST = 2**30 // (255 * 127)  # products to an output, whose offset fits in the half of int32 a bias leaves


def offset(weight: np.ndarray, axis: int, zero_point: np.ndarray) -> np.ndarray:
    """Return what `zero_point` adds to the sums of products, int64 [channels].

    `weight` holds int8 and has its output channels along `axis`.
    """
    others = tuple(each for each in range(weight.ndim) if each != axis)
    return np.asarray(weight.sum(axis=others, dtype=np.int64) * int(zero_point))


def has_offsets(placement: Placement, layers: Mapping[ir.Node, Layer], value: ir.Value) -> bool:
    """Return whether all that read `value` as integers are `layers`, by node, that can do so.

    Not for what integer operators make: there it saves no time, and engines look for equal zero points.
    """
    if constant(value) is not None or value.producer() in placement.nodes:
        return False
    readers = [node for node, _ in value.uses() if value in placement.read(node)]
    return bool(readers) and all(node in layers and _unpadded(layers[node]) for node in readers)


def _unpadded(layer: Layer) -> bool:
    """Return whether no window of `layer` reaches into padding, and its bias has room for the offset."""
    found = window(layer)
    if isinstance(found, str) or not takes_bias(layer):
        return False
    products = layer.size // layer.shape[layer.channel_axes[-1]]
    return not any(found.front + found.back) and products <= _MOST
