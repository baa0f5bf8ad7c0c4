"""Rounding of mantissas: fewer different weights, which `encode` then stores in fewer bytes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxcompress.base import Context, Effect, Pass, Result, option
from onnxcompress.layers import by_weight


@dataclass(frozen=True, kw_only=True)
class RoundMantissa(Pass):
    """Round the weights of linear layers to fewer bits of mantissa.

    Before: ``y = MatMul(x, W)``
    After:  ``y = MatMul(x, W')``, W' having at most ``bits`` bits after the leading one.
    Source: IEEE 754-2019, section 4.3.1 (to nearest, ties to even).
    """

    name: ClassVar[str] = "round-mantissa"
    effect: ClassVar[Effect] = Effect.LOSSY

    bits: int = option(4, "bits of mantissa that stay", within=(0, 22))
    min_size: int = option(1024, "leave weights with fewer elements alone", within=(0, 2**62))

    def call(self, model: ir.Model, context: Context) -> Result:
        """Round the weights of `model` in place."""
        result = Result(model)
        for readers, reason in by_weight(model, context):
            layer = readers[0]
            if reason is not None:
                result.left_all(readers, reason)
            elif layer.size < self.min_size:
                result.left_all(readers, "too small")
            elif np.array_equal(rounded(layer.value(), self.bits), layer.value(), equal_nan=True):
                result.left_all(readers, "rounded already")
            else:
                result.changed(layer, "rounded", bits=self.bits, size=layer.size)
                layer.replace_weight(partial(rounded, bits=self.bits))
                result.left_all(readers[1:], f"tied to {layer.name}, done there")
        return result


def rounded(weight: np.ndarray, bits: int) -> np.ndarray:
    """Return weight [any shape, float] rounded to `bits` bits after the leading one."""
    mantissa, exponent = np.frexp(weight)
    return np.ldexp(np.rint(np.ldexp(mantissa, bits + 1)), exponent - bits - 1).astype(weight.dtype)
