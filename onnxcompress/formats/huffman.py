"""Huffman codes, decoded without loops."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxcompress.errors import CompressError
from onnxcompress.formats.base import DOMAIN, LARGEST, Attributes, Format, function
from onnxcompress.formats.coding import LIMIT

BLOCKS = (32, 64, 128)  # how many symbols a block may have
PER_CALL = 4  # a function that decodes n symbols calls the one for n / 4, or n / 2, as often as it takes


class Huffman(Format):
    """Streams of symbols, Huffman coded, for all weights of a model at once.

    ``Huffman64(x: uint16, e: uint8 or uint16, c: uint8, v: uint8; blocks, least, first) -> uint8 [64, all
    blocks]``, and so for blocks of 32 and 128 symbols. A Split along axis 1 cuts the result into streams;
    symbol i of a stream of n blocks is at [i // n, i % n] of its part. So a block's symbols come from all
    over the weight, and blocks take about as many bits. Symbols beyond the end of a stream mean nothing.
    Code t is that of blocks[t] blocks, of one stream or of several: similar streams share a code.

    * **x**: the bits of all blocks, one block after the other, the first of 16 bits being the highest of its
      word; then two words of padding.
    * **e**: the length of each block in bits, less least[t].
    * **c** [codes, 12]: how many symbols have 1, 2, ... 12 bits, at most 255 the same and 256 in all. Codes
      are canonical: shorter ones come first, each is the one before plus 1.
    * **v**: symbols in the order of their codes. Those of code t begin at first[t] of the list of all bytes
      0 to 255 followed by v: where symbols are numbered by falling frequency, first[t] is 0 and v has none.

    To decode, a table of 2^12 entries for each code says which symbol, and of how many bits, any 12 bits
    begin with. One step for all blocks takes the 12 bits at each block's position out of the 24 from its byte
    on, looks them up, and moves on; 64 steps are 64 calls. Positions are bytes where blocks begin and bits
    from there, so that no number that is divided passes 2^24, up to which engines that compute int32 as
    float32 (OpenVINO) are exact, too. Bytes are int32, so that all streams together take at most 2^31.
    Decoding takes about 44 bytes a symbol, 27 for each byte of x, and 21 for each entry of the tables.
    Sources: Huffman, 1952; lengths are limited by package-merge, Larmore and Hirschberg, 1990.
    """

    name: ClassVar[str] = "Huffman64"
    block: ClassVar[int] = 64

    def decode(self, inputs: Sequence[np.ndarray], attributes: Attributes) -> np.ndarray:
        """Return the symbols [block, blocks, uint8]."""
        words, extra, counts, values = inputs
        blocks, least, first = (self.each(attributes, name) for name in ("blocks", "least", "first"))
        tables, total = len(blocks), int(blocks.sum())
        extra = extra.reshape(-1).astype(np.int64)[:total]
        if counts.shape != (tables, LIMIT) or not tables or least.size != tables or first.size != tables:
            raise CompressError(f"{self.name}: has tables {list(counts.shape)} for {tables} codes")
        if words.dtype != np.uint16 or words.ndim != 1 or extra.size != total or (blocks < 1).any():
            raise CompressError(f"{self.name}: has {words.size} words for {total} blocks")
        if total * self.block > 16 * words.size + 256 * self.block:
            raise CompressError(f"{self.name}: has {total} blocks in {words.size} words, expected more")
        lengths, symbols = self._tables(counts.astype(np.int64), first, values)
        sizes = extra + np.repeat(least, blocks)
        position = np.cumsum(sizes) - sizes
        if total and (int(sizes.min()) < 0 or int(position[-1] + sizes[-1]) > 16 * words.size):
            raise CompressError(f"{self.name}: has blocks beyond its {words.size} words")
        table = np.repeat(np.arange(tables) << LIMIT, blocks)
        high = words.astype(np.int64)
        pairs = np.append(high << 16, [0]) + np.append(high[1:], [0, 0])
        result = np.empty((self.block, total), np.uint8)
        for row in result:
            np.minimum(position, 16 * words.size, out=position)
            window = pairs[position >> 4] >> (32 - LIMIT - (position & 15)) & 2**LIMIT - 1
            row[:] = symbols[table + window]
            position += lengths[table + window]
        return result

    def stream_bytes(
        self, inputs: Sequence[np.ndarray], attributes: Attributes, sizes: Sequence[int]
    ) -> list[int]:
        """Return the bytes that each stream takes, of as many blocks as `sizes` says.

        What counts are bits and block lengths, and its share of code lengths and listed symbols.
        """
        _, extra, counts, _ = inputs
        blocks, least, first = (self.each(attributes, name) for name in ("blocks", "least", "first"))
        if not blocks.size == least.size == first.size == len(np.atleast_1d(counts)) or counts.ndim != 2:
            raise CompressError(f"{self.name}: has {blocks.size} codes, expected tables of as many")
        if int(blocks.sum()) > extra.size:
            raise CompressError(f"{self.name}: has {extra.size} blocks, expected {int(blocks.sum())}")
        table = np.repeat(np.arange(blocks.size), blocks)
        listed = counts.sum(1, dtype=np.int64) * (first > 0)
        fixed = (LIMIT + listed) / np.maximum(blocks, 1)
        bits = extra.reshape(-1)[: table.size] + least[table]
        each = bits / 8 + extra.itemsize + fixed[table]
        ends = np.clip(np.cumsum(np.array(sizes, np.int64)), 0, each.size)
        total = np.append(0, np.cumsum(each))[ends]
        return [int(size) for size in np.diff(total, prepend=0)]

    def each(self, attributes: Attributes, name: str) -> np.ndarray:
        """Return an attribute that has a number for each code [codes, int64]."""
        found = attributes.get(name)
        if (
            not isinstance(found, tuple)
            or any(not 0 <= each <= LARGEST for each in found)
            or sum(found) > LARGEST
        ):
            raise CompressError(f"{self.name}: has {name} {str(found)[:40]}, expected a number for each code")
        return np.array(found, np.int64)

    def _tables(
        self, counts: np.ndarray, first: np.ndarray, values: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return for each stream and each 12 bits the length of the code they begin with, and its symbol."""
        known = counts.sum(1)
        spans = counts << np.arange(LIMIT - 1, -1, -1)
        if (known < 1).any() or (known > 256).any() or (spans.sum(1) > 2**LIMIT).any():
            raise CompressError(f"{self.name}: has code lengths that make no code")
        every = np.concatenate([np.arange(256, dtype=np.uint8), values.reshape(-1).astype(np.uint8)])
        if (first + known > every.size).any():
            raise CompressError(
                f"{self.name}: has {values.size} symbols, expected {int((first + known).max()) - 256}"
            )
        length = np.repeat(np.tile(np.arange(1, LIMIT + 1), len(counts)), counts.reshape(-1))  # of each code
        owner = np.repeat(np.arange(len(counts)), known)
        rank = np.arange(length.size) - np.repeat(np.cumsum(known) - known, known)
        span = 1 << (LIMIT - length)
        gaps = (np.arange(len(counts)) << LIMIT) - (
            np.cumsum(spans.sum(1)) - spans.sum(1)
        )  # of codes not full
        places = np.arange(int(span.sum())) + np.repeat(gaps[owner], span)
        lengths, symbols = np.full(len(counts) << LIMIT, LIMIT + 1), np.zeros(len(counts) << LIMIT, np.uint8)
        lengths[places], symbols[places] = (
            np.repeat(length, span),
            np.repeat(every[first[owner] + rank], span),
        )
        return lengths, symbols

    def memory(self, inputs: Sequence[np.ndarray], result: np.ndarray) -> int:
        """Return 40 bytes a symbol and what the tables and words take."""
        return memory(result.size, inputs[0].nbytes, len(inputs[2]))

    def functions(self, opset: int) -> list[ir.Function]:
        """Return the functions that decode 1, 4, 16, ... symbols of each block, and the one calling them."""
        return [function(text, opset) for text in (*_steps(self.block), _whole(self.block))]


class Huffman32(Huffman):
    """Huffman codes in blocks of 32 symbols."""

    name: ClassVar[str] = "Huffman32"
    block: ClassVar[int] = 32


class Huffman128(Huffman):
    """Huffman codes in blocks of 128 symbols."""

    name: ClassVar[str] = "Huffman128"
    block: ClassVar[int] = 128


def _steps(block: int) -> Iterator[str]:
    """Yield the texts of the functions that decode one symbol of each block, then several."""
    yield """
Step1 (p, o, s, w, P, M, K, l, v) => (q, y) {
  i = Div (p, K)
  a = Add (i, s)
  b = Gather (w, a)
  c = Mod (p, K)
  d = Gather (P, c)
  e = Div (b, d)
  f = Mod (e, M)
  g = Add (f, o)
  h = Gather (l, g)
  q = Add (p, h)
  y = Gather (v, g)
}"""
    done = 1
    while done < block:
        calls = PER_CALL if done * PER_CALL <= block else block // done
        states = ["p", *"abc"[: calls - 1], "q"]
        outputs = "defg"[:calls]
        body = "\n".join(
            f"  {states[i + 1]}, {outputs[i]} = {DOMAIN}.Step{done} ({states[i]}, o, s, w, P, M, K, l, v)"
            for i in range(calls)
        )
        done *= calls
        yield f"""
Step{done} (p, o, s, w, P, M, K, l, v) => (q, y) {{
{body}
  y = Concat <axis = 0> ({", ".join(outputs)})
}}"""


def _whole(block: int) -> str:
    """Return the text of the function that builds the tables and decodes all blocks."""
    spans = ", ".join(str(2**LIMIT >> i if i <= LIMIT else 0) for i in range(LIMIT + 2))
    shifts = ", ".join(str(2 ** (24 - LIMIT - i)) for i in range(8))
    return f"""
Huffman{block} <blocks, least, first> (x, e, c, v) => (y) {{
  Z = Constant <value_ints = [0]> ()
  U = Constant <value_ints = [1]> ()
  V = Constant <value_ints = [2]> ()
  F = Constant <value_ints = [-1]> ()
  z = Constant <value_int = 0> ()
  u = Constant <value_int = 1> ()
  r = Constant <value_int = 256> ()
  E = Constant <value_ints = [{2**LIMIT + 1}]> ()
  k0 = Range (z, r, u)
  k = Cast <to = 6> (k0)
  O = Cast <to = 6> (U)
  m = Min (k, O)
  c0 = Cast <to = 6> (c)
  c1 = CumSum (c0, u)
  c2 = Unsqueeze (c1, U)
  k1 = Unsqueeze (k, U)
  c3 = Less (k1, c2)
  c4 = Cast <to = 6> (c3)
  c5 = ReduceSum <keepdims = 0> (c4, V)
  L0 = Constant <value_int = {LIMIT + 1}> ()
  L = Cast <to = 6> (L0)
  n = Sub (L, c5)
  S = Constant <value_ints = [{spans}]> ()
  S1 = Cast <to = 6> (S)
  s = Gather (S1, n)
  s1 = CumSum <exclusive = 1> (s, u)
  t = Shape (c)
  t1 = Slice (t, Z, U)
  t2 = Concat <axis = 0> (t1, E)
  Y = Cast <to = 6> (Z)
  t3 = Expand (Y, t2)
  t4 = Shape (n)
  t5 = Expand (m, t4)
  t6 = ScatterElements <axis = 1> (t3, s1, t5)
  t7 = CumSum (t6, u)
  g0 = Gather (t4, z)
  g1 = Range (z, g0, u)
  g2 = Mul (g1, r)
  g3 = Cast <to = 6> (g2)
  g4 = Unsqueeze (g3, U)
  g5 = Add (t7, g4)
  g6 = Reshape (n, F)
  l0 = Gather (g6, g5)
  l = Reshape (l0, F)
  v0 = Cast <to = 2> (k)
  v1 = Concat <axis = 0> (v0, v, v0)
  f = Constant <value_ints: ints = @first> ()
  f1 = Cast <to = 6> (f)
  f2 = Unsqueeze (f1, U)
  f3 = Add (t7, f2)
  v2 = Gather (v1, f3)
  v3 = Reshape (v2, F)
  b = Constant <value_ints: ints = @blocks> ()
  b1 = CumSum <exclusive = 1> (b, z)
  b2 = ReduceSum (b)
  b3 = Expand (Y, b2)
  b4 = Min (b1, U)
  b7 = Cast <to = 6> (b4)
  b5 = ScatterElements (b3, b1, b7)
  b6 = CumSum (b5, z)
  E1 = Cast <to = 6> (E)
  o = Mul (b6, E1)
  o1 = Unsqueeze (o, Z)
  d = Constant <value_ints: ints = @least> ()
  d1 = Cast <to = 6> (d)
  d2 = Gather (d1, b6)
  e1 = Reshape (e, F)
  e2 = Slice (e1, Z, b2)
  e3 = Cast <to = 6> (e2)
  e4 = Add (e3, d2)
  K = Constant <value_int = 8> ()
  K1 = Cast <to = 6> (K)
  j1 = Div (e4, K1)
  j2 = CumSum <exclusive = 1> (j1, z)
  j3 = Mod (e4, K1)
  j4 = CumSum <exclusive = 1> (j3, z)
  j5 = Div (j4, K1)
  j6 = Add (j2, j5)
  j7 = Unsqueeze (j6, Z)
  p = Mod (j4, K1)
  p1 = Unsqueeze (p, Z)
  x1 = Unsqueeze (x, U)
  w = Cast <to = 6> (x1)
  w1 = Slice (w, Z, F)
  w3 = Shape (x)
  w4 = Slice (w, U, w3)
  H = Constant <value_int = 256> ()
  H1 = Cast <to = 6> (H)
  w5 = Mul (w1, H1)
  w2 = Div (w4, H1)
  w7 = Add (w5, w2)
  w8 = Mod (w1, H1)
  H2 = Mul (H1, H1)
  w9 = Mul (w8, H2)
  wa = Add (w9, w4)
  wb = Concat <axis = 1> (w7, wa)
  w6 = Reshape (wb, F)
  P = Constant <value_ints = [{shifts}]> ()
  P1 = Cast <to = 6> (P)
  M = Constant <value_int = {2**LIMIT}> ()
  M1 = Cast <to = 6> (M)
  q, y = {DOMAIN}.Step{block} (p1, o1, j7, w6, P1, M1, K1, l, v3)
}}"""


def memory(symbols: int, size: int, codes: int) -> int:
    """Return the bytes that decoding takes, for `symbols`, `size` bytes of bits, and `codes`."""
    return 44 * symbols + 27 * size + 21 * (codes << LIMIT)
