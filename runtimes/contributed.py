"""Operators that onnxruntime adds to the standard, in numpy. Source: onnxruntime, ContribOperators.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcompress.blocks import expand, unpack
from onnxcompress.errors import CompressError
from onnxcompress.evaluate import guarded


def matmul_n_bits(node: ir.Node, inputs: Sequence[Any], attributes: Mapping[str, ir.Attr]) -> list[Any]:
    """Return MatMulNBits: activations [..., K] times a weight in blocks [N, blocks, bytes].

    It is exact whatever `accuracy_level` allows. CompressError naming `node` where inputs don't fit.
    """
    numbers = {name: attribute.value for name, attribute in attributes.items()}
    return guarded(node, lambda given: [_product(given, numbers)])(inputs)


def _product(inputs: Sequence[Any], numbers: Mapping[str, Any]) -> np.ndarray:
    given, packed, scale, *rest = inputs
    zero, order, bias = (*rest, None, None, None)[:3]
    if order is not None:
        raise CompressError("groups in an order of their own (g_idx) are not computed, expected blocks")
    bits, size, outputs = numbers.get("bits", 4), numbers["block_size"], numbers["N"]
    count = -(-numbers["K"] // size)
    zero = 1 << (bits - 1) if zero is None else zero
    if isinstance(zero, np.ndarray):
        whole = zero.dtype != np.uint8
        zero = zero.reshape(outputs, -1) if whole else unpack(zero.reshape(outputs, -1), bits, count)
    steps = unpack(packed.reshape(outputs, count, -1), bits, size)
    product = np.matmul(given, expand(steps, scale.reshape(outputs, count), zero, numbers["K"]))
    return np.asarray(product if bias is None else product + bias, given.dtype)
