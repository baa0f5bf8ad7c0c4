"""Weights that share values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np

from onnxcompress.errors import CompressError
from onnxcompress.formats.base import TAKE, Attributes, Call, Coded, Symbols, Weight
from onnxcompress.formats.elements import Tables


class Lookup(Coded):
    """A table of at most 256 values, and for each element the number of its value.

    ``Lookup(x: uint8, t) -> array of the shape of x and of the type of t``. Element i is t[x[i]].
    """

    name: ClassVar[str] = "Lookup"
    text: ClassVar[str] = """
Lookup (x, t) => (y) {
  i = Cast <to = 6> (x)
  y = Gather (t, i)
}"""

    def tables(self, inputs: Sequence[np.ndarray], attributes: Attributes) -> Tables:
        """Return the one table."""
        codes, table = inputs
        if codes.dtype != np.uint8 or table.ndim != 1 or (codes.size and int(codes.max()) >= table.size):
            raise CompressError(f"{self.name}: has codes beyond its table of {table.size} values")
        return Tables(table[None])

    def memory(self, inputs: Sequence[np.ndarray], result: np.ndarray) -> int:
        """Return 4 bytes an element."""
        return 4 * result.size


class Codebook(Coded):
    """A table of at most 256 values, and for each element the number of its value.

    ``Codebook(x: uint8, t; shape) -> array of `shape` and of the type of t``. Element i is t[x[i]]. x may be
    of any shape and longer than needed; an array has at least one element. Values are kept bit by bit, of any
    type. The table is in falling order of how often its values occur, so that a Huffman code of x needs no
    list of symbols. Source: Han et al., Deep Compression, ICLR 2016.
    """

    name: ClassVar[str] = "Codebook"
    word: ClassVar[str] = "codebook"
    text: ClassVar[str] = f"""
Codebook <shape> (x, t) => (y) {{
  s = Constant <value_ints: ints = @shape> ()
  n = ReduceProd (s)
  {TAKE}
  c = Reshape (b, s)
  i = Cast <to = 6> (c)
  y = Gather (t, i)
}}"""

    def encode(self, weight: Weight) -> Iterator[Call]:
        """Yield the codebook of all values, zero included, where there are at most 256."""
        if weight.codes is None or not weight.bits.size:
            return
        patterns, codes, counts = weight.codes
        if not weight.zeros:
            dense = codes
        elif len(patterns) == 256:
            return
        else:
            place = int(np.searchsorted(-counts, -weight.zeros))  # zero's, in falling order
            patterns, counts = np.insert(patterns, place, 0), np.insert(counts, place, weight.zeros)
            dense = np.full(weight.bits.size, place, np.uint8)
            dense[weight.positions] = codes + (codes >= place)
        yield Call(self.name, (Symbols(dense, counts), weight.table(patterns)), {"shape": weight.shape})

    def tables(self, inputs: Sequence[np.ndarray], attributes: Attributes) -> Tables:
        """Return the one table."""
        return Lookup().tables(inputs, attributes)

    def memory(self, inputs: Sequence[np.ndarray], result: np.ndarray) -> int:
        """Return 7 bytes an element: taken, in shape, as int32."""
        return 7 * result.size
