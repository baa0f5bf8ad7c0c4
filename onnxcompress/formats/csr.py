"""Sparse weights by rows: how many elements each has, and in which columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np

from onnxcompress.errors import CompressError
from onnxcompress.formats.base import LARGEST, Attributes, Call, Format, Symbols, Weight, holds, number


class CSR(Format):
    """Positions of elements, each told by its row and column (compressed sparse rows).

    ``CSR(x: uint8 or int32, c: uint8, uint16 or int32; n, columns) -> int32 [count]``. The first n entries
    of x say how many elements each of n rows has, and c in which columns they are, row by row; positions are
    row * columns + c. Both may be of any shape and longer than needed. Of an array, the first axis counts as
    rows and all others together as columns; one of a single axis is one row. ``Scatter`` holds values, or
    with ``Lookup``, numbers of them.
    Lengths are the differences of the customary row pointers, which take four times the bytes: a running sum
    of them is the pointers. Numbers below 256 are symbols; larger columns take 2 or 4 bytes.
    No row is longer than there are columns, so that decoding takes no more memory than the dense array.
    """

    name: ClassVar[str] = "CSR"
    word: ClassVar[str] = "csr"
    sparse: ClassVar[bool] = True
    text: ClassVar[str] = """
CSR <n, columns> (x, c) => (y) {
  n0 = Constant <value_int: int = @n> ()
  C = Constant <value_int: int = @columns> ()
  F = Constant <value_ints = [-1]> ()
  Z = Constant <value_ints = [0]> ()
  U = Constant <value_ints = [1]> ()
  O = Constant <value_int = 1> ()
  N = Constant <value_int = 0> ()
  n1 = Reshape (n0, U)
  a = Reshape (x, F)
  b = Slice (a, Z, n1)
  l = Cast <to = 6> (b)
  l1 = Unsqueeze (l, U)
  w = ReduceMax <keepdims = 0> (l)
  w7 = Cast <to = 7> (w)
  k = Range (N, w7, O)
  k6 = Cast <to = 6> (k)
  m = Less (k6, l1)
  i = NonZero (m)
  r = Gather <axis = 0> (i, N)
  r6 = Cast <to = 6> (r)
  C6 = Cast <to = 6> (C)
  q = Mul (r6, C6)
  s = Shape (r)
  d = Reshape (c, F)
  e = Slice (d, Z, s)
  f = Cast <to = 6> (e)
  y = Add (q, f)
}"""

    def encode(self, weight: Weight) -> Iterator[Call]:
        """Yield positions with codes or values, of weights that are mostly zero."""
        count = weight.positions.size
        if not count or 2 * count > weight.bits.size or not holds(weight.bits.size, count):
            return
        rows = weight.shape[0] if len(weight.shape) > 1 else 1
        columns = weight.bits.size // rows
        lengths = np.bincount(weight.positions // columns, minlength=rows)
        attributes = {"n": rows, "columns": columns}
        inputs = (stream(lengths, np.int32), stream(weight.positions % columns, np.uint16, np.int32))
        positions = Call(self.name, inputs, attributes)
        shape = {"shape": weight.shape}
        if weight.codes is not None and len(weight.codes[0]) <= 255:
            patterns, codes, counts = weight.codes
            zero = np.full((), len(patterns), np.uint8)
            dense = Call("Scatter", (positions, Symbols(codes, counts), zero), shape)
            yield Call("Lookup", (dense, weight.table(np.append(patterns, patterns.dtype.type(0)))))
        elif weight.scatters:
            zero = np.zeros((), weight.array.dtype)
            yield Call("Scatter", (positions, weight.table(weight.rest), zero), shape)

    def decode(self, inputs: Sequence[np.ndarray], attributes: Attributes) -> np.ndarray:
        """Return the positions [count, int32]."""
        lengths, columns = inputs
        rows = number(self.name, attributes, "n", 1, LARGEST)
        width = number(self.name, attributes, "columns", 1, LARGEST)
        for each in inputs:
            if each.dtype not in (np.uint8, np.uint16, np.int32):
                raise CompressError(f"{self.name}: has numbers of {each.dtype}, expected uint8 to int32")
        lengths = lengths.reshape(-1)[:rows].astype(np.int64)
        if lengths.size < rows or rows * width > LARGEST:
            raise CompressError(f"{self.name}: has {lengths.size} lengths of {rows} rows, of {width} columns")
        count = int(lengths.sum())
        if int(lengths.min()) < 0 or int(lengths.max()) > width or count > columns.size:
            raise CompressError(f"{self.name}: has rows of {count} elements, and columns of {columns.size}")
        places = columns.reshape(-1)[:count].astype(np.int64)
        if count and not 0 <= int(places.min()) <= int(places.max()) < width:
            raise CompressError(f"{self.name}: has columns beyond {width}")
        return (np.repeat(np.arange(rows), lengths) * width + places).astype(np.int32)

    def memory(self, inputs: Sequence[np.ndarray], result: np.ndarray) -> int:
        """Return 44 bytes an element, 5 a row, and a byte for each row and each of the longest row."""
        longest = int(inputs[0].max()) if inputs[0].size else 0
        return 44 * result.size + inputs[0].size * (5 + longest)


def stream(numbers: np.ndarray, *kinds: type) -> Symbols | np.ndarray:
    """Return `numbers` as symbols, or as an array of the first of the `kinds` that holds them."""
    most = int(numbers.max(initial=0))
    if most < 256:
        return Symbols(numbers.astype(np.uint8))
    return numbers.astype(next(each for each in kinds if most <= np.iinfo(each).max))
