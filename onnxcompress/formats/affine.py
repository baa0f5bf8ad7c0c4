"""Weights that are whole numbers times a scale, as integer quantization leaves them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxcompress.errors import CompressError
from onnxcompress.formats.base import Attributes, Call, Coded, Weight
from onnxcompress.formats.channels import GRID, Grid, arranged, back, gridded, grids, rows, sample
from onnxcompress.formats.codebooks import SPARSE
from onnxcompress.formats.elements import Tables

MOST = 255  # the largest multiple of the scale
KINDS = {ir.DataType.FLOAT: 2.0**-24, ir.DataType.FLOAT16: 2.0**-11, ir.DataType.BFLOAT16: 2.0**-8}
LOOKS = 2**16  # elements of each channel from which its scale is told
TRIES = 2**13  # elements of all channels by which multiples of the scale are tried


class Affine(Coded):
    """Numbers of 1 to 8 bits, times a scale that each channel has of its own, or all have in common.

    ``Affine(x: uint8, m: float32 [a, c], z: uint8; shape, grid, to) -> array of `shape` and of type `to```.
    `grid` is a shape [a, b, c, d] of as many elements; element (i, j, k, l) of it is
    (x - z[i, k]) * m[i, k], computed as float32 and then rounded to the type `to`, a number of ONNX: 1 for
    float32, 10 for float16, 16 for bfloat16. z is [1, 1] or [a, c]. x may be of any shape and longer than
    needed.
    That is what DequantizeLinear computes, so that weights which have been quantized, with one scale or one
    for each channel along the axes of ``Codebooks``, are stored as they were then. The scale is told from the
    values, and every element is compared bit by bit before this is used; so NaN, infinity and -0.0 are left
    to other formats. Codes are stored as a sparse array where half of them or more stand for zero.
    """

    name: ClassVar[str] = "Affine"
    word: ClassVar[str] = "affine"
    text: ClassVar[str] = f"""
Affine <shape, grid, to> (x, m, z) => (y) {{
  {GRID}
  v = Cast <to = 1> (i)
  z1 = Expand (z, h)
  z2 = Cast <to = 1> (z1)
  z3 = Unsqueeze (z2, P)
  m3 = Unsqueeze (m, P)
  w = Sub (v, z3)
  e = Mul (w, m3)
  f = Reshape (e, s)
  y = Cast <to: int = @to> (f)
}}"""

    def encode(self, weight: Weight) -> Iterator[Call]:
        """Yield the codes with one scale for all, or else one for each channel."""
        kind = rounded_to(weight)
        if kind is None:
            return
        for grid in grids(weight.shape):
            found = fitted(weight, grid, kind)
            if found is None:
                continue
            steps, scales = found
            low, high = steps.min(axis=1), steps.max(axis=1)
            if int(high.max()) - int(low.min()) <= MOST:
                low = low.min(keepdims=True)
            points = (-np.minimum(low, 0)).astype(np.uint8)
            if (high - np.minimum(low, 0) > MOST).any():
                return
            codes = back((steps + points[:, None]).astype(np.uint8), grid)
            channels = (grid[0], grid[2])
            z = points.reshape(channels if points.size > 1 else (1, 1))
            attributes = {"shape": weight.shape, "grid": grid, "to": kind.value}
            for each in arranged(codes, weight.shape, int(points[0]), SPARSE):
                yield Call(self.name, (each, scales.reshape(channels), z), attributes)
            return

    def tables(self, inputs: Sequence[np.ndarray], attributes: Attributes) -> Tables:
        """Return what each code stands for in each channel."""
        codes, scales, points = inputs
        grid = gridded(self.name, attributes)
        channels = (grid[0], grid[2])
        if scales.dtype != np.float32 or scales.shape != channels:
            raise CompressError(f"{self.name}: has scales {list(scales.shape)[:8]}, expected {channels}")
        if points.dtype != np.uint8 or points.shape not in (channels, (1, 1)):
            raise CompressError(f"{self.name}: has zero points {list(points.shape)[:8]}, expected {channels}")
        every = np.arange(int(codes.max(initial=0)) + 1, dtype=np.float32)
        steps = every - points.reshape(-1, 1).astype(np.float32)
        with np.errstate(all="ignore"):
            values = (steps * scales.reshape(-1, 1)).astype(rounded(self.name, attributes))
        return Tables(values, grid)

    def memory(self, inputs: Sequence[np.ndarray], result: np.ndarray) -> int:
        """Return 18 bytes an element (taken, in the grid, four times as float32), and 9 a channel."""
        return inputs[0].size + 18 * result.size + 9 * inputs[1].size


def rounded_to(weight: Weight) -> ir.DataType | None:
    """Return the type of the elements of a weight if it is one that float32 can be rounded to."""
    if not weight.bits.size:
        return None
    kind = ir.DataType.from_numpy(weight.array.dtype)
    return kind if kind in KINDS else None


def rounded(what: str, attributes: Attributes) -> np.dtype:
    """Return the type that the attribute `to` names; CompressError where it isn't one of three."""
    for kind in KINDS:
        if attributes.get("to") == kind.value:
            return kind.numpy()
    raise CompressError(f"{what}: has type {attributes.get('to')!r}, expected 1, 10 or 16")


