"""What a model's inputs take, and whether an array is that."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxcompress.errors import CompressError, UsageError, unknown
from onnxcompress.model import signature

Feeds = dict[str, np.ndarray]
Dims = tuple[int | str | None, ...]


MOST_ELEMENTS = 2**31  # of an input whose shape a user gives


@dataclass(frozen=True)
class Input:
    """An input of a model.

    A dim is a number, or a name or None where any number will do; `dims` is None where any rank will do.
    """

    name: str
    dtype: ir.DataType
    dims: Dims | None

    @property
    def expected(self) -> str:
        """The shape as messages spell it, such as [batch, 3, 8, 8]."""
        return (
            "any shape"
            if self.dims is None
            else f"[{', '.join('?' if dim is None else str(dim) for dim in self.dims)}]"
        )

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Return whether an array of this shape is as large as the input's fixed dims say."""
        return self.dims is None or fits(self.dims, shape)

    def fit(self, source: str, array: np.ndarray) -> np.ndarray:
        """Return `array` contiguous and as this input's dtype.

        Floats become any float type, integers any integer type that holds their values or a float type,
        booleans any number. UsageError, beginning with `source`, for any other type, a wrong shape, an
        overflow, or NaN.
        """
        check_dtype(source, self, array.dtype)
        if not self.takes(array.shape):
            raise UsageError(f"{source}: input {self.name} is {list(array.shape)}, expected {self.expected}")
        if self.dtype is ir.DataType.STRING:
            return np.ascontiguousarray(array, dtype=object).reshape(array.shape)
        with np.errstate(all="ignore"):
            result = np.array(array, dtype=self.dtype.numpy(), order="C", copy=None)
        if result.dtype != array.dtype:
            kept = result == array if self.dtype.is_integer() else np.isinf(result) == np.isinf(array)
            if not kept.all():
                name = self.dtype.name.lower()
                raise UsageError(f"{source}: input {self.name} holds values that do not fit into {name}")
        if self.dtype.is_floating_point() and np.isnan(result).any():
            raise UsageError(f"{source}: input {self.name} holds NaN, expected numbers")
        return result


def inputs_of(model: ir.Model, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Input]:
    """Return the inputs of `model` by name, their dims fixed to `shapes` where it has them.

    The name "" stands for the only input. UsageError where `shapes` names no input or contradicts the model,
    CompressError where an input is no tensor.
    """
    found = {}
    for each in signature(model).inputs:
        if each.dtype is None or each.dtype is ir.DataType.UNDEFINED:
            raise CompressError(f"{each.name}: the input is not a tensor, expected tensors only")
        found[each.name] = Input(each.name, each.dtype, each.shape)
    for given, shape in shapes.items():
        name = next(iter(found)) if not given and len(found) == 1 else given
        if name not in found:
            raise UsageError(unknown("input", name, found))
        if not found[name].takes(shape):
            raise UsageError(f"{name}: shape {list(shape)} was given, the model's is {found[name].expected}")
        if math.prod(shape) > MOST_ELEMENTS:
            raise UsageError(f"{name}: shape {list(shape)} was given, expected at most 2^31 elements")
        found[name] = Input(name, found[name].dtype, tuple(shape))
    return found


def check_dtype(source: str, wanted: Input, dtype: np.dtype) -> None:
    """Raise UsageError where an array of `dtype` is not what the input `wanted` takes."""
    target = wanted.dtype
    if target is ir.DataType.STRING:
        fits = dtype.kind in "OUT"
    elif dtype == target.numpy():
        fits = True
    else:
        rank = 0 if target is ir.DataType.BOOL else 1 if target.is_integer() else 2
        fits = {"b": 0, "i": 1, "u": 1, "f": 2}.get(dtype.kind, 3) <= rank
    if not fits:
        raise UsageError(f"{source}: input {wanted.name} is {dtype}, expected {target.name.lower()}")


def check_names(source: str, given: Iterable[str], inputs: Mapping[str, Input]) -> None:
    """Raise UsageError where one of `inputs` is not among the names `given`."""
    given = list(given)
    missing = [name for name in inputs if name not in given]
    strange = [name for name in given if name not in inputs]
    if missing and strange:
        raise UsageError(f"{source}: {unknown('input', strange[0], missing)}")
    if missing:
        raise UsageError(f"{source}: input {missing[0]} is missing, there are: {', '.join(given) or 'none'}")


def fits(dims: Dims, shape: tuple[int, ...]) -> bool:
    """Return whether `shape` has the rank of `dims` and the sizes that are numbers there."""
    return len(dims) == len(shape) and all(
        not isinstance(dim, int) or dim == size for dim, size in zip(dims, shape, strict=True)
    )
