"""What formats share that keep something for each channel: how channels lie in an array, and its codes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from onnxcompress.errors import CompressError
from onnxcompress.formats.base import TAKE, Attributes, Call, Format, Symbols, Weight, dims

LEAST = 16  # elements of a channel that is not along the first axis
SAMPLE = 4096  # elements by which most weights that a format can't store are told

Grid = tuple[int, int, int, int]  # [a, b, c, d], element (i, j, k, l) being in channel i * c + k

# Body text: `i` becomes the codes [a, b, c, d], `h` the numbers of a, c that channels have.
GRID = f"""s = Constant <value_ints: ints = @shape> ()
  g = Constant <value_ints: ints = @grid> ()
  n = ReduceProd (s)
  {TAKE}
  i = Reshape (b, g)
  P = Constant <value_ints = [1, 3]> ()
  Q = Constant <value_ints = [0, 2]> ()
  h = Gather (g, Q)"""


def grids(shape: tuple[int, ...]) -> list[Grid]:
    """Return the ways to see an array of `shape`, not empty, as [a, b, c, d]: all one channel, then others.

    Those are the first axis, the second, the last, the first two, and all but the last but one, which are
    what tells the output channels of linear and recurrent layers apart. Only those of the first axis may have
    fewer than `LEAST` elements.
    """
    size = math.prod(shape)
    found: list[Grid] = [(1, size, 1, 1)]
    if len(shape) > 1:
        first, second, last = shape[0], shape[1], shape[-1]
        if size > first:
            found.append((first, size // first, 1, 1))
        others = [
            (1, first, second, size // (first * second)),
            (1, size // last, last, 1),
            (first * second, size // (first * second), 1, 1),
            (size // (shape[-2] * last), shape[-2], last, 1),
        ]
        found += [each for each in others if each[1] * each[3] >= LEAST]
    return list(dict.fromkeys(found))


def rows(array: np.ndarray, grid: Grid, most: int | None = None) -> np.ndarray:
    """Return the channels of `array` as rows [a * c, b * d], or the first `most` of them."""
    _, b, c, d = grid
    view = array.reshape(grid)
    if most is not None:
        view = view[: -(-most // c), :, :most] if c > 1 else view[:most]
    moved = view.transpose(0, 2, 1, 3).reshape(-1, b * d)
    return moved if most is None else moved[:most]


def sample(array: np.ndarray, grid: Grid) -> np.ndarray:
    """Return as many first channels as have `SAMPLE` elements, at least one, thinned out to that many."""
    length = grid[1] * grid[3]
    many = max(1, SAMPLE // length)
    found: np.ndarray = rows(array, grid, many)[:, :: max(1, length // SAMPLE)]
    return found


def back(matrix: np.ndarray, grid: Grid) -> np.ndarray:
    """Return `matrix` [a * c, b * d] as the flat array that :func:`rows` made it of."""
    a, b, c, d = grid
    return np.ascontiguousarray(matrix.reshape(a, c, b, d).transpose(0, 2, 1, 3)).reshape(-1)


def gridded(what: str, attributes: Attributes) -> Grid:
    """Return the attribute `grid`; CompressError where it doesn't fit `shape`, or that is empty."""
    shape, grid = dims(what, attributes), dims(what, attributes, "grid")
    if len(grid) != 4 or math.prod(grid) != math.prod(shape) or not math.prod(shape):
        raise CompressError(f"{what}: has a grid {list(grid)[:8]} for shape {list(shape)[:8]}")
    a, b, c, d = grid
    return a, b, c, d


def arranged(
    codes: np.ndarray, shape: tuple[int, ...], zero: int, sparse: Sequence[Format]
) -> Iterator[Symbols | Call]:
    """Yield expressions for `codes` [size, uint8]: symbols, and where half or more are `zero`, sparse arrays.

    Those are what the formats `sparse` make of the codes.
    """
    yield Symbols(codes)
    weight = Weight((codes - np.uint8(zero)).reshape(shape))
    if 2 * weight.zeros < codes.size:
        return
    for each in sparse:
        for call in each.encode(weight):
            if call.name == "Lookup":
                dense, table = call.inputs
                assert isinstance(table, np.ndarray)
                yield Call("Lookup", (dense, table + np.uint8(zero)))
