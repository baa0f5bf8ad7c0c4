"""Weights that are powers of two times a scale."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np

from onnxcompress.errors import CompressError
from onnxcompress.formats.affine import finite, rounded, rounded_to
from onnxcompress.formats.base import Attributes, Call, Coded, Weight
from onnxcompress.formats.channels import GRID, Grid, arranged, back, gridded, grids, rows, sample
from onnxcompress.formats.codebooks import SPARSE, numbered
from onnxcompress.formats.elements import Tables


class LogScale(Coded):
    """A sign and an exponent for each element, and a scale for each channel, or one for all.

    ``LogScale(x: uint8, t: float32 [entries], m: float32 [a, c]; shape, grid, to) -> array of `shape` and of
    the type `to```. `grid` is a shape [a, b, c, d] of as many elements; element (i, j, k, l) of it is
    t[x] * m[i, k], computed as float32 and then rounded to the type `to`, a number of ONNX: 1 for float32, 10
    for float16, 16 for bfloat16. t holds at most 256 values: 2^-e and -2^-e for whole numbers e, and 0 where
    there are zeros; so the multiplication only adds exponents, and nothing is rounded. Only those of the
    powers that occur are listed, in falling order of how often they do, so that x takes few bits. x may be of
    any shape and longer than needed.
    Whether a weight is of this kind is seen from its mantissas, which are all the same in a channel; NaN and
    infinity are left to other formats, -0.0 is an entry of t. Axes are those of ``Codebooks``. Source:
    Miyashita et al., Convolutional Neural Networks using Logarithmic Data Representation, 2016.
    """

    name: ClassVar[str] = "LogScale"
    word: ClassVar[str] = "logscale"
    text: ClassVar[str] = f"""
LogScale <shape, grid, to> (x, t, m) => (y) {{
  {GRID}
  i6 = Cast <to = 6> (i)
  v = Gather (t, i6)
  m3 = Unsqueeze (m, P)
  e = Mul (v, m3)
  f = Reshape (e, s)
  y = Cast <to: int = @to> (f)
}}"""

    def encode(self, weight: Weight) -> Iterator[Call]:
        """Yield the codes with one scale for all, or else one for each channel."""
        kind = rounded_to(weight)
        if kind is None:
            return
        for grid in grids(weight.shape):
            found = split(weight, grid)
            if found is None:
                continue
            powers, scales = found
            parts = Weight(powers)
            table = numbered(parts, 2 * parts.zeros >= parts.bits.size)
            if table is None:
                return
            listed, codes = table
            attributes = {"shape": weight.shape, "grid": grid, "to": kind.value}
            inputs = parts.table(listed), scales.reshape(grid[0], grid[2])
            for each in arranged(back(codes.reshape(powers.shape), grid), weight.shape, 0, SPARSE):
                yield Call(self.name, (each, *inputs), attributes)
            return

    def tables(self, inputs: Sequence[np.ndarray], attributes: Attributes) -> Tables:
        """Return the powers times the scale of each channel."""
        codes, table, scales = inputs
        grid = gridded(self.name, attributes)
        if scales.dtype != np.float32 or scales.shape != (grid[0], grid[2]):
            raise CompressError(f"{self.name}: has scales {list(scales.shape)[:8]} for a grid {list(grid)}")
        if table.dtype != np.float32 or table.ndim != 1 or int(codes.max(initial=0)) >= table.size:
            raise CompressError(f"{self.name}: has codes beyond its table of {table.size} values")
        with np.errstate(all="ignore"):
            values = np.multiply.outer(scales.reshape(-1), table).astype(rounded(self.name, attributes))
        return Tables(values, grid)

    def memory(self, inputs: Sequence[np.ndarray], result: np.ndarray) -> int:
        """Return 18 bytes an element: taken, in the grid, as int32, and three times as float32."""
        return inputs[0].size + 18 * result.size + inputs[2].nbytes


def split(weight: Weight, grid: Grid) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the powers of two [channels, elements] and scales [channels] of a weight, both float32, or None.

    The scale of a channel is its largest magnitude, of one without any it is 1.
    """
    for array in (sample(weight.array, grid), rows(weight.array, grid)):
        if not finite(array):
            return None
        fractions, exponents = np.frexp(np.abs(array.astype(np.float32)))
        most = fractions.max(axis=1)
        if not ((fractions == most[:, None]) | (array == 0)).all():
            return None
    highest = np.where(array == 0, -1000, exponents).max(axis=1)
    highest[most == 0] = 1
    scales = np.ldexp(np.where(most == 0, 0.5, most), highest).astype(np.float32)
    powers = np.where(array == 0, 0, np.ldexp(np.float32(1), exponents - highest[:, None]))
    powers = np.where(np.signbit(array), -powers, powers).astype(np.float32)
    with np.errstate(all="ignore"):
        made = (powers * scales[:, None]).astype(weight.array.dtype)
    if not (made.view(weight.bits.dtype) == array.view(weight.bits.dtype)).all():
        return None
    return powers, scales
