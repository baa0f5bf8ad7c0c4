"""Few values for many: the grids of ternary, binary, logarithmic and fixed-point weights, on arrays.

Each function looks at the rows of a matrix [channels, elements], which have a grid of their own each, and
returns that grid: something that rounds any matrix [channels, any number] to it, in its dtype. What lies on
such a grid already gets one that leaves it as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Grid = Callable[[np.ndarray], np.ndarray]  # [channels, any number] -> the same shape and dtype
LEAST = -126  # exponent of the smallest scale
_TRIES = 5  # full scales tried, each half of the one before


@dataclass(frozen=True)
class Signs:
    """One value for numbers under -`threshold`, one for those over it, and 0 in between.

    `below` and `above` are the values; all are [channels, 1], float64. A negative threshold leaves no zeros.
    """

    threshold: np.ndarray
    below: np.ndarray
    above: np.ndarray

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Return `rows` [channels, any number] on the grid."""
        kind = rows.dtype
        above, below = self.above.astype(kind), self.below.astype(kind)
        negative = (rows < -self.threshold) & (rows < 0)
        result = np.where(negative, below, above)
        result[~negative & (rows <= self.threshold)] = 0
        return result


def ternary(rows: np.ndarray, two: bool = False) -> Signs:
    """Return the ternary grid of each of `rows` [channels, elements, float].

    The threshold is 0.7 times the mean magnitude; the value is the mean of the magnitudes above it, or where
    `two`, that of the positive ones for these and that of the negative ones for those.
    Source: Li and Liu, Ternary Weight Networks, 2016, equation 6; Zhu et al., Trained Ternary Quantization,
    ICLR 2017, for two values, which are trained there.
    """
    threshold = 0.7 * _mean(np.abs(rows), np.ones(rows.shape, bool))
    high, low = rows > threshold, rows < -threshold
    above, below = _mean(rows, high), _mean(rows, low)
    if not two:
        above = _mean(np.abs(rows), high | low)
        below = -above
    most, least = _largest(rows), -_largest(-rows)
    done = ((rows == 0) | (rows == most) | (rows == least)).all(axis=1, keepdims=True)
    if not two:
        done &= (most == -least) | (most == 0) | (least == 0)
    return Signs(np.where(done, 0.0, threshold), np.where(done, least, below), np.where(done, most, above))


def binary(rows: np.ndarray) -> Signs:
    """Return the binary grid of each of `rows` [channels, elements, float]: +- its mean magnitude.

    Zero counts as positive. Source: Rastegari et al., XNOR-Net, ECCV 2016, section 3.1.
    """
    sizes = np.abs(rows)
    most = _largest(sizes)
    done = (sizes == most).all(axis=1, keepdims=True)
    mean = np.where(done, most, _mean(sizes, np.ones(rows.shape, bool)))
    return Signs(np.full(mean.shape, -1.0), -mean, mean)


@dataclass(frozen=True)
class Powers:
    """Zero, and 2**exponent times each of `sizes` [levels, ascending from 0 to 1] of either sign.

    `exponent` is [channels, 1], whole numbers.
    """

    exponent: np.ndarray
    sizes: np.ndarray

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Return `rows` [channels, any number] on the grid, each number being replaced by the nearest."""
        values = _wide(rows)
        sizes = self.sizes.astype(values.dtype)
        between = (sizes[1:] + sizes[:-1]) / 2
        near = sizes[np.searchsorted(between, np.ldexp(np.abs(values), -self.exponent))]
        near = np.ldexp(near, self.exponent)
        made: np.ndarray = np.where(values < 0, -near, near).astype(rows.dtype) + rows.dtype.type(0)
        return made  # with no -0.0


def logarithmic(rows: np.ndarray, bits: int, steps: int = 1) -> Powers:
    """Return the logarithmic grid of `bits` bits (at least 2) of each of `rows` [channels, elements, float].

    Of 2**bits codes one is for zero and one is never used; the others are a sign and one of the largest
    2**(bits - 1) - 1 powers of 2**(1 / `steps`), up to a power of two. Which one that is makes the squared
    error least. Source: Miyashita et al., Convolutional Neural Networks using Logarithmic Data
    Representation, 2016: section 3.1, and 4.4 for `steps` of 2; zero has no code there, and numbers are
    rounded in the logarithm there, here to the nearest.
    """
    powers = np.arange(2 ** (bits - 1) - 1, dtype=np.float64)
    sizes = np.append(0.0, np.exp2(-powers[::-1] / steps))
    highest = np.frexp(_wide(_extent(rows)))[1]
    return Powers(_best(rows, lambda exponent: Powers(exponent, sizes), highest), sizes)


@dataclass(frozen=True)
class Steps:
    """The whole numbers from `low` to `high` times 2**exponent; `exponent` is [channels, 1]."""

    exponent: np.ndarray
    low: int
    high: int

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Return `rows` [channels, any number] on the grid: the nearest, ties to even, clipped."""
        steps = np.rint(np.ldexp(_wide(rows), -self.exponent))
        np.clip(steps, self.low, self.high, out=steps)
        made: np.ndarray = np.ldexp(steps, self.exponent).astype(rows.dtype) + rows.dtype.type(0)
        return made  # with no -0.0


