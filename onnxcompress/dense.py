"""Operators in numpy, in place of those that ``onnx.reference`` gets wrong or computes element by element.

Each takes the operator's inputs by position and all of its attributes by name, whether they matter or not.
Source: the ONNX operator specification.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxcompress.windows import average_pool, conv, conv_transpose, max_pool


def batch_normalization(
    x: np.ndarray,
    scale: np.ndarray,
    bias: np.ndarray,
    mean: np.ndarray,
    var: np.ndarray,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    spatial: int = 1,
    training_mode: int = 0,
) -> np.ndarray:
    """Return BatchNormalization at inference; `x` is [N, C, ...], the others are [C].

    Raises ValueError where the statistics are those of every activation (`spatial` 0, opset 7 and 8).
    """
    if not spatial:
        raise ValueError("spatial is 0, expected one mean and variance for each channel")
    shape = (-1, *[1] * (x.ndim - 2))
    factor = scale / np.sqrt(var + np.asarray(epsilon, var.dtype))
    y = x * factor.reshape(shape) + (bias - mean * factor).reshape(shape)
    return np.asarray(y, x.dtype)


def gather_elements(x: np.ndarray, indices: np.ndarray, *, axis: int = 0) -> np.ndarray:
    """Return GatherElements; along the axes that aren't `axis`, `indices` may be shorter than `x`."""
    axis = axis % max(x.ndim, 1)
    kept = (slice(None if place == axis else size) for place, size in enumerate(indices.shape))
    return np.take_along_axis(x[tuple(kept)], indices.astype(np.int64), axis)


def global_max_pool(x: np.ndarray) -> np.ndarray:
    """Return GlobalMaxPool, [N, C, 1, ...], of `x` [N, C, *spatial]."""
    return np.asarray(np.max(x, axis=tuple(range(2, x.ndim)), keepdims=True))


def lrn(
    x: np.ndarray, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> np.ndarray:
    """Return LRN of `x` [N, C, ...]: each value divided by a power of the mean square of `size` channels."""
    before, channels = (size - 1) // 2, x.shape[1]
    squares = np.pad(x * x, [(0, 0), (before, size - 1 - before), *[(0, 0)] * (x.ndim - 2)])
    total = np.zeros_like(x)
    for shift in range(size):
        total += squares[:, shift : shift + channels]
    return np.asarray(x / (bias + alpha / size * total) ** beta, x.dtype)


def softmax_12(x: np.ndarray, *, axis: int = 1) -> np.ndarray:
    """Return Softmax as before opset 13: `x`, of any shape, is one vector from `axis` on."""
    powers = np.exp(_shifted(x, axis))
    return np.reshape(powers / powers.sum(axis=1, keepdims=True), x.shape)


def log_softmax_12(x: np.ndarray, *, axis: int = 1) -> np.ndarray:
    """Return LogSoftmax as before opset 13: `x`, of any shape, is one vector from `axis` on."""
    shifted = _shifted(x, axis)
    return np.reshape(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)), x.shape)


def hardmax_12(x: np.ndarray, *, axis: int = 1) -> np.ndarray:
    """Return Hardmax as before opset 13: 1 at the first maximum from `axis` on, else 0; `x` has any shape."""
    shifted = _shifted(x, axis)
    y = np.zeros_like(shifted)
    np.put_along_axis(y, shifted.argmax(axis=1, keepdims=True), 1, axis=1)
    return y.reshape(x.shape)


def _shifted(x: np.ndarray, axis: int) -> np.ndarray:
    """Return `x` as a matrix, [axes before `axis`, axes from it on], minus the maximum of each row."""
    axis = axis + x.ndim if axis < 0 else axis
    flat = x.reshape(int(np.prod(x.shape[:axis])), -1)
    return np.asarray(flat - flat.max(axis=1, keepdims=True))


# operator -> its function, and the opset from which onnx.reference does it well (None: never)
OPERATORS: dict[str, tuple[Callable[..., np.ndarray], int | None]] = {
    "AveragePool": (average_pool, None),
    "BatchNormalization": (batch_normalization, None),
    "Conv": (conv, None),
    "ConvTranspose": (conv_transpose, None),
    "GatherElements": (gather_elements, None),
    "GlobalMaxPool": (global_max_pool, None),
    "Hardmax": (hardmax_12, 13),
    "LRN": (lrn, None),
    "LogSoftmax": (log_softmax_12, 13),
    "MaxPool": (max_pool, None),
    "Softmax": (softmax_12, 13),
}
