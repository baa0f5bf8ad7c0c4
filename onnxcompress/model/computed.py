"""Tensors that are computed from others whenever they are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from onnxcompress.model.external import MappedTensor

_Result = TypeVar("_Result")


class ComputedTensor(ir.LazyTensor):
    """A tensor made anew by `evaluate` whenever it is read.

    ValueError, when it is read, where that is of another type or shape.

    `excerpt` returns a small part of its elements that tells what the others are like, without making it.
    `after` is a tensor that leaves behind what makes this one cheap, once it has been read.
    """

    def __init__(
        self,
        evaluate: Callable[[], np.ndarray],
        dtype: ir.DataType,
        shape: Sequence[int],
        name: str | None,
        *,
        excerpt: Callable[[], np.ndarray] | None = None,
        after: ir.TensorProtocol | None = None,
    ) -> None:
        dims = tuple(shape)

        def made() -> ir.TensorProtocol:
            result = np.asarray(evaluate())
            if result.shape != dims or result.dtype != dtype.numpy():
                found = f"{result.dtype}{list(result.shape)}"
                raise ValueError(f"tensor {name!r} became {found}, expected {dtype}{list(dims)}")
            return ir.Tensor(result, dtype=dtype, name=name)

        super().__init__(made, dtype, ir.Shape(dims), name=name)
        self.excerpt = excerpt
        self.after = after


def lazy(
    source: ir.TensorProtocol,
    transform: Callable[[np.ndarray], np.ndarray],
    dtype: ir.DataType | None = None,
    shape: Sequence[int] | None = None,
    name: str | None = None,
    *,
    excerpt: Callable[[np.ndarray], np.ndarray] | None = None,
) -> ComputedTensor:
    """Return the tensor ``transform(source.numpy())``, made anew whenever it is read.

    `dtype`, `shape` and `name` are the source's unless given; ValueError, when it is read, where the
    transform returns another. Neither the transform nor `excerpt`, which makes a small part of what that
    does, must change its argument, which may lie in a file; its pages are given back afterwards.
    """
    return ComputedTensor(
        lambda: apply(source, transform),
        dtype or source.dtype,
        source.shape.numpy() if shape is None else shape,
        name or source.name,
        excerpt=None if excerpt is None else lambda: apply(source, excerpt),
    )


def apply(source: ir.TensorProtocol, transform: Callable[[np.ndarray], _Result]) -> _Result:
    """Return ``transform(source.numpy())``, giving back the pages of a file that were read."""
    result = transform(source.numpy())
    if isinstance(source, MappedTensor):
        source.release()
    return result