def fixed(rows: np.ndarray, bits: int) -> Steps:
    """Return the grid of `bits` bits, two's complement, of each of `rows` [channels, elements, float].

    Of the powers of two that may be the scale, the one that makes the squared error least.
    Source: Courbariaux et al., Training deep neural networks with low precision multiplications, 2014;
    Gysel et al., Ristretto, 2016.
    """
    half = 2 ** (bits - 1)
    exponent = fixed_exponent(_extent(rows), half - 1)
    return Steps(_best(rows, lambda each: Steps(each, -half, half - 1), exponent), -half, half - 1)


def fixed_exponent(extent: np.ndarray, most: int) -> np.ndarray:
    """Return the least exponents for which ``most * 2**exponent`` reaches `extent` [any shape, float]."""
    fractions, exponents = np.frexp(np.asarray(extent, np.float64) / most)
    enough = np.where(fractions == 0.5, exponents - 1, exponents)
    least: np.ndarray = np.where(fractions == 0, LEAST, enough).clip(LEAST, -LEAST)
    return least


def matrix(weight: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """Return weight [any shape] as [channels, others]; `axes` tell channels apart, without any it is one."""
    channels = int(np.prod([weight.shape[axis] for axis in axes], dtype=np.int64))
    return np.moveaxis(weight, axes, range(len(axes))).reshape(channels, weight.size // max(1, channels))


def array(rows: np.ndarray, shape: Sequence[int], axes: Sequence[int]) -> np.ndarray:
    """Return `rows` as the array of `shape` that :func:`matrix` made them of."""
    others = [axis for axis in range(len(shape)) if axis not in axes]
    moved = rows.reshape([shape[axis] for axis in (*axes, *others)])
    return np.ascontiguousarray(np.moveaxis(moved, range(len(axes)), axes)).reshape(shape)


def _best(rows: np.ndarray, grid: Callable[[np.ndarray], Grid], highest: np.ndarray) -> np.ndarray:
    """Return the exponents [channels, 1], at most `highest`, whose grid makes the squared error least."""
    best = highest
    least = np.full(highest.shape, np.inf)
    values = _wide(rows)
    scale = 1 / np.maximum(
        _extent(values), np.finfo(values.dtype).tiny
    )  # squares neither vanish nor overflow
    for less in range(_TRIES):
        error: np.ndarray = (grid(highest - less)(values) - values) * scale
        found = np.einsum("ij,ij->i", error, error, dtype=np.float64)[:, None]
        best = np.where(found < least, highest - less, best)
        least = np.minimum(found, least)
    return best


def _wide(rows: np.ndarray) -> np.ndarray:
    wide: np.ndarray = rows.astype(np.result_type(rows.dtype, np.float32), copy=False)
    return wide


def _extent(rows: np.ndarray) -> np.ndarray:
    extent: np.ndarray = np.maximum(_largest(rows), _largest(-rows))
    return extent


def _largest(rows: np.ndarray) -> np.ndarray:
    """Return the largest number of each row, at least 0: [channels, 1]."""
    largest: np.ndarray = rows.max(axis=1, keepdims=True, initial=0)
    return largest


def _mean(rows: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Return the mean of each row `where` true, 0 where nothing is: float64 [channels, 1]."""
    total = rows.sum(axis=1, keepdims=True, dtype=np.float64, where=where)
    count = where.sum(axis=1, keepdims=True)
    mean: np.ndarray = total / np.maximum(count, 1)
    return mean
