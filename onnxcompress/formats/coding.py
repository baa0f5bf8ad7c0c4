"""Huffman codes of limited length, and streams of symbols written in them, block by block.

Sources: Huffman, 1952; lengths are limited by package-merge, Larmore and Hirschberg, 1990.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from onnxcompress.formats.base import Symbols

LIMIT = 12  # bits of the longest code
TABLE = 18  # bytes that a table takes in a file: its counts, and a number in each attribute


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


class Packed(NamedTuple):
    """Inputs and attributes of the function that decodes streams, and how its result is split.

    Both are those of the format ``Huffman64``. Part i of the result [block, all blocks], of `sizes` [i]
    blocks, is stream `order` [i].
    """

    inputs: list[np.ndarray]
    attributes: dict[str, tuple[int, ...]]
    order: list[int]
    sizes: tuple[int, ...]


def pack(streams: Sequence[Symbols], block: int) -> Packed:
    """Return `streams`, each of which :func:`code` can code, in blocks of `block` symbols."""
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
