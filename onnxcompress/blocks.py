"""Weights in blocks of a few bits: the arithmetic, and how they lie in memory.

A weight is a matrix [inputs, outputs] here. Each column is cut into blocks of ``size`` numbers, the last one
filled up with zeros, and a block is ``w ~ (q - zero) * scale``, q and zero of ``bits`` bits without sign.
Source: onnxruntime, ContribOperators.md, MatMulNBits: packed numbers lie in the low bits first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcompress.panels import (
    energy,
    extremes,
    joined,
    one_magnitude,
    reciprocal,
    turned,
    widened,
)

BITS = (2, 4, 8)
SIZES = (16, 32, 64, 128, 256)
_PANEL = (256, 4096)  # inputs and outputs whose scales are found together
_TILE = (128, 512)  # inputs and outputs computed together: they stay in the processor's cache
_SEARCHED = {2: np.linspace(1, 0.4, 13), 4: np.linspace(1, 0.7, 13), 8: np.linspace(1, 0.98, 9)}
_LEAST = np.float32(2.0**-126)  # scales below have no finite reciprocal
_Scale = tuple[np.ndarray, np.ndarray]  # scale, as it is stored, and zero, float32 [blocks, outputs]


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
        for blocks, columns in self._panels(weight):
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

    def _find(self, fit: Fit, panel: np.ndarray, blocks: slice, columns: slice) -> None:
        """Put the scales and zeros of the `blocks` of `columns`, which are `panel`, into `fit`."""
        scale, zero = self._best(panel)
        fit.scale[columns, blocks] = scale.T
        if fit.zero is not None:
            fit.zero[columns, blocks] = zero.T

    def _stored_by(self, weight: np.ndarray, fit: Fit, packed: bool, find: bool) -> Stored:
        """Return `weight` in steps of the scales of `fit`; those are to `find` first."""
        outputs, count = fit.scale.shape
        bits = self.bits if packed else 8
        result = np.empty((outputs, count, self.size * bits // 8), np.uint8)
        signal = noise = 0.0
        for blocks, columns in self._panels(weight):
            panel = self._cut(weight, blocks, columns)
            if find:
                self._find(fit, panel, blocks, columns)
            scale = widened(np.ascontiguousarray(fit.scale[columns, blocks].T))
            zero = self._middles(scale) if fit.zero is None else fit.zero[columns, blocks].T
            zero = zero.astype(np.float32, order="C")
            factor, stored = reciprocal(scale), result[columns, blocks]
            for part in self._tiles(panel):
                tile = widened(panel[part[0], :, part[1]])
                steps = self._rounded(tile, factor[part], zero[part])
                stored[part[::-1]] = joined(steps, zero[part], bits).transpose(2, 0, 1)
                signal += energy(tile)
                noise += energy(self._error(tile, steps, scale[part]))
        lost = noise > 0 and signal > 0
        return Stored(result, float(10 * np.log10(signal / noise)) if lost else 999.0)

    def _panels(self, weight: np.ndarray) -> Iterator[tuple[slice, slice]]:
        """Yield slices of blocks and of outputs that together cover `weight` [inputs, outputs]."""
        inputs, outputs = weight.shape
        return self._parts(self.count(inputs), outputs, _PANEL)

    def _tiles(self, panel: np.ndarray) -> Iterator[tuple[slice, slice]]:
        """Yield slices of blocks and of outputs that together cover `panel` [blocks, size, outputs]."""
        return self._parts(len(panel), panel.shape[2], _TILE)

    def _parts(self, blocks: int, outputs: int, most: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
        """Yield slices that together cover so many blocks and outputs, of inputs and outputs at `most`."""
        step = max(1, most[0] // self.size)
        for column in range(0, outputs, most[1]):
            for block in range(0, blocks, step):
                last = min(block + step, blocks), min(column + most[1], outputs)
                yield slice(block, last[0]), slice(column, last[1])

    def _cut(self, weight: np.ndarray, blocks: slice, columns: slice) -> np.ndarray:
        """Return `blocks` of the `columns` of `weight`: [blocks, size, outputs, its type], end filled up."""
        part = weight[blocks.start * self.size : blocks.stop * self.size, columns]
        missing = (blocks.stop - blocks.start) * self.size - len(part)
        if missing:
            part = np.pad(part, ((0, missing), (0, 0)))
        if part.strides[0] < part.strides[1]:  # its columns lie far apart in memory
            part = turned(part)
        return part.reshape(-1, self.size, part.shape[1])

    def _rounded(self, tile: np.ndarray, factor: np.ndarray, zero: np.ndarray) -> np.ndarray:
        """Return `tile`, times `factor`, in whole steps less `zero`, as float32."""
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

    def _best(self, panel: np.ndarray) -> _Scale:
        """Return the scale and zero of each block of `panel` [blocks, size, outputs]."""
        low, high = extremes(panel)
        tried = list(self._scales(low, high))
        scale, zero = tried[0] if len(tried) == 1 else self._least(panel, tried)
        largest = np.maximum(-low, high)
        same = one_magnitude(panel, largest)
        if same.any():
            scale = np.where(same, self._stored(largest / np.float32(self.middle - 1)), scale)
            zero = np.where(same, np.float32(self.middle), zero)
        return scale, zero

    def _least(self, panel: np.ndarray, tried: Sequence[_Scale]) -> _Scale:
        """Return those of the `tried` scales and zeros that make the squared error of each block least."""
        scale, zero = (each.copy() for each in tried[0])
        for part in self._tiles(panel):
            tile = widened(panel[part[0], :, part[1]])
            least = np.full(scale[part].shape, np.inf, np.float32)
            for scales, zeros in tried:
                other, place = widened(scales[part]), zeros[part]
                error = self._error(tile, self._rounded(tile, reciprocal(other), place), other)
                with np.errstate(over="ignore"):
                    sums = np.square(error, out=error).sum(axis=1)
                better = sums < least
                np.copyto(scale[part], scales[part], where=better)
                np.copyto(zero[part], place, where=better)
                np.copyto(least, sums, where=better)
        return scale, zero

    def _scales(self, low: np.ndarray, high: np.ndarray) -> Iterator[_Scale]:
        """Yield scales and zeros worth trying for blocks of numbers from `low` to `high`, 0 among them."""
        factors = _SEARCHED[self.bits].astype(np.float32) if self.searched else np.ones(1, np.float32)
        if self.symmetric:  # the middle has one step more below than above
            middle = self._middles(low)
            ends = [np.where(high > -low, high, low) / np.float32(-self.middle)]
            if self.searched:
                ends.append(np.maximum(-low, high) / np.float32(self.middle - 1))
            yield from ((self._stored(end * factor), middle) for end in ends for factor in factors)
            return
        for factor in factors:
            scale = self._stored((high / np.float32(self.top) - low / np.float32(self.top)) * factor)
            wide = widened(scale)
            places = np.divide(-low * factor, wide, out=np.zeros_like(wide), where=wide > 0)
            yield scale, np.clip(np.rint(places), 0, self.top)

    def _middles(self, scale: np.ndarray) -> np.ndarray:
        """Return zeros in the middle for blocks of these scales."""
        return np.full(scale.shape, self.middle, np.float32)

    def _stored(self, scale: np.ndarray) -> np.ndarray:
        """Return `scale` [float32] as it will be stored; 0 for what has no finite reciprocal."""
        if self.dtype == np.float16:  # those of all its numbers are finite in float32
            return scale.astype(np.float16)
        return np.where(np.abs(scale) < _LEAST, np.float32(0), scale)


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
