"""Means of activations without data: what BatchNormalization says of them, carried on through the graph.

What leaves a BatchNormalization has, on the data it was trained on, the mean beta and the standard deviation
gamma in each channel. It is taken to be normal, as are sums; values that are added up are taken to be
independent. Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction,
ICCV 2019, section 4.2.1, and for sums of activations its appendix.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from onnxcompress.evaluate import run_node
from onnxcompress.layers import constant
from onnxcompress.model import opset

_PLACES = np.linspace(-6.0, 6.0, 1201)  # in standard deviations, where functions of a normal value are read
_SHARES = np.exp(-0.5 * _PLACES**2) / np.exp(-0.5 * _PLACES**2).sum()
_SAME = ("Dropout", "Identity")
_AVERAGES = ("AveragePool", "GlobalAveragePool", "ReduceMean")
_EACH = ("Clip", "Elu", "HardSigmoid", "HardSwish", "LeakyRelu", "Relu", "Sigmoid", "Softplus", "Tanh")
_RESHAPES = ("Flatten", "Reshape", "Squeeze")


class Moments(NamedTuple):
    """Mean and variance of each channel (axis 1) of an activation, float64 [channels]."""

    mean: np.ndarray
    variance: np.ndarray


def expected(model: ir.Model) -> dict[str, Moments]:
    """Return what is known of the activations of the main graph of `model`, by name; its shapes are inferred.

    Behind a pool of averages the variance is that of what it reads, at most: places depend on one another.
    """
    found: dict[str, Moments] = {}
    version = opset(model)
    for node in model.graph:
        if node.domain in ("", "ai.onnx") and (moments := _of(node, found, version)) is not None:
            found[node.outputs[0].name or ""] = moments
    return found


def _of(node: ir.Node, known: dict[str, Moments], version: int) -> Moments | None:
    """Return the moments of what `node` makes, where those of what it reads are `known` as far as needed."""
    if node.op_type == "BatchNormalization":
        gamma, beta = (constant(value) for value in node.inputs[1:3])
        if gamma is None or beta is None:
            return None
        return Moments(beta.numpy().astype(np.float64), gamma.numpy().astype(np.float64) ** 2)
    read = [known.get(value.name or "") for value in node.inputs if value is not None]
    if not read or read[0] is None:
        return None
    first = read[0]
    if node.op_type in _SAME or (node.op_type in _AVERAGES and _keeps_channels(node)):
        return first
    if node.op_type in _EACH:
        return _each(node, first, version)
    if node.op_type in _RESHAPES:
        return _reshaped(node, first)
    others = [each for each in read if each is not None]
    if len(others) < len(read):
        return None
    if node.op_type == "Concat" and node.attributes.get_int("axis", 0) == 1:
        return Moments(*map(np.concatenate, zip(*others, strict=True)))
    if node.op_type in ("Add", "Sum") and len({each.mean.shape for each in others}) == 1:
        return Moments(*(np.sum(each, axis=0) for each in zip(*others, strict=True)))
    return None


def _keeps_channels(node: ir.Node) -> bool:
    """Return whether a mean is one over places: that of a ReduceMean, too."""
    if node.op_type != "ReduceMean":
        return True
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    tensor = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    axes = node.attributes.get_ints("axes", ()) if tensor is None else tensor.numpy().reshape(-1).tolist()
    if shape is None or not axes:
        return False
    return all(each % len(shape) > 1 for each in axes)


def _each(node: ir.Node, given: Moments, version: int) -> Moments | None:
    """Return the moments of what `node`, a function of each number, makes of normal values."""
    inputs = [constant(value) for value in node.inputs[1:]]
    if any(
        tensor is None and value is not None for tensor, value in zip(inputs, node.inputs[1:], strict=True)
    ):
        return None
    values = given.mean[:, None] + np.sqrt(given.variance)[:, None] * _PLACES
    rest = [None if tensor is None else tensor.numpy() for tensor in inputs]
    (made, *_) = run_node(node, [values.astype(np.float32), *rest], version)
    mean = made.astype(np.float64) @ _SHARES
    return Moments(mean, (made - mean[:, None]) ** 2 @ _SHARES)


def _reshaped(node: ir.Node, given: Moments) -> Moments | None:
    """Return the moments behind a `node` that lays the places of each channel in a row, or drops them.

    It must leave the first axis as it is.
    """
    before, shape = node.inputs[0].shape if node.inputs[0] is not None else None, node.outputs[0].shape
    if before is None or not shape or shape[0] != before[0]:
        return None
    channels = shape[1] if shape is not None and len(shape) > 1 else None
    count = len(given.mean)
    if not isinstance(channels, int) or channels % count or (len(shape or ()) > 2 and channels != count):
        return None
    return Moments(*(np.repeat(each, channels // count) for each in given))
