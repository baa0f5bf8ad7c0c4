"""Weights of which each channel, or a few neighbouring ones together, has a table of values of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from onnxcompress.errors import CompressError
from onnxcompress.formats.base import (
    LARGEST,
    Attribute,
    Attributes,
    Call,
    Coded,
    Format,
    Symbols,
    Weight,
    number,
)
from onnxcompress.formats.bitmask import Bitmask
from onnxcompress.formats.blockcsr import BlockCSR
from onnxcompress.formats.channels import GRID, Grid, arranged, back, gridded, grids, rows, sample
from onnxcompress.formats.csr import CSR
from onnxcompress.formats.elements import Tables
from onnxcompress.formats.joint import Joint
from onnxcompress.formats.relative import RelativeIndex

SPARSE: tuple[Format, ...] = (Bitmask(), Joint(), RelativeIndex(), CSR(), BlockCSR())
WORTH = (
    0.9  # a grouping is tried where a sample says that it takes less than this share of what else there is
)
TRIES = 4 * 4096  # elements that a grouping is estimated by


class Codebooks(Coded):
    """Tables of at most 256 values, one for each group of channels, and for each element its number there.

    ``Codebooks(x: uint8, k: uint8, t; shape, grid, group) -> array of `shape` and of the type of t``. `grid`
    is a shape [a, b, c, d] of as many elements, in which element (i, j, k, l) is in channel i * c + k; the
    first `group` channels are a group, the next ones another, and the last one may be smaller. Group g has a
    table of k[g] + 1 values; t is all tables, one after the other, and an element is entry x of its group's
    table. x, k and t may be longer than needed, x of any shape.
    Values are kept bit by bit, of any type of two bytes or more. Tables are in falling order of how often
    their values occur, so that one Huffman code fits the codes of all groups; where half the weight is zero
    or more, zero is number 0 of every table, and the codes are stored as a sparse array.
    Channels are looked for along the first axis (Conv, Gemm with transB), the second (ConvTranspose), the
    last (MatMul), the first two (recurrent layers) and all but the last but one (MatMul of more axes); groups
    where values change. That is what ``cluster`` makes with scope=channel and scope=group. Source: Han et
    al., Deep Compression, ICLR 2016.
    """

    name: ClassVar[str] = "Codebooks"
    word: ClassVar[str] = "codebooks"
    text: ClassVar[str] = f"""
