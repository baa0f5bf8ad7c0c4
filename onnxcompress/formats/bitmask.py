"""Weights of medium sparsity: a bit for each element says whether it is zero."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np

from onnxcompress.errors import CompressError
from onnxcompress.formats.base import TAKE, Attributes, Call, Format, Symbols, Weight, dims, take
from onnxcompress.formats.elements import Elements

SPARSEST = 8  # elements for each that isn't zero; beyond, the distances between them take fewer bits


class Bitmask(Format):
    """A bit for each element that says whether it is zero, and the elements that aren't, packed.

    ``Bitmask(x: uint8, v; shape) -> array of `shape` and of the type of v``. Element i of the flat array is
    v[0], which stands for zero, where x[i] is 0, and v[x[0] + ... + x[i]] where it is 1. x is 0 or 1:
    as symbols of two values, it is stored as bits (8 elements a byte, the first one lowest) or as bytes of 8
    bits that are Huffman coded. x and v may be of any shape and longer than needed.
    Where values are few, v holds their numbers and ``Lookup`` makes values of them; else it holds values.
    The bits cost the same whatever the sparsity, so this is for weights with one element in eight or more
    that isn't zero: a distance of ``RelativeIndex`` takes 3 bits or more, and ``Joint`` holds few values.
    Sparser ones are stored so where they are of bfloat16, for which engines have no Expand.
    """

    name: ClassVar[str] = "Bitmask"
    word: ClassVar[str] = "bitmask"
    sparse: ClassVar[bool] = True
    text: ClassVar[str] = f"""
Bitmask <shape> (x, v) => (y) {{
  s = Constant <value_ints: ints = @shape> ()
  n = ReduceProd (s)
  {TAKE}
  i = Cast <to = 6> (b)
  A = Constant <value_int = 0> ()
  c = CumSum (i, A)
  p = Mul (c, i)
  w = Reshape (v, F)
  g = Gather (w, p)
  y = Reshape (g, s)
}}"""

    def encode(self, weight: Weight) -> Iterator[Call]:
        """Yield bits with codes or values."""
        count = weight.positions.size
        if not weight.zeros or (SPARSEST * count < weight.bits.size and weight.scatters):
            return
        bits = Symbols((weight.bits != 0).astype(np.uint8), np.array([weight.zeros, count]))
        shape = {"shape": weight.shape}
        if weight.codes is not None and len(weight.codes[0]) <= 255:
            patterns, codes, counts = weight.codes
            zero = len(patterns)
            listed = Symbols(np.insert(codes, 0, zero).astype(np.uint8), np.append(counts, 1))
            table = weight.table(np.append(patterns, patterns.dtype.type(0)))
            yield Call("Lookup", (Call(self.name, (bits, listed), shape), table))
        if weight.codes is None or weight.bits.itemsize == 1:
            values = np.insert(weight.rest, 0, 0)
            yield Call(self.name, (bits, weight.table(values)), shape)

    def elements(self, inputs: Sequence[np.ndarray], attributes: Attributes) -> Elements:
        """Return the elements whose bit is 1."""
        bits, values = inputs
        shape = dims(self.name, attributes)
        bits = take(self.name, bits, math.prod(shape))
        if bits.size and int(bits.max()) > 1:
            raise CompressError(f"{self.name}: has {bits.max()} for a bit, expected 0 or 1")
        values = values.reshape(-1)
        positions = np.flatnonzero(bits).astype(np.int32)
        count = positions.size
        if values.size <= count:
            raise CompressError(f"{self.name}: has {values.size} values, expected {count + 1}")
        return Elements(shape, values[1 : count + 1], positions, values[0])

    def memory(self, inputs: Sequence[np.ndarray], result: np.ndarray) -> int:
        """Return 13 bytes an element, the array before it is in shape, and the values."""
        return 13 * result.size + result.nbytes + inputs[1].nbytes
