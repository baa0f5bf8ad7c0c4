"""Weights of one magnitude: signs, with or without zeros."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np

from onnxcompress.errors import CompressError
from onnxcompress.formats.base import (
    LARGEST,
    TAKE,
    Attribute,
    Attributes,
    Call,
    Format,
    Symbols,
    Weight,
    dims,
    number,
    take,
)
from onnxcompress.formats.elements import Elements, Tables

# Body text: codes and the channels' table T [codes * channels] become the array.
CHOOSE = f"""s = Constant <value_ints: ints = @shape> ()
  n = ReduceProd (s)
  {TAKE}
  C = Constant <value_int: int = @channels> ()
  C1 = Reshape (C, U)
  r = Concat <axis = 0> (C1, F)
  c = Reshape (b, r)
  i = Cast <to = 6> (c)
  C6 = Cast <to = 6> (C)
  j = Mul (i, C6)
  O = Constant <value_int = 1> ()
  N = Constant <value_int = 0> ()
  k = Range (N, C, O)
  k6 = Cast <to = 6> (k)
  k1 = Unsqueeze (k6, U)
  p = Add (j, k1)
  g = Gather (T, p)
  y = Reshape (g, s)"""


class Ternary(Format):
    """Elements that are zero or of one magnitude, which each channel has of its own, or all have in common.

    ``Ternary(x: uint8, m; shape, channels) -> array of `shape` and of the type of m``. Code 0 stands for
    zero, which is m[0], 1 for m[1 + c] and 2 for -m[1 + c], in channel c of an element. There are as many
    channels as the array's first axis is long, or 1; each has an equal part of the flat array. x may be of
    any shape and longer than needed. As symbols of three values, its codes take 2 bits, or 1.6 as five base-3
    digits of a byte, which may be Huffman coded.
    Only for float16, float32, float64 and int8, for which an engine can negate; NaN and -0.0 are left to
    other formats, and so is -128, which has no opposite. Source: Li and Liu, Ternary Weight Networks, 2016.
    """

    name: ClassVar[str] = "Ternary"
    word: ClassVar[str] = "ternary"
    text: ClassVar[str] = f"""
Ternary <shape, channels> (x, m) => (y) {{
  U = Constant <value_ints = [1]> ()
  V = Constant <value_ints = [0]> ()
  L = Constant <value_ints = [{LARGEST}]> ()
  z = Slice (m, V, U)
  a0 = Slice (m, U, L)
  a1 = Neg (a0)
  a2 = Shape (a0)
  z1 = Expand (z, a2)
  T = Concat <axis = 0> (z1, a0, a1)
  {CHOOSE}
}}"""

    def encode(self, weight: Weight) -> Iterator[Call]:
        """Yield codes with one magnitude for all, or else one for each channel, where there are zeros."""
        if weight.zeros:
            yield from signs(self.name, weight)

    def elements(self, inputs: Sequence[np.ndarray], attributes: Attributes) -> Elements:
        """Return the codes of all elements."""
        return chosen(self.name, inputs, attributes, 1)

    def memory(self, inputs: Sequence[np.ndarray], result: np.ndarray) -> int:
        """Return 14 bytes an element, and the array before it is in shape."""
        return 14 * result.size + result.nbytes


class Binary(Format):
    """Elements of one magnitude, which each channel has of its own, or all have in common.

    ``Binary(x: uint8, m; shape, channels) -> array of `shape` and of the type of m``. Code 0 stands for m[c]
    and 1 for -m[c], in channel c of an element. Channels and x are as in ``Ternary``; as symbols of two
    values, codes take one bit. Limits are those of ``Ternary``; arrays of 0.0 and -0.0 are of one magnitude.
    Source: Rastegari et al., XNOR-Net, ECCV 2016.
    """

    name: ClassVar[str] = "Binary"
    word: ClassVar[str] = "binary"
    text: ClassVar[str] = f"""
Binary <shape, channels> (x, m) => (y) {{
  U = Constant <value_ints = [1]> ()
  a1 = Neg (m)
  T = Concat <axis = 0> (m, a1)
  {CHOOSE}
}}"""

    def encode(self, weight: Weight) -> Iterator[Call]:
        """Yield codes with one magnitude for all, or else one for each channel, where there are no zeros."""
        if not weight.zeros:
            yield from signs(self.name, weight)

    def elements(self, inputs: Sequence[np.ndarray], attributes: Attributes) -> Elements:
        """Return the codes of all elements."""
        return chosen(self.name, inputs, attributes, 0)

    def memory(self, inputs: Sequence[np.ndarray], result: np.ndarray) -> int:
        """Return 14 bytes an element, and the array before it is in shape."""
        return 14 * result.size + result.nbytes


def signs(name: str, weight: Weight) -> Iterator[Call]:
    """Yield the expression of format `name` with the fewest channels that is exact, if there is one."""
    zeros = name == "Ternary"
    first = weight.shape[0] if len(weight.shape) > 1 else 1
    for channels in sorted({1, first}):
        if not channels or not weight.bits.size:
            return
        rows = weight.array.reshape(channels, -1)
        if split(rows[:1, :4096], zeros) is None:
            continue
        found = split(rows, zeros)
        if found is not None:
            codes, magnitudes = found
            if zeros:
                magnitudes = np.append(magnitudes[:1] * 0, magnitudes)
            attributes: dict[str, Attribute] = {"shape": weight.shape, "channels": channels}
            yield Call(name, (Symbols(codes.reshape(-1)), magnitudes), attributes)
            return


def split(rows: np.ndarray, zeros: bool) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the codes [as rows, uint8] and magnitudes of `rows` [channels], or None."""
    if rows.dtype.kind not in "fi":
        return None
    magnitudes = np.abs(rows)
    most = magnitudes.max(axis=1)
    same = magnitudes == most[:, None]
    negative = np.signbit(rows) if rows.dtype.kind == "f" else rows < 0
    if zeros:
        plain = (rows == 0) & ~negative
        if not np.isfinite(most).all() or not (same | plain).all() or (most < 0).any():
            return None
        if (negative & (magnitudes == 0)).any():
            return None
        codes = (1 + negative.astype(np.uint8)) * ~plain
        return codes.astype(np.uint8), most
    if not np.isfinite(most).all() or not same.all() or (most < 0).any():
        return None
    return negative.astype(np.uint8), most


def chosen(name: str, inputs: Sequence[np.ndarray], attributes: Attributes, zeros: int) -> Elements:
    """Return codes of format `name`, whose magnitudes follow `zeros` zeros, and the tables of channels."""
    codes, magnitudes = inputs
    shape = dims(name, attributes)
    codes = take(name, codes, math.prod(shape))
    channels = number(name, attributes, "channels", 1, LARGEST)
    if magnitudes.ndim != 1 or magnitudes.size != zeros + channels or magnitudes.dtype.kind not in "fi":
        raise CompressError(f"{name}: has {magnitudes.size} magnitudes for {channels} channels")
    if not codes.size or codes.size % channels or int(codes.max()) > 1 + zeros:
        raise CompressError(f"{name}: has codes beyond {1 + zeros}, or none, or not for {channels} channels")
    own = magnitudes[zeros:]
    table = np.stack([*([np.broadcast_to(magnitudes[0], own.shape)] if zeros else []), own, -own], axis=1)
    grid = (channels, codes.size // channels, 1, 1)
    return Elements(shape, codes, tables=Tables(table, grid))
