"""Few bits for the numbers that occur often, and a list of the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from onnxcompress.errors import CompressError
from onnxcompress.formats.base import LARGEST, TAKE, Attributes, Call, Format, Symbols, number, take
from onnxcompress.formats.packing import digits, unpacked
from onnxcompress.formats.relative import split

WIDTHS = (1, 2, 3, 4, 5, 6)  # bits that codes may have


class Escape(Format):
    """Numbers of which most are small: these in k bits each, the others in a list of exceptions.

    ``Escape(x: uint8, p: int32, v: uint8; n) -> uint8 [n]``. Number i is x[i], but number p[j] is v[j]. x may
    be of any shape and longer than needed; where v has the number, x holds 0. x is packed in k bits by
    ``Digits`` or ``Unpack``, p is a ``RelativeIndex`` with distances of a byte: an exception takes two bytes.
    This is less small than a Huffman code and takes a fraction of its memory to decode. Source: Zukowski et
    al., Super-Scalar RAM-CPU Cache Compression, ICDE 2006.
    """

    name: ClassVar[str] = "Escape"
    text: ClassVar[str] = f"""
Escape <n> (x, p, v) => (y) {{
  m = Constant <value_int: int = @n> ()
  U = Constant <value_ints = [1]> ()
  n = Reshape (m, U)
  {TAKE}
  y = ScatterElements (b, p, v)
}}"""

    def decode(self, inputs: Sequence[np.ndarray], attributes: Attributes) -> np.ndarray:
        """Return the numbers [n, uint8]."""
        codes, places, values = inputs
        result = take(self.name, codes, number(self.name, attributes, "n", 0, LARGEST)).copy()
        if places.ndim != 1 or places.shape != values.shape or values.dtype != np.uint8:
            raise CompressError(f"{self.name}: has {values.size} exceptions for {places.size} places")
        if places.dtype.kind != "i":
            raise CompressError(f"{self.name}: has places of {places.dtype}, expected int32")
        if places.size and not 0 <= int(places.min()) <= int(places.max()) < result.size:
            raise CompressError(f"{self.name}: has places beyond its {result.size} numbers")
        result[places] = values
        return result

    def memory(self, inputs: Sequence[np.ndarray], result: np.ndarray) -> int:
        """Return the numbers twice: in a row, and taken."""
        return inputs[0].size + result.size


def width(symbols: Symbols) -> int | None:
    """Return the bits in which `symbols` with exceptions take the fewest bytes; None where it doesn't pay."""
    sizes = {8: 0.95 * symbols.values.size, **{each: size(symbols, each) for each in WIDTHS}}
    best = min(sizes, key=lambda each: sizes[each])
    return None if best == 8 or not symbols.counts[2**best :].any() else best


def size(symbols: Symbols, width: int) -> float:
    """Return about how many bytes `symbols` take in `width` bits with exceptions."""
    return width * symbols.values.size / 8 + 2 * int(symbols.counts[2**width :].sum())


def escaped(symbols: Symbols, width: int) -> Call:
    """Return the expression for `symbols` in `width` bits with exceptions."""
    values = symbols.values
    large = values >> width != 0
    steps, _ = split(np.diff(np.flatnonzero(large), prepend=0), 255)
    listed = values[np.cumsum(steps, dtype=np.int64)]  # on the way to a far one, the number that is there
    codes = Symbols(np.where(large, 0, values).astype(np.uint8))
    packed = digits(codes) if width in (1, 2, 4) else None
    return Call(
        "Escape",
        (
            Call("Digits", (_bytes(packed),), packed.attributes) if packed else unpacked(codes),
            Call("RelativeIndex", (steps,), {"n": steps.size}),
            listed,
        ),
        {"n": values.size},
    )


def _bytes(call: Call) -> np.ndarray:
    """Return the bytes whose digits `call` is, to be stored as they are."""
    (found,) = call.inputs
    assert isinstance(found, Symbols)
    return found.values
