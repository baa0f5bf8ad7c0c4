"""Streamed histograms, and the ranges that lose least.

Bins are a power of two wide, and edges lie at multiples of the width: when a larger number comes, pairs of
bins are merged exactly, so that the histogram does not depend on the order in which the numbers come.
"""

from math import frexp, ldexp

import numpy as np

BINS = 2048  # on either side of zero
_CHUNK = 1 << 16
_LEVELS = 256
TRIED = 128  # ends on either side of zero that are compared
_START = -115  # smaller numbers count as zero, and the number of bins to one is still a float32


class Histogram:
    """Counts of numbers: `counts` [2 * BINS, int64] of bins `width` wide; bin BINS begins at zero."""

    def __init__(self) -> None:
        self.counts = np.zeros(2 * BINS, np.int64)
        self._exponent = _START

    @property
    def width(self) -> float:
        """The width of a bin."""
        return ldexp(1.0, self._exponent) / BINS

    def add(self, values: np.ndarray) -> None:
        """Count `values` [any shape, float32]; ValueError where they hold NaN or infinity."""
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        largest = max(-low, high)
        if not np.isfinite(largest) or np.isnan(low):
            raise ValueError("NaN or infinity")
        self._widen(frexp(largest)[1] if largest else _START)
        factor = np.float32(1 / self.width)
        flat = values.reshape(-1)
        most = min(flat.size, _CHUNK)
        floats, integers = np.empty(most, np.float32), np.empty(most, np.intp)
        for start in range(0, flat.size, _CHUNK):
            part = flat[start : start + _CHUNK]
            scaled, bins = floats[: part.size], integers[: part.size]
            np.multiply(part, factor, out=scaled)
            if low < 0:
                np.floor(scaled, out=scaled)
            np.copyto(bins, scaled, casting="unsafe")
            if low < 0:
                bins += BINS
                self.counts += np.bincount(bins, minlength=2 * BINS)
            else:
                self.counts[BINS:] += np.bincount(bins, minlength=BINS)

    def _widen(self, exponent: int) -> None:
        """Make all numbers below two to the `exponent` fit."""
        for _ in range(min(exponent - self._exponent, BINS.bit_length())):
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts[:] = 0
            self.counts[BINS // 2 : BINS + BINS // 2] = merged
        self._exponent = max(self._exponent, exponent)


def percentile_range(counts: np.ndarray, width: float, percentile: float) -> tuple[float, float]:
    """Return the range that holds `percentile` percent of the numbers, as many left out at either end.

    `counts` and `width` are those of a :class:`Histogram`. Always holds zero. Ends are interpolated within
    a bin.
    """
    reached = np.concatenate([[0], np.cumsum(counts)])
    edges = (np.arange(counts.size + 1) - counts.size // 2) * width
    cut = reached[-1] * (100 - percentile) / 200
    first, last = np.flatnonzero(counts)[[0, -1]]
    span = slice(first, last + 2)  # np.interp wants growing numbers: empty bins at the ends do not count
    low, high = np.interp([cut, reached[-1] - cut], reached[span], edges[span])
    return min(float(low), 0.0), max(float(high), 0.0)


def entropy_range(counts: np.ndarray, width: float) -> tuple[float, float]:
    """Return the range whose 256 levels have the least Kullback-Leibler divergence from the numbers.

    `counts` and `width` are those of a :class:`Histogram`. The upper end is chosen first, then the lower.
    The bin that holds zero counts as its neighbour does: what a Relu leaves there is exact with any range.
    Source: Migacz, "8-bit inference with TensorRT", GTC 2017.
    """
    middle = counts.size // 2
    counts = counts.copy()
    counts[middle] = max(counts[middle + 1], 1)
    first, last = np.flatnonzero(counts)[[0, -1]]
    first, last = min(int(first), middle), max(int(last) + 1, middle)
    if last > middle:
        last = first + _best_end(counts[first:last], middle - first)
    if first < middle:
        first = last - _best_end(counts[first:last][::-1], last - middle)
    return (first - middle) * width, (last - middle) * width


def error_range(counts: np.ndarray, width: float) -> tuple[float, float]:
    """Return the range whose 256 levels are off least from the numbers, in the mean square.

    `counts` and `width` are those of a :class:`Histogram`. Rounding inside the range costs a twelfth of the
    squared step, what lies beyond its squared distance; zeros cost nothing. Ends are taken from grids of
    TRIED bins on either side.
    """
    middle = counts.size // 2
    filled = np.flatnonzero(counts)
    first, last = min(int(filled[0]), middle), max(int(filled[-1]) + 1, middle)
    counts = counts.astype(np.float64)
    counts[middle] = min(counts[middle], counts[middle + 1])
    centres = (np.arange(counts.size) - middle + 0.5) * width
    sums = [np.concatenate([[0.0], np.cumsum(counts * centres**power)]) for power in range(3)]
    shares = np.linspace(1 / TRIED, 1, TRIED)
    lows = np.unique(np.rint(middle - (middle - first) * shares).astype(int))[:, None]
    highs = np.unique(np.rint(middle + (last - middle) * shares).astype(int))[None, :]
    low, high = (lows - middle) * width, (highs - middle) * width
    inside = sums[0][highs] - sums[0][lows]
    below = sums[2][lows] - 2 * low * sums[1][lows] + low**2 * sums[0][lows]
    above, more, most = (total[-1] - total[highs] for total in sums)
    beyond = most - 2 * high * more + high**2 * above
    errors = inside * ((high - low) / (_LEVELS - 1)) ** 2 / 12 + below + beyond
    at_low, at_high = np.unravel_index(np.argmin(errors), errors.shape)
    return float(low[at_low, 0]), float(high[0, at_high])


def _best_end(counts: np.ndarray, least: int) -> int:
    """Return how many of the first of `counts`, `least` or more, keep most information in 256 levels."""
    ends = np.unique(np.linspace(min(max(least + 1, _LEVELS), counts.size), counts.size, 128).astype(int))
    sums = tuple(
        np.concatenate([[0.0], np.cumsum(each)])
        for each in (counts, counts > 0, counts * np.log(np.maximum(counts, 1)))
    )
    return int(ends[np.argmin([_divergence(counts, sums, int(end)) for end in ends])])


def _divergence(counts: np.ndarray, sums: tuple[np.ndarray, ...], end: int) -> float:
    """Return the divergence of 256 levels over the first `end` counts from all counts, clipped into these.

    A level spreads its numbers evenly over its bins that aren't empty. `sums` are the sums of the first 0,
    1, ... of the counts, of one for each that is not zero, and of ``count * log(count)``: each level takes
    but their differences.
    """
    numbers, filled, logs = sums
    levels = min(_LEVELS, end)
    starts = np.arange(levels + 1) * end // levels
    level, bins = np.diff(numbers[starts]), np.maximum(np.diff(filled[starts]), 1)
    guesses = np.log(np.maximum(level, 1e-10) / bins)
    total, last = numbers[-1], float(counts[end - 1])
    clipped = last + total - numbers[end]  # what the last bin holds once all that lies beyond is in it
    guess = guesses[-1] if last else np.log(1e-10 * numbers[end])
    told = logs[end] - last * np.log(max(last, 1)) + clipped * np.log(max(clipped, 1))
    guessed = level @ guesses - last * guesses[-1] + clipped * guess
    return float((told - guessed) / total - np.log(total) + np.log(numbers[end]))
