"""Sparse weights as ONNX itself knows them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxcompress.errors import CompressError
from onnxcompress.formats.base import Attributes, Call, Format, Weight, bounded, dims, holds


class COO(Format):
    """Positions and values of the elements that aren't zero: a sparse initializer, which is no function.

    ``values [count], indices: int64 [count]; dims``, the fields of ONNX's SparseTensorProto. Element
    indices[i] of the flat array is values[i], all others are zero; indices rise. An engine makes the dense
    array while it loads the model, whatever the operator set; nothing has to be computed.
    An element takes 8 bytes and those of its value, 4 to 10 times what other formats need, so that this is
    for few elements or for readers that know nothing else. Shape inference takes a sparse initializer for a
    sparse tensor: ``onnx.checker.check_model(full_check=True)`` rejects one that Conv, MatMul, Gather or
    Reshape read, although onnxruntime runs them, and accepts it for Gemm, Add, Mul and Transpose. So it is
    used only on demand. An array has at least one axis and one element that isn't zero, and at most 256
    elements for each listed one, and 16,384. Weights that share their values have a copy each.
    Source: ONNX IR specification, SparseTensorProto.
    """

    name: ClassVar[str] = "COO"
    word: ClassVar[str] = "coo"
    sparse: ClassVar[bool] = True
    automatic: ClassVar[bool] = False

    def encode(self, weight: Weight) -> Iterator[Call]:
        """Yield values and indices."""
        count, size = weight.positions.size, weight.bits.size
        if not weight.shape or not count or not holds(size, count):
            return
        if count * (8 + weight.bits.itemsize) > weight.bits.nbytes:
            return
        inputs = (weight.table(weight.rest), weight.positions.astype(np.int64))
        yield Call(self.name, inputs, {"shape": weight.shape})

    def decode(self, inputs: Sequence[np.ndarray], attributes: Attributes) -> np.ndarray:
        """Return the array."""
        values, indices = inputs
        shape = dims(self.name, attributes)
        size = bounded(self.name, math.prod(shape), indices)
        if indices.dtype != np.int64 or indices.ndim != 1 or values.shape != indices.shape:
            raise CompressError(f"{self.name}: has {values.size} values for {indices.size} positions")
        if indices.size and not 0 <= int(indices.min()) <= int(indices.max()) < size:
            raise CompressError(f"{self.name}: has positions beyond its {size} elements")
        result = np.zeros(size, values.dtype)
        result[indices] = values
        return result.reshape(shape)

    def memory(self, inputs: Sequence[np.ndarray], result: np.ndarray) -> int:
        """Return nothing: the engine fills the dense array."""
        return 0

    @cached_property
    def inputs(self) -> int:
        """How many tensors there are."""
        return 2

    def functions(self, opset: int) -> list[ir.Function]:
        """Return nothing: no function is needed."""
        return []
