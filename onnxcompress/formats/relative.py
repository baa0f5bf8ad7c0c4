"""Sparse weights by the distances between their elements."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np

from onnxcompress.errors import CompressError
from onnxcompress.formats.base import (
    LARGEST,
    TAKE,
    Attributes,
    Call,
    Format,
    Symbols,
    Weight,
    bounded,
    dims,
    holds,
    number,
    take,
)
from onnxcompress.formats.elements import Elements


class RelativeIndex(Format):
    """Positions of elements, each told by its distance from the one before.

    ``RelativeIndex(x: uint8; n) -> int32 [n]``. The first position is x[0], each other one the position
    before plus x[i]. A distance too large for the k bits that are stored is cut up: an element that is zero
    is listed along the way (a filler). Source: Han et al., Deep Compression, ICLR 2016.
    """

    name: ClassVar[str] = "RelativeIndex"
    word: ClassVar[str] = "relative"
    sparse: ClassVar[bool] = True
    text: ClassVar[str] = f"""
RelativeIndex <n> (x) => (y) {{
  m = Constant <value_int: int = @n> ()
  F0 = Constant <value_ints = [1]> ()
  n = Reshape (m, F0)
  {TAKE}
  i = Cast <to = 6> (b)
  A = Constant <value_int = 0> ()
  y = CumSum (i, A)
}}"""

    def encode(self, weight: Weight) -> Iterator[Call]:
        """Yield positions with codes or values, with distances of 8 bits and of the width that packs best."""
        distances = np.diff(weight.positions, prepend=0)
        if not distances.size or 2 * weight.zeros < weight.bits.size // 2:
            return
        coded = weight.codes is not None and len(weight.codes[0]) <= 255
        bits = (len(weight.codes[0])).bit_length() if coded and weight.codes else 8 * weight.bits.itemsize
        for width in {8, narrowest(distances, bits)}:
            steps, real = split(distances, 2**width - 1)
            count = steps.size
            if not holds(weight.bits.size, count):
                continue
            positions = Call(self.name, (Symbols(steps),), {"n": count})
            if coded and weight.codes:
                patterns, codes, _ = weight.codes
                zero = len(patterns)
                listed = np.full(count, zero, np.uint8)
                listed[real] = codes
                dense = Call(
                    "Scatter",
                    (positions, Symbols(listed), np.full((), zero, np.uint8)),
                    {"shape": weight.shape},
                )
                yield Call("Lookup", (dense, weight.table(np.append(patterns, patterns.dtype.type(0)))))
            elif weight.scatters:
                values = np.zeros(count, weight.bits.dtype)
                values[real] = weight.rest
                zeros = np.zeros((), weight.array.dtype)
                yield Call("Scatter", (positions, weight.table(values), zeros), {"shape": weight.shape})

    def decode(self, inputs: Sequence[np.ndarray], attributes: Attributes) -> np.ndarray:
        """Return the positions [n, int32]."""
        (steps,) = inputs
        steps = take(self.name, steps, number(self.name, attributes, "n", 0, LARGEST))
        positions = np.cumsum(steps, dtype=np.int64)
        if positions.size and positions[-1] > LARGEST:
            raise CompressError(f"{self.name}: has position {positions[-1]}, expected at most {LARGEST}")
        return positions.astype(np.int32)

    def memory(self, inputs: Sequence[np.ndarray], result: np.ndarray) -> int:
        """Return 6 bytes an element: taken, as int32."""
        return 6 * result.size


def narrowest(distances: np.ndarray, bits: int) -> int:
    """Return the width from 2 to 8 bits with which distances, and `bits` for each element, pack best."""
    counts = np.bincount(np.minimum(distances, 2**20))
    values = np.arange(counts.size)
    sizes = {
        width: int((counts * np.maximum(1, -(-values // (2**width - 1)))).sum()) * (width + bits)
        for width in range(2, 9)
    }
    return min(sizes, key=lambda width: sizes[width])


def split(distances: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return `distances` cut into steps of at most `most` [uint8], and which steps end at an element."""
    pieces = np.maximum(1, -(-distances // most))
    if not pieces.size or int(pieces.max()) == 1:
        return distances.astype(np.uint8), np.arange(distances.size)
    ends = np.cumsum(pieces) - 1
    steps = np.full(int(ends[-1]) + 1, most, np.uint8)
    steps[ends] = distances - (pieces - 1) * most
    return steps, ends


class Scatter(Format):
    """An array that is the same everywhere but at listed positions.

    ``Scatter(p: int32, x, z; shape) -> array of `shape` and of the type of x``. Element p[i] of the flat
    array is x[i], all others are the scalar z. x may be longer than p. A position may be listed twice, with
    the same value. An array has at most 256 elements for each listed one, and 16,384.
    """

    name: ClassVar[str] = "Scatter"
    text: ClassVar[str] = f"""
Scatter <shape> (p, x, z) => (y) {{
  n = Shape (p)
  {TAKE}
  s = Constant <value_ints: ints = @shape> ()
  m = ReduceProd (s)
  e = Expand (z, m)
  f = ScatterElements (e, p, b)
  y = Reshape (f, s)
}}"""

    def elements(self, inputs: Sequence[np.ndarray], attributes: Attributes) -> Elements:
        """Return the listed elements."""
        positions, values, background = inputs
        shape = dims(self.name, attributes)
        size = bounded(self.name, math.prod(shape), positions)
        values = values.reshape(-1)
        if values.dtype != background.dtype or background.size != 1 or values.size < positions.size:
            raise CompressError(f"{self.name}: has {values.size} values for {positions.size} positions")
        if positions.dtype.kind != "i" or positions.ndim != 1:
            raise CompressError(f"{self.name}: has positions of {positions.dtype}, expected int32")
        if positions.size and not 0 <= int(positions.min()) <= int(positions.max()) < size:
            raise CompressError(f"{self.name}: has positions beyond its {size} elements")
        return Elements(shape, values[: positions.size], positions, background.reshape(-1)[0])

    def memory(self, inputs: Sequence[np.ndarray], result: np.ndarray) -> int:
        """Return the array twice, before and after, and the values taken."""
        return 2 * result.nbytes + 2 * inputs[0].size * result.dtype.itemsize
