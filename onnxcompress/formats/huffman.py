"""Huffman codes, decoded without loops."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import onnx_ir as ir

from onnxcompress.errors import CompressError
from onnxcompress.formats.base import DOMAIN, LARGEST, Attributes, Format, Symbols, function

LIMIT = 12  # bits of the longest code
BLOCKS = (32, 64, 128)  # how many symbols a block may have
TABLE = 18  # bytes that a table takes in a file: its counts, and a number in each attribute
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


@dataclass(frozen=True, eq=False)
class Code:
    """A canonical Huffman code: the symbols in the order of their codes, and the length of each."""

    symbols: np.ndarray  # [codes, uint8]
    lengths: np.ndarray  # [codes, int64], rising

    @property
    def counts(self) -> np.ndarray:
        """How many codes of 1, 2, ... bits there are [LIMIT, uint8]."""
        return np.bincount(self.lengths, minlength=LIMIT + 1)[1:].astype(np.uint8)

    @property
    def listed(self) -> np.ndarray:
        """The symbols that must be stored: none where they are in the order of their numbers."""
        return self.symbols[:0] if (self.symbols == np.arange(self.symbols.size)).all() else self.symbols

    def holds(self, counts: np.ndarray) -> bool:
        """Return whether all symbols that occur have a code."""
        return int(counts[self.symbols].sum()) == int(counts.sum())

    def bits(self, counts: np.ndarray) -> int:
        """Return how many bits symbols that occur `counts` times take."""
        return int((counts[self.symbols] * self.lengths).sum())


def code(counts: np.ndarray) -> Code | None:
    """Return the best code for symbols that occur `counts` times [256]; None where there is none to store.

    Where that is smaller, symbols are in the order of their numbers and not listed.
    """
    symbols = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    if not symbols.size:
        return None
    lengths = limited(counts[symbols][::-1])[::-1]
    if np.bincount(lengths).max() > 255:
        return None
    made = Code(symbols.astype(np.uint8), lengths)
    plain = Code(np.arange(symbols.size, dtype=np.uint8), lengths)
    more = plain.bits(counts) - made.bits(counts)
    return plain if symbols.max() < symbols.size and more <= 8 * made.listed.size else made


def limited(counts: np.ndarray) -> np.ndarray:
    """Return the lengths, at most LIMIT, of the best code for symbols with rising `counts` [1 to 256, > 0].

    Package-merge: in each round, the cheapest symbols and pairs of the round before are taken in pairs; a
    symbol's length is the number of rounds in which it is among those taken.
    """
    if counts.size == 1:
        return np.ones(1, np.int64)
    single, rounds = np.ones(counts.size, bool), []
    pairs = counts[:0]
    for _ in range(LIMIT):
        every = np.concatenate([counts, pairs])
        order = np.argsort(every, kind="stable")
        rounds.append(np.concatenate([single, np.zeros(pairs.size, bool)])[order])
        pairs = every[order][: every.size // 2 * 2].reshape(-1, 2).sum(1)
    lengths, taken = np.zeros(counts.size, np.int64), 2 * counts.size - 2
    for own in reversed(rounds):
        symbols = int(own[:taken].sum())
        lengths[:symbols] += 1
        taken = 2 * (taken - symbols)
    return lengths


def coded_bytes(symbols: Symbols, block: int) -> int | None:
    """Return about how many bytes the `symbols` take in a Huffman code; None where they can't be coded."""
    made = code(symbols.counts)
    if made is None or not symbols.values.size:
        return None
    blocks = _blocks(symbols.values.size, block)
    return made.bits(symbols.counts) // 8 + blocks + TABLE + made.listed.size


def memory(symbols: int, size: int, codes: int) -> int:
    """Return the bytes that decoding takes, for `symbols`, `size` bytes of bits, and `codes`."""
    return 44 * symbols + 27 * size + 21 * (codes << LIMIT)


class Packed(NamedTuple):
    """Inputs and attributes of the function that decodes streams, and how its result is split.

    Part i of the result, of `sizes` [i] blocks, is stream `order` [i].
    """

    inputs: list[np.ndarray]
    attributes: dict[str, tuple[int, ...]]
    order: list[int]
    sizes: tuple[int, ...]


