"""Numbers packed into bytes: several to a byte, or bit by bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from onnxcompress.errors import CompressError
from onnxcompress.formats.base import Attributes, Call, Format, Symbols, number

TAKEN = 26  # bytes of intermediate results that a number takes while it is unpacked


class Unpack(Format):
    """Numbers of 1 to 8 bits, packed.

    ``Unpack(x: uint8; k) -> uint8 [groups, 8]``. Number i takes the bits from i * k on, bit b of the stream
    being bit b % 8 of byte b // 8 (little-endian). Eight numbers take k bytes; the last group is filled with
    zero bits.
    """

    name: ClassVar[str] = "Unpack"
    text: ClassVar[str] = """
Unpack <k> (x) => (y) {
  K = Constant <value_int: int = @k> ()
  J = Constant <value_ints = [0, 1, 2, 3, 4, 5, 6, 7]> ()
  E = Constant <value_ints = [8]> ()
  O = Constant <value_ints = [1]> ()
  F = Constant <value_ints = [-1]> ()
  T = Constant <value_ints = [1, 2, 4, 8, 16, 32, 64, 128, 256]> ()
  P = Cast <to = 6> (T)
  k1 = Reshape (K, O)
  s = Concat <axis = 0> (F, k1)
  g = Reshape (x, s)
  p = Mul (J, k1)
  l = Div (p, E)
  r = Mod (p, E)
  m = Add (l, O)
  u = Sub (k1, O)
  h = Min (m, u)
  a = Gather <axis = 1> (g, l)
  b = Gather <axis = 1> (g, h)
  c = Cast <to = 6> (a)
  d = Cast <to = 6> (b)
  B = Gather (P, E)
  e = Mul (d, B)
  f = Add (c, e)
  R = Gather (P, r)
  i = Div (f, R)
  M = Gather (P, k1)
  j = Mod (i, M)
  y = Cast <to = 2> (j)
}"""

    def decode(self, inputs: Sequence[np.ndarray], attributes: Attributes) -> np.ndarray:
        """Return the numbers [groups, 8, uint8]."""
        (packed,) = inputs
        width = number(self.name, attributes, "k", 1, 8)
        if packed.dtype != np.uint8 or packed.size % width:
            raise CompressError(
                f"{self.name}: has {packed.size} {packed.dtype}, expected uint8, a multiple of {width}"
            )
        bits = np.unpackbits(packed.reshape(-1), bitorder="little").reshape(-1, 8, width)
        return np.packbits(bits, axis=-1, bitorder="little").reshape(-1, 8)

    def memory(self, inputs: Sequence[np.ndarray], result: np.ndarray) -> int:
        """Return what each number takes, and the regrouped bytes."""
        return TAKEN * result.size + inputs[0].size


class Digits(Format):
    """Several small numbers in each byte: its digits to a base.

    ``Digits(x: uint8; base, count) -> uint8 [bytes, count]``. A byte is the sum of digit[j] * base ** j,
    below 256. So three-valued codes take 1.6 bits; and bytes may be Huffman coded, several codes at a time.
    """

    name: ClassVar[str] = "Digits"
    text: ClassVar[str] = """
Digits <base, count> (x) => (y) {
  B = Constant <value_int: int = @base> ()
  C = Constant <value_int: int = @count> ()
  O = Constant <value_int = 1> ()
  Z = Constant <value_int = 0> ()
  N = Constant <value_int = 256> ()
  F = Constant <value_ints = [-1]> ()
  U = Constant <value_ints = [1]> ()
  X = Constant <value_int = 0> ()
  c1 = Reshape (C, U)
  b1 = Expand (B, c1)
  b2 = Cast <to = 11> (b1)
  e = Range (Z, C, O)
  f = Cast <to = 11> (e)
  g = Pow (b2, f)
  p = Cast <to = 7> (g)
  r = Range (Z, N, O)
  s = Unsqueeze (r, U)
  d = Div (s, p)
  m = Mod (d, B)
  t = Cast <to = 2> (m)
  a = Reshape (x, F)
  i = Cast <to = 6> (a)
  y = Gather (t, i)
}"""

    def decode(self, inputs: Sequence[np.ndarray], attributes: Attributes) -> np.ndarray:
        """Return the digits [bytes, count, uint8]."""
        (packed,) = inputs
        base = number(self.name, attributes, "base", 2, 16)
        count = number(self.name, attributes, "count", 2, 8)
        if packed.dtype != np.uint8:
            raise CompressError(f"{self.name}: has {packed.dtype}, expected uint8")
        table = np.arange(256)[:, None] // base ** np.arange(count) % base
        found: np.ndarray = table.astype(np.uint8)[packed.reshape(-1)]
        return found

    def memory(self, inputs: Sequence[np.ndarray], result: np.ndarray) -> int:
        """Return 5 bytes for each byte, and the table."""
        return 5 * inputs[0].size + 60 * 256


def unpacked(symbols: Symbols) -> Call:
    """Return the expression for `symbols` packed bit by bit."""
    width = max(1, (symbols.size - 1).bit_length())
    groups = -(-symbols.values.size // 8)
    padded = np.zeros(groups * 8, np.uint8)
    padded[: symbols.values.size] = symbols.values
    bits = np.unpackbits(padded[:, None], axis=1, count=width, bitorder="little")
    return Call("Unpack", (np.packbits(bits, bitorder="little"),), {"k": width})


def digits(symbols: Symbols) -> Call | None:
    """Return the expression for `symbols` as digits of bytes, themselves symbols; None above 16 values."""
    base = max(symbols.size, 2)
    if base > 16:
        return None
    count = next(each for each in (8, 5, 4, 3, 2) if base**each <= 256)
    padded = np.zeros(-(-symbols.values.size // count) * count, np.uint8)
    padded[: symbols.values.size] = symbols.values
    powers = (base ** np.arange(count)).astype(np.uint16)
    packed = (padded.reshape(-1, count) * powers).sum(1, dtype=np.uint16).astype(np.uint8)
    return Call("Digits", (Symbols(packed),), {"base": base, "count": count})
