"""Integers for real numbers: the arithmetic of 8-bit quantization, on arrays.

Symmetric (weights): ``w ~ q * scale``, q int8 in -127..127, one scale a channel.
Asymmetric (activations): ``x ~ (q - zero_point) * scale``, q uint8 in 0..255, one scale a tensor.
Some engines want other activations (:class:`Activations`), some processors 7-bit weights, -63..63.
Source: Jacob et al., CVPR 2018; the ONNX operators QuantizeLinear and DequantizeLinear.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FULL, REDUCED = 127, 63  # steps to the largest weight; sums of 7-bit weights' products don't saturate 16 bits
LEAST_SHARE, SHARES = 0.5, 26  # of a scale, that are tried
# Scales are kept so large that the product of a weight's and an activation's is a normal float32 number.
_LEAST_WEIGHT_SCALE = np.float32(2.0**-62)
_LEAST_ACTIVATION_SCALE = np.float32(2.0**-63)
# A bias may fill half of int32: the other half is room for the sum of products it is added to.
_BIAS_LIMIT = 2.0**30


@dataclass(frozen=True)
class Activations:
    """What activations become: int8 where `signed`, else uint8; around zero where `symmetric`."""

    signed: bool = False
    symmetric: bool = False

    @property
    def dtype(self) -> np.dtype:
        """The type of the integers."""
        return np.dtype(np.int8 if self.signed else np.uint8)


def weight_scale(
    weight: np.ndarray, axes: Sequence[int], levels: int = FULL, clip: bool = False
) -> np.ndarray:
    """Return the symmetric scale of `weight` [any shape]: float32, of size 1 along all axes but `axes`.

    `levels` steps reach the largest magnitude along the other axes, or with `clip` a smaller one, so that the
    sum of squared errors is least. Empty `axes` give one scale for the whole tensor.
    """
    others = tuple(axis for axis in range(weight.ndim) if axis not in axes)
    largest = np.maximum(
        weight.max(axis=others, keepdims=True, initial=0.0),
        -weight.min(axis=others, keepdims=True, initial=0.0),
    )
    steps = largest.astype(np.result_type(weight.dtype, np.float32)) / levels
    scale: np.ndarray = np.maximum(steps.astype(np.float32), _LEAST_WEIGHT_SCALE)
    return _clipped(weight, scale, others, levels) if clip else scale


def _clipped(weight: np.ndarray, scale: np.ndarray, axes: tuple[int, ...], levels: int) -> np.ndarray:
    """Return the scales at most as large as `scale` that round `weight` with the least error along `axes`."""
    best, least = scale, np.full(scale.shape, np.inf)
    for share in np.linspace(1, LEAST_SHARE, SHARES, dtype=np.float32):
        tried = np.maximum(scale * share, _LEAST_WEIGHT_SCALE)
        lost = (weight - to_int8(weight, tried, levels) * tried) / scale  # whose squares don't overflow
        errors = np.sum(lost * lost, axis=axes, keepdims=True, dtype=np.float64)
        best, least = np.where(errors < least, tried, best), np.minimum(errors, least)
    return best


def to_int8(weight: np.ndarray, scale: np.ndarray, levels: int = FULL) -> np.ndarray:
    """Return `weight` [any shape] in steps of `scale` [broadcastable]: int8, ties to even.

    Clipped to `levels` on either side.
    """
    steps = np.asarray(np.divide(weight, scale, dtype=np.result_type(weight.dtype, np.float32)))
    np.rint(steps, out=steps)
    np.clip(steps, -levels, levels, out=steps)
    return steps.astype(np.int8)


def activation_scale(
    low: float,
    high: float,
    form: Activations = Activations(),
) -> tuple[np.ndarray, np.ndarray]:
    """Return scale (float32 scalar) and zero point (scalar) of an activation within low..high.

    The range is widened to include zero, which is met exactly: padding and Relu rely on it. An empty range
    gets the smallest scale.
    """
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    step = max(-low, high) / 127 if form.symmetric else (high - low) / 255
    scale = np.maximum(np.float32(step), _LEAST_ACTIVATION_SCALE)
    zero_point = 128 if form.symmetric else np.rint(np.clip(-low / float(scale), 0, 255))
    return np.asarray(scale, np.float32), np.asarray(zero_point - 128 * form.signed, form.dtype)


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


def to_integers(values: np.ndarray, scale: np.ndarray, zero_point: np.ndarray) -> np.ndarray:
    """Return `values` [any shape, float] as QuantizeLinear does: of the type of `zero_point`, clipped to it.

    Ties go to even.
    """
    ends, steps = np.iinfo(zero_point.dtype), np.rint(values / scale) + zero_point
    integers: np.ndarray = steps.clip(ends.min, ends.max).astype(zero_point.dtype)
    return integers
