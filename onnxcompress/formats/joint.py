"""Sparse weights of few values: distance and value in one symbol."""

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

MOST = 64  # values of a weight; with more, too few distances fit into a byte


class Joint(Format):
    """Elements that aren't zero, each told by one symbol: how far on it is, and the number of its value.

    ``Joint(x: uint8, a: uint8, v: uint8; n, shape) -> uint8 of `shape```. Symbol i stands for a step of
    a[x[i]] and the value v[x[i]]; the first step starts before the first element. All elements not stepped on
    are v's last entry, which stands for zero; long distances are cut up by steps onto such an element.
    An array has at most 256 elements for each symbol, and 16,384.
    Against separate streams of distances and values, it takes half the steps and memory to decode, and a
    Huffman code fits it better. Symbols are in falling order of how often they occur.
    """

    name: ClassVar[str] = "Joint"
    word: ClassVar[str] = "joint"
    sparse: ClassVar[bool] = True
    text: ClassVar[str] = f"""
Joint <n, shape> (x, a, v) => (y) {{
  m = Constant <value_int: int = @n> ()
  U = Constant <value_ints = [1]> ()
  n = Reshape (m, U)
  {TAKE.replace("a = R", "a0 = R").replace("Slice (a,", "Slice (a0,")}
  i = Cast <to = 6> (b)
  c = Cast <to = 6> (a)
  d = Gather (c, i)
  A = Constant <value_int = 0> ()
  e = CumSum (d, A)
  W = Cast <to = 6> (U)
  p = Sub (e, W)
  w = Gather (v, i)
  z = Gather (v, F)
  s = Constant <value_ints: ints = @shape> ()
  r = ReduceProd (s)
  o = Expand (z, r)
  f = ScatterElements (o, p, w)
  y = Reshape (f, s)
}}"""

    def encode(self, weight: Weight) -> Iterator[Call]:
        """Yield the symbols of weights that are mostly zero and have few values."""
        if weight.codes is None or 2 * weight.zeros < weight.bits.size or not weight.positions.size:
            return
        patterns, codes, _ = weight.codes
        kinds = len(patterns)
        if kinds > MOST:
            return
        reach = min(250 // kinds, 250)  # distances that are symbols of their own
        longest = min(256 - reach * kinds, 255 // reach)  # fillers, of 1, 2, ... times the reach
        distances = np.diff(weight.positions, prepend=-1) - 1
        whole, left = np.divmod(distances, reach)
        many = -(-whole // longest)  # fillers before each element
        ends = np.cumsum(many + 1) - 1
        symbols = np.full(int(ends[-1]) + 1, reach * kinds + longest - 1, np.uint8)
        symbols[ends] = left * kinds + codes
        first = whole - np.maximum(many - 1, 0) * longest
        some = many > 0
        symbols[(ends - many)[some]] = reach * kinds + first[some] - 1
        if not holds(weight.bits.size, symbols.size):
            return
        advances = np.append(np.repeat(np.arange(1, reach + 1), kinds), reach * np.arange(1, longest + 1))
        values = np.append(np.tile(np.arange(kinds), reach), np.full(longest, kinds))
        counts = np.bincount(symbols, minlength=len(advances))
        order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
        rank = np.zeros(len(advances), np.uint8)
        rank[order] = np.arange(len(order))
        dense = Call(
            self.name,
            (
                Symbols(rank[symbols]),
                advances[order].astype(np.uint8),
                np.append(values[order], kinds).astype(np.uint8),
            ),
            {"n": symbols.size, "shape": weight.shape},
        )
        yield Call("Lookup", (dense, weight.table(np.append(patterns, patterns.dtype.type(0)))))

    def elements(self, inputs: Sequence[np.ndarray], attributes: Attributes) -> Elements:
        """Return the numbers of the values of the elements stepped on, uint8."""
        symbols, advances, values = inputs
        symbols = take(self.name, symbols, number(self.name, attributes, "n", 0, LARGEST))
        shape = dims(self.name, attributes)
        size = bounded(self.name, math.prod(shape), symbols)
        if advances.ndim != 1 or values.ndim != 1 or not values.size:
            raise CompressError(f"{self.name}: has tables of {advances.ndim} axes, expected 1")
        if symbols.size and int(symbols.max()) >= min(advances.size, values.size):
            raise CompressError(f"{self.name}: has symbols beyond its tables")
        positions = np.cumsum(advances[symbols], dtype=np.int64) - 1
        if positions.size and not 0 <= int(positions.min()) <= int(positions.max()) < size:
            raise CompressError(f"{self.name}: has positions beyond its {size} elements")
        return Elements(shape, values[symbols], positions, values[-1])

    def memory(self, inputs: Sequence[np.ndarray], result: np.ndarray) -> int:
        """Return 19 bytes a symbol, and the array twice, before and after."""
        return 19 * inputs[0].size + 2 * result.nbytes
