"""Sparse tensors, kept as they are stored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import onnx
import onnx_ir as ir

from onnxcompress.errors import CompressError

DENSE_LIMIT = 2**34


class SparseTensor(ir.LazyTensor):
    """A tensor of which only the non-zeros are stored; its dense value is made whenever it is read.

    `values` is [NNZ], `indices` int64, [NNZ] (places in the flattened tensor) or [NNZ, rank] (coordinates);
    both are written back as they were given. Source: ONNX IR specification, SparseTensorProto.
    """

    def __init__(
        self,
        values: ir.TensorProtocol,
        indices: ir.TensorProtocol,
        shape: Sequence[int],
        *,
        name: str | None = None,
        label: str = "",
    ) -> None:
        super().__init__(
            partial(_dense, values, indices, tuple(shape)), values.dtype, ir.Shape(shape), name=name
        )
        self.values = values
        self.indices = indices
        self._check(f"{label}: " if label else "")

    @property
    def stored_bytes(self) -> int:
        """The bytes of values and indices."""
        return self.values.nbytes + self.indices.nbytes

    def write(self, proto: onnx.SparseTensorProto, name: str) -> None:
        """Store values and indices in `proto`, which is empty, under `name`."""
        proto.dims.extend(self.shape.numpy())
        for part, tensor in ((proto.values, self.values), (proto.indices, self.indices)):
            part.dims.extend(tensor.shape.numpy())
            part.data_type = tensor.dtype.value
            part.raw_data = tensor.tobytes()
        proto.values.name = name

    def _check(self, label: str) -> None:
        """Raise CompressError where values, indices and shape don't fit one another."""
        what = f"{label}sparse tensor {self.name!r}"
        shape, count = tuple(self.shape.numpy()), self.values.size
        forms = ((count,), (count, len(shape)))
        if len(self.values.shape) != 1 or tuple(self.indices.shape.numpy()) not in forms:
            raise CompressError(
                f"{what}: values of shape {self.values.shape} and indices of shape {self.indices.shape}, "
                f"expected [N] with [N] or [N, {len(shape)}]"
            )
        if self.indices.dtype != ir.DataType.INT64 or self.dtype.bitwidth < 8:
            raise CompressError(
                f"{what}: {self.indices.dtype} indices of {self.dtype}, expected INT64 of whole bytes"
            )
        if math.prod(shape) * self.dtype.itemsize > DENSE_LIMIT:
            raise CompressError(f"{what}: shape {list(shape)} takes more than 16 GB when read, expected less")
        indices = self.indices.numpy()
        bounds = np.asarray(shape if indices.ndim == 2 else math.prod(shape), np.int64)
        if ((indices < 0) | (indices >= bounds)).any():
            raise CompressError(f"{what}: an index lies outside the shape {list(shape)}")


def _dense(
    values: ir.TensorProtocol, indices: ir.TensorProtocol, shape: tuple[int, ...]
) -> ir.TensorProtocol:
    places = indices.numpy()
    dense = np.zeros(shape, values.dtype.numpy())
    if places.ndim == 2:
        dense[tuple(places.T)] = values.numpy()
    else:
        dense.reshape(-1)[places] = values.numpy()
    return ir.Tensor(dense, dtype=values.dtype)