def pack(streams: Sequence[Symbols], block: int) -> Packed:
    """Return `streams`, each of which can be coded, for the function that decodes them."""
    groups = alike(streams)
    order = [each for members, _ in groups for each in members]
    sizes = [_blocks(streams[each].values.size, block) for each in order]
    chunks: list[tuple[int, np.ndarray]] = []
    extra: list[np.ndarray] = []
    blocks: list[int] = []
    least: list[int] = []
    at = 0
    for members, made in groups:
        own: list[np.ndarray] = []
        for each in members:
            count = sizes[len(extra) + len(own)]
            words, lengths, at = _coded(streams[each].values, made, block, count, at)
            chunks.append(words)
            own.append(lengths)
        least.append(min(int(lengths.min()) for lengths in own))
        blocks.append(sum(lengths.size for lengths in own))
        extra += [lengths - least[-1] for lengths in own]
    total = np.zeros((at >> 4) + 3, np.uint16)
    for begin, chunk in chunks:
        total[begin : begin + chunk.size] |= chunk[: total.size - begin]
    over = np.concatenate(extra)
    over = over.astype(np.uint8 if over.max(initial=0) < 256 else np.uint16)
    listed = [made.listed for _, made in groups]
    starts = np.cumsum([256, *(each.size for each in listed)])
    first = tuple(int(start) if each.size else 0 for start, each in zip(starts, listed, strict=False))
    counts = np.stack([made.counts for _, made in groups])
    inputs = [total, over, counts, np.concatenate(listed).astype(np.uint8)]
    attributes = {"blocks": tuple(blocks), "least": tuple(least), "first": first}
    return Packed(inputs, attributes, order, tuple(sizes))


def alike(streams: Sequence[Symbols]) -> list[tuple[list[int], Code]]:
    """Return which of `streams` share a code, and the code: where that takes fewer bytes than their own.

    From the longest on, each stream joins the code that suits it best, or brings its own.
    """
    groups: list[tuple[list[int], Code, np.ndarray]] = []
    for number in sorted(range(len(streams)), key=lambda each: -streams[each].values.size):
        counts = streams[number].counts
        own = code(counts)
        assert own is not None
        costs = [own.bits(counts) + 8 * (TABLE + own.listed.size)]
        costs += [made.bits(counts) if made.holds(counts) else 2**62 for _, made, _ in groups]
        best = int(np.argmin(costs))
        if best == 0:
            groups.append(([number], own, counts.copy()))
        else:
            groups[best - 1][0].append(number)
            groups[best - 1][2][:] += counts
    return [(members, code(counts) or made) for members, made, counts in groups]


def _blocks(count: int, block: int) -> int:
    """Return how many blocks hold `count` symbols: an odd number, where there are many.

    The symbols of a block are that far apart; in step with the rows of a weight, blocks would differ more.
    """
    blocks = -(-count // block)
    return blocks | 1 if blocks > 16 else blocks


def _coded(
    values: np.ndarray, code: Code, block: int, blocks: int, at: int
) -> tuple[tuple[int, np.ndarray], np.ndarray, int]:
    """Return the words that hold `values` from bit `at` on, their place, the blocks' bits, and the end."""
    patterns, lengths = np.zeros(256, np.int64), np.zeros(256, np.int64)
    spans = 1 << (LIMIT - code.lengths)
    patterns[code.symbols] = np.cumsum(spans) - spans  # as LIMIT bits
    lengths[code.symbols] = code.lengths
    padded = np.full(block * blocks, code.symbols[0], np.uint8)
    padded[: values.size] = values
    order = np.ascontiguousarray(padded.reshape(block, blocks).T).reshape(-1)
    sizes = lengths[order]
    ends = np.cumsum(sizes) + at
    starts = ends - sizes
    begin = at >> 4
    word = (starts >> 4) - begin
    bits = patterns[order] << (32 - LIMIT - (starts & 15))
    size = int(ends[-1] >> 4) - begin + 2
    words = np.bincount(word, bits >> 16, size) + np.bincount(word + 1, bits & 0xFFFF, size)
    return (begin, words.astype(np.uint16)), sizes.reshape(blocks, block).sum(1), int(ends[-1])
