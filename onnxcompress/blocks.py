"""Weights in blocks of a few bits: the arithmetic, and how they lie in memory.

A weight is a matrix [inputs, outputs] here. Each column is cut into blocks of ``size`` numbers, the last one
filled up with zeros, and a block is ``w ~ (q - zero) * scale``, q and zero of ``bits`` bits without sign.
Source: onnxruntime, ContribOperators.md, MatMulNBits: packed numbers lie in the low bits first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

BITS = (2, 4, 8)
SIZES = (16, 32, 64, 128, 256)
_TILE = (256, 256)  # inputs and outputs that are looked at together: they stay in the processor's cache
_PROBED = 4  # numbers of each block that tell most blocks of many magnitudes
_SEARCHED = {2: np.linspace(1, 0.4, 13), 4: np.linspace(1, 0.7, 13), 8: np.linspace(1, 0.98, 9)}
_LEAST = np.float32(2.0**-126)  # scales below have no finite reciprocal
_HALF = np.array(0x8FFFE000, np.uint32).view(np.int32)  # sign, exponent and fraction of float16 in float32
_Scale = tuple[np.ndarray, np.ndarray]  # scale and zero [blocks, outputs], float32


@dataclass(frozen=True)
class Fit:
    """Scales [outputs, blocks] and zeros [outputs, blocks, uint8; None: all in the middle] of a weight."""

    scale: np.ndarray
    zero: np.ndarray | None


@dataclass(frozen=True)
class Stored:
    """A weight in steps of its scales; `snr` says in dB what is kept of it, 999 where nothing is lost."""

    steps: np.ndarray
    snr: float


@dataclass(frozen=True)
class Blocks:
    """How weights are cut: `bits` a number, `size` numbers a block, and how the scale of a block is found.

    `symmetric` blocks have their zero in the middle. With `searched` the scale is the one of a few smaller
    ones that makes the sum of squared errors least, else the range of the block decides. A block of one
    magnitude and zeros, as ternary weights have, is met exactly either way, rounding of the scale to `dtype`
    (float32 or float16) apart.
    """

    bits: int
    size: int
    symmetric: bool = True
    searched: bool = False
    dtype: type[np.floating] = np.float32

    @property
    def middle(self) -> int:
        """The number in the middle of those of `bits` bits: the zero of symmetric blocks."""
        return 1 << (self.bits - 1)

    @property
    def top(self) -> int:
        """The largest number of `bits` bits."""
        return (1 << self.bits) - 1

    def count(self, inputs: int) -> int:
        """Return how many blocks `inputs` numbers make."""
        return -(-inputs // self.size)

    def fit(self, weight: np.ndarray) -> Fit:
        """Return the scales and zeros of the blocks of `weight` [inputs, outputs], finite."""
        fit = self._blank(weight)
        for blocks, columns in self._tiles(weight):
            self._find(fit, self._cut(weight, blocks, columns), blocks, columns)
        return fit

    def store(self, weight: np.ndarray, fit: Fit, packed: bool = True) -> Stored:
        """Return `weight` [inputs, outputs] in steps of its scales: uint8 [outputs, blocks, size].

        Of `packed` steps the last axis holds size * bits / 8 bytes.
        """
        return self._stored_by(weight, fit, packed, find=False)

    def quantize(self, weight: np.ndarray, packed: bool = True) -> tuple[Fit, Stored]:
        """Return what ``fit(weight)`` and ``store(weight, fit, packed)`` do, reading `weight` once."""
        fit = self._blank(weight)
        return fit, self._stored_by(weight, fit, packed, find=True)

    def _blank(self, weight: np.ndarray) -> Fit:
        """Return scales and zeros for `weight` that are yet to be found."""
        shape = weight.shape[1], self.count(weight.shape[0])
        return Fit(np.empty(shape, self.dtype), None if self.symmetric else np.empty(shape, np.uint8))

    def _find(self, fit: Fit, tile: np.ndarray, blocks: slice, columns: slice) -> None:
        """Put the scales and zeros of the `blocks` of `columns`, which are `tile`, into `fit`."""
        scale, zero = self._best(tile)
        fit.scale[columns, blocks] = scale.T
        if fit.zero is not None:
            fit.zero[columns, blocks] = zero.T

    def _stored_by(self, weight: np.ndarray, fit: Fit, packed: bool, find: bool) -> Stored:
        """Return `weight` in steps of the scales of `fit`; those are to `find` first."""
        outputs, count = fit.scale.shape
        bits = self.bits if packed else 8
        result = np.empty((outputs, count, self.size * bits // 8), np.uint8)
        signal = noise = 0.0
        for blocks, columns in self._tiles(weight):
            tile = self._cut(weight, blocks, columns)
            if find:
                self._find(fit, tile, blocks, columns)
            scale = fit.scale[columns, blocks].T.astype(np.float32)
            middle = np.full(scale.shape, self.middle, np.float32)
            zero = middle if fit.zero is None else fit.zero[columns, blocks].T.astype(np.float32)
            steps = self._rounded(tile, scale, zero)
            whole = np.add(steps, zero[:, None], dtype=np.float32)
            result[columns, blocks] = _packed(whole, bits).transpose(2, 0, 1)
            signal += _energy(tile)
            noise += _energy(self._error(tile, steps, scale))
        lost = noise > 0 and signal > 0
        return Stored(result, float(10 * np.log10(signal / noise)) if lost else 999.0)

    def _tiles(self, weight: np.ndarray) -> Iterator[tuple[slice, slice]]:
        """Yield slices of blocks and of outputs that together cover `weight`."""
        inputs, outputs = weight.shape
        step = max(1, _TILE[0] // self.size)
        for block in range(0, self.count(inputs), step):
            for column in range(0, outputs, _TILE[1]):
                last = min(block + step, self.count(inputs))
                yield slice(block, last), slice(column, min(column + _TILE[1], outputs))

    def _cut(self, weight: np.ndarray, blocks: slice, columns: slice) -> np.ndarray:
        """Return `blocks` of the `columns` of `weight`: float32 [blocks, size, outputs], end filled up."""
        part = weight[blocks.start * self.size : blocks.stop * self.size, columns]
        wanted = (blocks.stop - blocks.start) * self.size
        result = np.zeros((wanted, part.shape[1]), np.float32)
        turned = part.strides[0] < part.strides[1]  # its columns lie far apart in memory
        _widen(part.T.copy().T if turned else part, result[: len(part)])
        return result.reshape(-1, self.size, part.shape[1])

    def _rounded(self, tile: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
        """Return `tile` in steps of `scale` less `zero`, as float32."""
        usable = np.abs(scale) >= _LEAST
        factor = np.divide(1, scale, out=np.zeros_like(scale), where=usable)
        steps: np.ndarray = tile * factor[:, None]
        np.rint(steps, out=steps)
        if self.symmetric:
            np.clip(steps, -self.middle, self.middle - 1, out=steps)
        else:
            np.maximum(steps, -zero[:, None], out=steps)
            np.minimum(steps, (self.top - zero)[:, None], out=steps)
        return steps

    @staticmethod
    def _error(tile: np.ndarray, steps: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """Return what `steps`, which are used up, of `scale` are more than `tile`."""
        steps *= scale[:, None]
        steps -= tile
        return steps

    def _best(self, tile: np.ndarray) -> _Scale:
        """Return the scale and zero of each block of `tile` [blocks, size, outputs]."""
        low, high = tile.min(axis=1), tile.max(axis=1)
        tried = list(self._scales(low, high))
        scale, zero = tried[0]
        if len(tried) > 1:
            least = np.full(scale.shape, np.inf, np.float32)
            for other, place in tried:
                error = self._error(tile, self._rounded(tile, other, place), other)
                with np.errstate(over="ignore"):
                    sums = np.square(error, out=error).sum(axis=1)
                better = sums < least
                scale, zero = np.where(better, other, scale), np.where(better, place, zero)
                least = np.where(better, sums, least)
        largest = np.maximum(-low, high)
        same = _one_magnitude(tile[:, :_PROBED], largest)
        if same.any() and (same := _one_magnitude(tile, largest)).any():
            scale = np.where(same, self._stored(largest / np.float32(self.middle - 1)), scale)
            zero = np.where(same, np.float32(self.middle), zero)
        return scale, zero

    def _scales(self, low: np.ndarray, high: np.ndarray) -> Iterator[_Scale]:
        """Yield scales and zeros worth trying for blocks of numbers from `low` to `high`."""
        factors = _SEARCHED[self.bits].astype(np.float32) if self.searched else np.ones(1, np.float32)
        if self.symmetric:  # the middle has one step more below than above
            middle = np.full(low.shape, self.middle, np.float32)
            ends = [np.where(high > -low, high, low) / np.float32(-self.middle)]
            if self.searched:
                ends.append(np.maximum(-low, high) / np.float32(self.middle - 1))
            yield from ((self._stored(end * factor), middle) for end in ends for factor in factors)
            return
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        for factor in factors:
            scale = self._stored((high / np.float32(self.top) - low / np.float32(self.top)) * factor)
            places = np.divide(-low * factor, scale, out=np.zeros_like(scale), where=scale > 0)
            yield scale, np.clip(np.rint(places), 0, self.top)

    def _stored(self, scale: np.ndarray) -> np.ndarray:
        """Return `scale` as it will be stored, in float32; 0 for what has no finite reciprocal."""
        kept = scale.astype(self.dtype).astype(np.float32)
        kept[np.abs(kept) < _LEAST] = 0
        return kept


def _widen(numbers: np.ndarray, result: np.ndarray) -> None:
    """Put `numbers` [float16 or float32, finite] into `result` [same shape, float32].

    Of float16, bits are put where float32 has them, which numpy does by one number at a time: the exponent is
    too small by 112 then.
    """
    if numbers.dtype != np.float16:
        result[...] = numbers
        return
    bits = result.view(np.int32)
    bits[...] = numbers.view(np.int16)
    bits <<= 13
    bits &= _HALF
    result *= np.float32(2.0**112)


def _packed(whole: np.ndarray, bits: int) -> np.ndarray:
    """Return ``pack(whole, bits, axis=1)`` of steps [blocks, size, outputs], float32, that fill bytes."""
    each = 8 // bits
    result = whole[:, ::each].copy() if each > 1 else whole
    for place in range(1, each):
        result += whole[:, place::each] * np.float32(1 << place * bits)
    return result.astype(np.uint8)


def _energy(numbers: np.ndarray) -> float:
    """Return the sum of squares of `numbers` [any shape, float32]."""
    flat = numbers.ravel()
    with np.errstate(over="ignore"):
        found = float(np.dot(flat, flat))
    if 1e-30 < found < np.inf or not flat.any():
        return found
    wide = flat.astype(np.float64)  # squares are too small or too large for float32
    return float(np.dot(wide, wide))


def _one_magnitude(tile: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """Return which blocks of `tile` hold nothing but zeros and numbers as large as `largest`."""
    sizes = np.abs(tile)
    return np.asarray(((sizes == largest[:, None]) | (sizes == 0)).all(axis=1))


def pack(steps: np.ndarray, bits: int, axis: int = -1) -> np.ndarray:
    """Return `steps` [uint8] of `bits` bits packed along `axis`, 8 / bits of them a byte.

    What is missing of the last byte is zero.
    """
    each = 8 // bits
    moved = np.moveaxis(steps, axis, 0)
    result = np.zeros((-(-len(moved) // each), *moved.shape[1:]), np.uint8)
    for place in range(each):
        part = moved[place::each]
        result[: len(part)] |= part << np.uint8(place * bits)
    return np.moveaxis(result, 0, axis)


def unpack(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Return the first `count` steps of `bits` bits of each row of `packed` [..., bytes]: uint8."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    steps = packed[..., None] >> shifts & np.uint8((1 << bits) - 1)
    *outer, length = packed.shape
    return np.asarray(steps.reshape(*outer, length * (8 // bits))[..., :count])


def expand(steps: np.ndarray, scale: np.ndarray, zero: np.ndarray | int, inputs: int) -> np.ndarray:
    """Return the weight [inputs, outputs, dtype of `scale`] of `steps` [outputs, blocks, size].

    `scale` is [outputs, blocks], as is `zero` where it isn't one number.
    """
    places = np.asarray(zero, scale.dtype)
    whole = (steps.astype(scale.dtype) - (places[..., None] if places.ndim else places)) * scale[..., None]
    return np.asarray(whole.reshape(len(whole), -1)[:, :inputs].T)
