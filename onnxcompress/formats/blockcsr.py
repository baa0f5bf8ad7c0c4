"""Sparse weights by blocks: only blocks with an element that isn't zero are stored."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np

from onnxcompress.errors import CompressError
from onnxcompress.formats.base import TAKE, Attributes, Call, Format, Symbols, Weight, bounded, dims, holds
from onnxcompress.formats.csr import stream
from onnxcompress.formats.elements import Elements

BLOCKS = ((1, 4), (1, 8), (1, 16), (4, 1), (8, 1), (16, 1), (2, 2), (4, 4), (8, 8))
STRIPS = 16  # of 16 rows, by which most grids are told not to pay


class BlockCSR(Format):
    """An array of blocks, of which all but the listed ones are the same everywhere.

    ``BlockCSR(p: int32, x, z; grid, shape) -> array of `shape` and of the type of x``. `grid` is (rows of
    blocks, blocks in a row, rows of a block r, columns of a block c); the array is a matrix of blocks, in
    which the first axis counts as rows and all others together as columns. Where r or c don't divide these,
    the blocks at the lower or right edge begin earlier, so that they end with the array, and share elements
    with those before. Block p[i], counted row by row, has the elements x[i * r * c] and on, row by row, and
    what is in no listed block is the scalar z. x may be of any shape and longer than needed; p is stored as
    ``CSR`` of the grid of blocks. Where values are few, x holds their numbers, as symbols, and ``Lookup``
    makes values of them; else it holds values.
    A position stands for r * c elements, so that structured sparsity costs next to nothing to tell; blocks
    of 4, 8 and 16 elements side by side or one above the other, 2 x 2, 4 x 4 and 8 x 8 are tried.
    An array has at most 256 elements for each listed one, and 16,384.
    """

    name: ClassVar[str] = "BlockCSR"
    word: ClassVar[str] = "block"
    sparse: ClassVar[bool] = True
    text: ClassVar[str] = f"""
