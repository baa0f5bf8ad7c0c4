"""Sparse weights by blocks: only blocks with an element that isn't zero are stored."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np

from onnxcompress.errors import CompressError
from onnxcompress.formats.base import Attributes, Call, Format, Weight, bounded, dims
from onnxcompress.formats.csr import stream

BLOCKS = ((1, 4), (1, 8), (1, 16), (4, 1), (8, 1), (16, 1), (2, 2), (4, 4), (8, 8))


class BlockCSR(Format):
    """An array of blocks, of which all but the listed ones are the same everywhere.

    ``BlockCSR(p: int32, v, z; grid, shape) -> array of `shape` and of the type of v``. `grid` is (rows of
    blocks, blocks in a row, rows of a block r, columns of a block c); the array is a matrix of blocks, in
    which the first axis counts as rows and all others together as columns, and both are divided by r and c.
    Block p[i], counted row by row, has the elements v[i * r * c] and on, row by row, and all other blocks are
    the scalar z. v has as many elements as the blocks of p; p is stored as ``CSR`` of the grid of blocks.
    A position stands for r * c elements, so that structured sparsity costs next to nothing to tell; blocks
    of 4, 8 and 16 elements side by side or one above the other, 2 x 2, 4 x 4 and 8 x 8 are tried.
    An array has at most 256 elements for each listed one, and 16,384.
    """

    name: ClassVar[str] = "BlockCSR"
    word: ClassVar[str] = "block"
    text: ClassVar[str] = """
BlockCSR <grid, shape> (p, v, z) => (y) {
  g = Constant <value_ints: ints = @grid> ()
  s = Constant <value_ints: ints = @shape> ()
  A = Constant <value_ints = [0, 1]> ()
  B = Constant <value_ints = [2, 3]> ()
  F = Constant <value_ints = [-1]> ()
  U = Constant <value_ints = [1]> ()
  gb = Gather (g, A)
  gi = Gather (g, B)
  b = ReduceProd (gb)
  i = ReduceProd (gi)
  e0 = Concat <axis = 0> (b, i)
  e = Expand (z, e0)
  u0 = Concat <axis = 0> (F, i)
  u = Reshape (v, u0)
  q = Cast <to = 7> (p)
  k = Unsqueeze (q, U)
  d = ScatterND (e, k, u)
  h = Reshape (d, g)
  t = Transpose <perm = [0, 2, 1, 3]> (h)
  y = Reshape (t, s)
}"""

    def encode(self, weight: Weight) -> Iterator[Call]:
        """Yield blocks of the size that takes the fewest bytes, with codes or values."""
        if len(weight.shape) < 2 or not weight.positions.size or 2 * weight.zeros < weight.bits.size:
            return
        rows = weight.shape[0]
        columns = weight.bits.size // rows
        size, r, c, blocks = weight.bits.size, 1, 1, weight.positions[:0]
        for high, wide in BLOCKS:
            if rows % high == 0 and columns % wide == 0:
                across = columns // wide
                own = weight.positions // columns // high * across + weight.positions % columns // wide
                listed = np.flatnonzero(np.bincount(own))
                if listed.size * (high * wide + 1) < size:
                    size, r, c, blocks = listed.size * (high * wide + 1), high, wide, listed
        if not blocks.size or 2 * size > weight.bits.size + 2 * weight.positions.size:
            return
        grid = (rows // r, columns // c, r, c)
        lengths = np.bincount(blocks // grid[1], minlength=grid[0])
        inputs = (stream(lengths, np.int32), stream(blocks % grid[1], np.uint16, np.int32))
        positions = Call("CSR", inputs, {"n": grid[0], "columns": grid[1]})

        def kept(flat: np.ndarray) -> np.ndarray:
            parts = flat.reshape(grid[0], r, grid[1], c).transpose(0, 2, 1, 3)
            return np.ascontiguousarray(parts.reshape(-1, r * c)[blocks]).reshape(-1)

        attributes = {"grid": grid, "shape": weight.shape}
        if weight.codes is not None and len(weight.codes[0]) <= 255:
            patterns, codes, _ = weight.codes
            dense = np.full(weight.bits.size, len(patterns), np.uint8)
            dense[weight.positions] = codes
            zero = np.full((), len(patterns), np.uint8)
            made = Call(self.name, (positions, kept(dense), zero), attributes)
            yield Call("Lookup", (made, weight.table(np.append(patterns, patterns.dtype.type(0)))))
        else:
            zero = np.zeros((), weight.array.dtype)
            yield Call(self.name, (positions, weight.table(kept(weight.bits)), zero), attributes)

    def decode(self, inputs: Sequence[np.ndarray], attributes: Attributes) -> np.ndarray:
        """Return the array."""
        positions, values, background = inputs
        shape, grid = dims(self.name, attributes), dims(self.name, attributes, "grid")
        if len(grid) != 4 or math.prod(grid) != math.prod(shape) or not math.prod(grid):
            raise CompressError(f"{self.name}: has a grid {list(grid)} for shape {list(shape)[:8]}")
        down, across, r, c = grid
        if positions.dtype.kind != "i" or positions.ndim != 1 or values.size != positions.size * r * c:
            raise CompressError(f"{self.name}: has {values.size} values for {positions.size} blocks")
        if values.dtype != background.dtype or background.size != 1:
            raise CompressError(f"{self.name}: has values of {values.dtype}, and zeros {background.dtype}")
        size = bounded(self.name, math.prod(shape), values)
        if positions.size and not 0 <= int(positions.min()) <= int(positions.max()) < down * across:
            raise CompressError(f"{self.name}: has positions beyond its {down * across} blocks")
        result = np.full(size, background.reshape(-1)[0]).reshape(-1, r * c)
        result[positions] = values.reshape(-1, r * c)
        return result.reshape(down, across, r, c).transpose(0, 2, 1, 3).reshape(shape)

    def memory(self, inputs: Sequence[np.ndarray], result: np.ndarray) -> int:
        """Return the array three times, before and after the blocks and in order, and 8 bytes a block."""
        return 3 * result.nbytes + 8 * inputs[0].size