Codebooks <shape, grid, group> (x, k, t) => (y) {{
  {GRID}
  U = Constant <value_int = 1> ()
  N = Constant <value_int = 0> ()
  G = Constant <value_int: int = @group> ()
  m = ReduceProd <keepdims = 0> (h)
  r = Range (N, m, U)
  q = Div (r, G)
  k1 = Reshape (k, F)
  k6 = Cast <to = 6> (k1)
  U6 = Cast <to = 6> (U)
  l = Add (k6, U6)
  e = CumSum <exclusive = 1> (l, N)
  o = Gather (e, q)
  o1 = Reshape (o, h)
  o2 = Unsqueeze (o1, P)
  i6 = Cast <to = 6> (i)
  j = Add (i6, o2)
  j1 = Reshape (j, s)
  y = Gather (t, j1)
}}"""

    def encode(self, weight: Weight) -> Iterator[Call]:
        """Yield the codes and tables of the grouping that a sample says is the smallest."""
        if weight.bits.itemsize == 1 or weight.bits.size < 2:
            return
        sparse = 2 * weight.zeros >= weight.bits.size
        made = [split(weight.bits, grid, group, sparse) for grid, group in groupings(weight)]
        best = min((each for each in made if each is not None), key=lambda each: each.bits, default=None)
        if best is None:
            return
        sizes = Symbols(np.array([each.size - 1 for each in best.tables], np.uint8))
        values = weight.table(np.concatenate(best.tables))
        attributes: dict[str, Attribute] = {"shape": weight.shape, "grid": best.grid, "group": best.group}
        for each in arranged(best.codes, weight.shape, 0, SPARSE):
            yield Call(self.name, (each, sizes, values), attributes)

    def tables(self, inputs: Sequence[np.ndarray], attributes: Attributes) -> Tables:
        """Return the table of each group; those that are shorter go on with their last value."""
        codes, sizes, table = inputs
        grid = gridded(self.name, attributes)
        group = number(self.name, attributes, "group", 1, LARGEST)
        channels = grid[0] * grid[2]
        sizes = sizes.reshape(-1)[: -(-channels // group)]
        if sizes.dtype != np.uint8 or sizes.size * group < channels:
            raise CompressError(f"{self.name}: has {sizes.size} tables for {channels} channels")
        known = sizes.astype(np.int64) + 1
        if table.ndim != 1 or int(known.sum()) > table.size or int(codes.max(initial=0)) >= int(known.max()):
            raise CompressError(f"{self.name}: has {table.size} values, expected {int(known.sum())}")
        places = np.minimum(np.arange(known.max()), sizes[:, None]) + (np.cumsum(known) - known)[:, None]
        return Tables(table[places], grid, group)

    def memory(self, inputs: Sequence[np.ndarray], result: np.ndarray) -> int:
        """Return 14 bytes an element (taken, in the grid, as int32, with its table's start, in shape)."""
        return inputs[0].size + 14 * result.size + 9 * inputs[1].size


def numbered(part: Weight, zero_first: bool) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the bit patterns of a weight, and each element's number; None where there are over 256.

    Patterns are in falling order of how often they occur, but for zero, which may be asked to be first.
    """
    if part.codes is None:
        return None
    patterns, codes, counts = part.codes
    if zero_first or part.zeros:
        if len(patterns) == 256:
            return None
        place = 0 if zero_first else int(np.searchsorted(-counts, -part.zeros))
        dense = np.full(part.bits.size, place, np.uint8)
        dense[part.positions] = codes + (codes >= place)
        return np.insert(patterns, place, 0), dense
    return patterns, codes


@dataclass(frozen=True)
class Books:
    """The codes [size, uint8] of a weight in groups of channels, and the table of each."""

    grid: Grid
    group: int
    codes: np.ndarray
    tables: list[np.ndarray]

    @cached_property
    def bits(self) -> float:
        """How many bits codes and tables take at least."""
        counts = np.bincount(self.codes)
        return self.codes.size * entropy(counts) + 8 * sum(each.nbytes + 1 for each in self.tables)


def split(bits: np.ndarray, grid: Grid, group: int, zero_first: bool) -> Books | None:
    """Return patterns `bits` in groups of channels; None where a group has over 256."""
    matrix = rows(bits, grid)
    codes, tables = np.empty(matrix.shape, np.uint8), []
    for start in range(0, len(matrix), group):
        part = Weight(matrix[start : start + group])
        made = numbered(part, zero_first)
        if made is None:
            return None
        codes[start : start + group] = made[1].reshape(part.shape)
        tables.append(made[0])
    return Books(grid, group, back(codes, grid), tables)


def groupings(weight: Weight) -> list[tuple[Grid, int]]:
    """Return up to three grids and sizes of groups that, by a sample, take fewer bytes than one table."""
    size = weight.bits.size
    most = 8.0 * weight.bits.itemsize
    if weight.codes is not None:
        counts = np.append(weight.codes[2], weight.zeros)
        most = min(most, entropy(counts) + most * counts.size / size)
    found: list[tuple[float, Grid, int]] = []
    for grid in grids(weight.shape)[1:]:
        few = sample(weight.bits, grid)
        some = few[few != 0]
        kinds = np.unique(some).size
        if kinds > max(256, some.size // 2) or kinds > max(32, 0.97 * some.size):
            continue
        if entropy(np.unique(few[0], return_counts=True)[1]) >= WORTH * most:
            continue
        sizes = candidates(weight.bits, grid)
        found += [(estimated(weight.bits, grid, group), grid, group) for group in sizes]
    found.sort(key=lambda each: each[0])
    least = found[0][0] if found else 0.0
    return [(grid, group) for bits, grid, group in found[:3] if bits < min(WORTH * most, 1.1 * least)]


def candidates(bits: np.ndarray, grid: Grid) -> list[int]:
    """Return sizes of groups: powers of two, and the first channels whose values are all new."""
    channels, length = grid[0] * grid[2], grid[1] * grid[3]
    matrix = rows(bits, grid, max(2, TRIES // length))
    _, first, place = np.unique(matrix, return_index=True, return_inverse=True)
    owner = first[place.reshape(matrix.shape)] // matrix.shape[1]  # the channel where a value occurs first
    fresh = ((owner == np.arange(len(matrix))[:, None]) | (matrix == 0)).all(axis=1).nonzero()[0]
    powers = [1 << power for power in range((channels - 1).bit_length())]
    return sorted({*powers, *(int(each) for each in fresh[1:9]), channels})


def estimated(bits: np.ndarray, grid: Grid, group: int) -> float:
    """Return about how many bits an element takes in groups of `group` channels; infinity where none fits."""
    length = grid[1] * grid[3]
    matrix = rows(bits, grid, group * max(1, TRIES // (group * length)))
    total = 0.0
    for start in range(0, len(matrix), group):
        part = matrix[start : start + group]
        _, counts = np.unique(part.reshape(-1)[:: max(1, part.size // TRIES)], return_counts=True)
        if counts.size > 256:
            return float("inf")
        total += part.size * entropy(counts) + counts.size * 8 * bits.itemsize + 8
    return total / matrix.size


def entropy(counts: np.ndarray) -> float:
    """Return the bits that each of what occurs `counts` times takes at least."""
    some = counts[counts > 0]
    return float(np.log2(some.sum() / some) @ some) / max(1, int(some.sum()))