BlockCSR <grid, shape> (p, x, z) => (y) {{
  g = Constant <value_ints: ints = @grid> ()
  s = Constant <value_ints: ints = @shape> ()
  U = Constant <value_ints = [1]> ()
  O = Constant <value_int = 1> ()
  N = Constant <value_int = 0> ()
  A = Constant <value_int = 2> ()
  B = Constant <value_int = 3> ()
  m = ReduceProd (s)
  h = Gather (s, N)
  w = Div (m, h)
  l = Gather (g, O)
  r = Gather (g, A)
  c = Gather (g, B)
  h1 = Sub (h, r)
  w1 = Sub (w, c)
  h6 = Cast <to = 6> (h1)
  w6 = Cast <to = 6> (w1)
  v6 = Cast <to = 6> (w)
  l6 = Cast <to = 6> (l)
  r6 = Cast <to = 6> (r)
  c6 = Cast <to = 6> (c)
  d = Div (p, l6)
  d1 = Mul (d, r6)
  d2 = Min (d1, h6)
  d3 = Mul (d2, v6)
  e = Mod (p, l6)
  e1 = Mul (e, c6)
  e2 = Min (e1, w6)
  f = Add (d3, e2)
  f1 = Unsqueeze (f, U)
  i = Range (N, r, O)
  i1 = Mul (i, w)
  i2 = Unsqueeze (i1, U)
  j = Range (N, c, O)
  k = Add (i2, j)
  F0 = Constant <value_ints = [-1]> ()
  k1 = Reshape (k, F0)
  k6 = Cast <to = 6> (k1)
  q = Add (f1, k6)
  q1 = Reshape (q, F0)
  n = Shape (q1)
  {TAKE}
  t = Expand (z, m)
  u = ScatterElements (t, q1, b)
  y = Reshape (u, s)
}}"""

    def encode(self, weight: Weight) -> Iterator[Call]:
        """Yield blocks of the size that takes the fewest bytes, with codes or values."""
        if len(weight.shape) < 2 or not weight.positions.size or 2 * weight.zeros < weight.bits.size:
            return
        coded = weight.codes is not None and len(weight.codes[0]) <= 255
        found = smallest(weight)
        if found is None or not (coded or weight.scatters):
            return
        grid, blocks = found
        if not holds(weight.bits.size, blocks.size * grid[2] * grid[3]):
            return
        lengths = np.bincount(blocks // grid[1], minlength=grid[0])
        inputs = (stream(lengths, np.int32), stream(blocks % grid[1], np.uint16, np.int32))
        positions = Call("CSR", inputs, {"n": grid[0], "columns": grid[1]})
        listed = places(blocks, grid, weight.shape[0], weight.bits.size).reshape(-1)
        attributes = {"grid": grid, "shape": weight.shape}
        if coded and weight.codes is not None:
            patterns, codes, _ = weight.codes
            dense = np.full(weight.bits.size, len(patterns), np.uint8)
            dense[weight.positions] = codes
            zero = np.full((), len(patterns), np.uint8)
            made = Call(self.name, (positions, Symbols(dense[listed]), zero), attributes)
            yield Call("Lookup", (made, weight.table(np.append(patterns, patterns.dtype.type(0)))))
        else:
            zero = np.zeros((), weight.array.dtype)
            yield Call(self.name, (positions, weight.table(weight.bits[listed]), zero), attributes)

    def elements(self, inputs: Sequence[np.ndarray], attributes: Attributes) -> Elements:
        """Return the elements of the listed blocks, block by block."""
        positions, values, background = inputs
        shape, grid = dims(self.name, attributes), dims(self.name, attributes, "grid")
        size, rows = math.prod(shape), shape[0] if shape else 0
        if len(grid) != 4 or not size or not fits((grid[0], grid[1], grid[2], grid[3]), rows, size):
            raise CompressError(f"{self.name}: has a grid {list(grid)[:8]} for shape {list(shape)[:8]}")
        down, across, r, c = grid
        count = positions.size * r * c
        if positions.dtype.kind != "i" or positions.ndim != 1 or values.size < count:
            raise CompressError(f"{self.name}: has {values.size} values for {positions.size} blocks")
        if values.dtype != background.dtype or background.size != 1:
            raise CompressError(f"{self.name}: has values of {values.dtype}, and zeros {background.dtype}")
        if positions.size and not 0 <= int(positions.min()) <= int(positions.max()) < down * across:
            raise CompressError(f"{self.name}: has positions beyond its {down * across} blocks")
        bounded(self.name, size, values)
        listed = places(positions.astype(np.int64), (down, across, r, c), rows, size).reshape(-1)
        kept = values.reshape(-1)[:count]
        if rows % r or size // rows % c:  # blocks at the far ends share elements with those before
            listed, first = np.unique(listed, return_index=True)
            kept = kept[first]
        return Elements(shape, kept, listed.astype(np.int32), background.reshape(-1)[0])

    def memory(self, inputs: Sequence[np.ndarray], result: np.ndarray) -> int:
        """Return the array twice, values twice, 8 bytes for each of them, and 36 a block."""
        return 2 * result.nbytes + 2 * inputs[1].nbytes + 8 * inputs[1].size + 36 * inputs[0].size


Grid = tuple[int, int, int, int]


def smallest(weight: Weight) -> tuple[Grid, np.ndarray] | None:
    """Return the grid that takes the fewest bytes, as a sample of rows says, and the blocks to list.

    None where it doesn't pay.
    """
    rows, size = weight.shape[0], weight.bits.size
    columns = size // rows
    sample = strips(weight.positions, rows, columns)
    cost, grid = cheapest(sample, rows, columns)
    if grid is None or cost * weight.positions.size > size * sample.size:
        return None
    blocks = listed(weight.positions, columns, grid)
    bytes_ = blocks.size * (grid[2] * grid[3] + 1)
    return (grid, blocks) if 2 * bytes_ < size + 2 * weight.positions.size else None


def scattered(weight: Weight) -> bool:
    """Return whether, as a sample says, blocks take twice the bytes that elements by themselves do."""
    if len(weight.shape) < 2 or not weight.positions.size:
        return True
    columns = weight.bits.size // weight.shape[0]
    sample = strips(weight.positions, weight.shape[0], columns)
    return cheapest(sample, weight.shape[0], columns)[0] > 4 * sample.size


def cheapest(sample: np.ndarray, rows: int, columns: int) -> tuple[int, Grid | None]:
    """Return the fewest bytes in which blocks hold the elements at the positions `sample`, and the grid."""
    grids = [(-(-rows // r), -(-columns // c), r, c) for r, c in BLOCKS if r <= rows and c <= columns]
    costs = [(len(listed(sample, columns, grid)) * (grid[2] * grid[3] + 1), grid) for grid in grids]
    return min(costs, default=(0, None))


def strips(positions: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Return those of the flat, rising `positions` that are in 16 strips of 16 rows, or all of few."""
    if rows <= 16 * STRIPS or positions.size < 65536:
        return positions
    first = np.arange(STRIPS) * (rows // STRIPS // 16 * 16)
    edges = np.searchsorted(positions, np.stack([first, first + 16], axis=1) * columns)
    return np.concatenate([positions[start:stop] for start, stop in edges])


def listed(positions: np.ndarray, columns: int, grid: Grid) -> np.ndarray:
    """Return the blocks that hold the elements at `positions`, row by row [count, int64]."""
    row, column = np.divmod(positions.astype(np.int32), np.int32(columns))
    row //= np.int32(grid[2])
    column //= np.int32(grid[3])
    return np.flatnonzero(np.bincount(row * np.int32(grid[1]) + column, minlength=1))


def fits(grid: Grid, rows: int, size: int) -> bool:
    """Return whether `grid` is one of a matrix of `rows` and `size`, not 0."""
    down, across, r, c = grid
    columns = size // rows
    return 1 <= r <= rows and 1 <= c <= columns and down == -(-rows // r) and across == -(-columns // c)


def places(blocks: np.ndarray, grid: Grid, rows: int, size: int) -> np.ndarray:
    """Return where the elements of `blocks` [count, int64] are in the flat array [count, r * c]."""
    _, across, r, c = grid
    columns = size // rows
    top = np.minimum(blocks // across * r, rows - r)
    left = np.minimum(blocks % across * c, columns - c)
    inner = np.add.outer(np.arange(r) * columns, np.arange(c)).reshape(-1)
    found: np.ndarray = (top * columns + left)[:, None] + inner
    return found