def finite(array: np.ndarray) -> bool:
    """Return whether an array of one of the `KINDS` has no NaN and no infinity; it makes no NaN signal."""
    bits = array.view(f"u{array.dtype.itemsize}")
    infinite = bits.dtype.type(np.array(np.inf, array.dtype).view(bits.dtype))
    return not bool(((bits & infinite) == infinite).any())


def fitted(weight: Weight, grid: Grid, kind: ir.DataType) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the steps [channels, elements, int16] and scales [channels, float32] of a weight, or None."""
    few = sample(weight.array, grid)[:4, :64]
    if not finite(few) or (units(few.astype(np.float64), KINDS[kind]) <= 0).any():
        return None
    matrix = rows(weight.array, grid)
    if not finite(matrix) or (np.signbit(matrix) & (matrix == 0)).any():
        return None
    looks = matrix[:, :: max(1, matrix.shape[1] // LOOKS)].astype(np.float64)
    thin = looks[:, :: max(1, looks.shape[1] // max(64, TRIES // len(looks)))]
    unit = units(thin, KINDS[kind])
    if (unit <= 0).any():
        return None
    scales = refined(looks, unit, KINDS[kind])
    with np.errstate(all="ignore"):
        steps = np.rint(matrix.astype(np.float32) / scales[:, None]) + np.float32(0)  # not -0.0
        made = (steps * scales[:, None]).astype(matrix.dtype)
    same = made.view(weight.bits.dtype) == matrix.view(weight.bits.dtype)
    if not same.all() or np.abs(steps).max() > MOST:
        return None
    return steps.astype(np.int16), scales


def units(values: np.ndarray, precision: float) -> np.ndarray:
    """Return for each row of `values` [float64] about the largest number that all are multiples of.

    It is 0 where there is none of which the largest is at most the 255-fold. `precision` is the relative
    error that the values have from being rounded.
    """
    sizes = np.abs(values)
    largest = sizes.max(axis=1)
    unit = np.where(largest > 0, 0.0, 1.0)
    multiples = sizes / np.where(largest > 0, largest, 1.0)[:, None]
    left = np.flatnonzero(largest > 0)
    most = min(MOST, int(0.1 / precision))
    many = max(1, 2**16 // multiples.size)  # multiples tried at a time
    for start in range(1, most + 1, many):
        counts = np.arange(start, min(start + many, most + 1))[:, None, None]
        parts = multiples[left] * counts
        near = (np.abs(parts - np.rint(parts)) <= 2 * counts * precision + 1e-12).all(axis=2)
        done = near.any(axis=0)
        unit[left[done]] = largest[left[done]] / (start + near.argmax(axis=0)[done])
        left = left[~done]
        if not left.size:
            break
    return unit


def refined(values: np.ndarray, unit: np.ndarray, precision: float) -> np.ndarray:
    """Return scales [rows, float32] near `unit`, each in the middle of those that round to all of its row."""
    steps = np.abs(np.rint(values / unit[:, None]))
    some = steps > 0
    ratio = np.abs(values) / np.where(some, steps, 1)
    error = rounding(values, precision) / np.where(some, steps, 1)
    low = np.where(some, ratio - error, 0).max(axis=1)
    high = np.where(some, ratio + error, 2 * unit[:, None]).min(axis=1)
    middle: np.ndarray = ((low + high) / 2).astype(np.float32)
    return middle


def rounding(values: np.ndarray, precision: float) -> np.ndarray:
    """Return by how much each of `values` may have been rounded: half a unit in its last place."""
    exponents = np.frexp(values)[1] - 1
    error: np.ndarray = np.ldexp(precision, exponents)
    return error
