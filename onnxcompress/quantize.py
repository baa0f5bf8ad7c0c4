"""Integers for real numbers: the arithmetic of 8-bit quantization, on arrays.

Symmetric (weights): ``w ~ q * scale``, q int8 in -127..127, one scale a channel.
Asymmetric (activations): ``x ~ (q - zero_point) * scale``, q uint8 in 0..255, one scale a tensor.
Source: Jacob et al., CVPR 2018; the ONNX operators QuantizeLinear and DequantizeLinear.
"""

from collections.abc import Sequence

import numpy as np

# Scales are kept so large that the product of a weight's and an activation's is a normal float32 number.
_LEAST_WEIGHT_SCALE = np.float32(2.0**-62)
_LEAST_ACTIVATION_SCALE = np.float32(2.0**-63)
# A bias may fill half of int32: the other half is room for the sum of products it is added to.
_BIAS_LIMIT = 2.0**30


def weight_scale(weight: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """Return the symmetric scale of `weight` [any shape]: float32, of size 1 along all axes but `axes`.

    127 steps reach the largest magnitude along the other axes. Empty `axes` give one scale for the whole
    tensor.
    """
    others = tuple(axis for axis in range(weight.ndim) if axis not in axes)
    largest = np.maximum(
        weight.max(axis=others, keepdims=True, initial=0.0),
        -weight.min(axis=others, keepdims=True, initial=0.0),
    )
    steps = largest.astype(np.result_type(weight.dtype, np.float32)) / 127
    scale: np.ndarray = np.maximum(steps.astype(np.float32), _LEAST_WEIGHT_SCALE)
    return scale


def to_int8(weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return `weight` [any shape] in steps of `scale` [broadcastable]: int8, -127..127, ties to even."""
    steps = np.asarray(np.divide(weight, scale, dtype=np.result_type(weight.dtype, np.float32)))
    np.rint(steps, out=steps)
    np.clip(steps, -127, 127, out=steps)
    return steps.astype(np.int8)


def activation_scale(low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Return scale (float32 scalar) and zero point (uint8 scalar) of an activation within low..high.

    The range is widened to include zero, which is met exactly: padding and Relu rely on it. An empty range
    gets the smallest scale.
    """
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    scale = np.maximum(np.float32((high - low) / 255), _LEAST_ACTIVATION_SCALE)
    zero_point = np.rint(np.clip(-low / float(scale), 0, 255))
    return np.asarray(scale, np.float32), np.asarray(zero_point, np.uint8)


def roomy(scale: np.ndarray, bias: np.ndarray, activation: np.ndarray) -> np.ndarray:
    """Return the weight scale [channels] at least so large that `bias` [channels] fits into int32.

    A bias is counted in steps of ``activation * scale``; channels with tiny or zero weights but a large
    bias would overflow. `activation` is the scale of the layer's input.
    """
    least = np.abs(bias, dtype=np.float64) / (np.float64(activation) * _BIAS_LIMIT)
    enough: np.ndarray = np.maximum(scale, least.astype(np.float32))
    return enough


def to_int32(bias: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return `bias` [channels] in steps of `scale` [channels]: int32, ties to even, clipped to its range."""
    steps: np.ndarray = np.rint(bias.astype(np.float64) / scale)
    return steps.clip(-(2**31), 2**31 - 1).astype(np.int32)


def to_uint8(values: np.ndarray, scale: np.ndarray, zero_point: np.ndarray) -> np.ndarray:
    """Return `values` [any shape, float] as QuantizeLinear does: uint8, ties to even, clipped."""
    steps: np.ndarray = np.rint(values / scale) + zero_point
    return steps.clip(0, 255).astype(np.uint8)
