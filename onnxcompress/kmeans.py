"""k-means in one dimension: the few values that stand for many weights, on arrays.

Numbers are sorted once. A cluster then is a range of ranks, its mean a difference of two prefix sums, and a
step of Lloyd's iteration as many binary searches as there are clusters, whatever the number of weights.
Sources: Lloyd, Least Squares Quantization in PCM, IEEE Trans. Information Theory 28(2), 1982; Wang and Song,
Ckmeans.1d.dp, The R Journal 3(2), 2011 (the optimum by dynamic programming); Chou, Lookabaugh and Gray,
Entropy-Constrained Vector Quantization, IEEE Trans. ASSP 37(1), 1989 (code length as a part of the cost);
Han et al., Deep Compression, ICLR 2016 (where to begin).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

METHODS = ("linear", "density", "optimal", "entropy")
_STEPS = 2_000
_STILL = 1e-4  # of the numbers' variance
_BINS = 2_048
_CHUNK = 1 << 18


@dataclass(frozen=True)
class Codebook:
    """The values that stand for some weights, all but zeros, which stay.

    `values` [k, the weights' dtype] ascend; value i stands for weights up to `boundaries` [k - 1, float32 or
    float64] i, and above the one before. `count` is how many values the weights, `size` of them, then take,
    zero included, and `entropy` how many bits they hold each. `exact` says that they took the same values
    before.
    """

    values: np.ndarray
    boundaries: np.ndarray
    size: int
    count: int
    entropy: float
    exact: bool


@dataclass(frozen=True)
class Points:
    """Numbers and their sums: `values` [n, ascending], and `sums` [n + 1, float64] of those before a rank.

    The sums have a constant added: they begin at the numbers around zero and go outwards, so that a few large
    numbers take no digits from many small ones. Where numbers are of different importance, sums are of their
    products with it, and `masses` [n + 1, float64] are its own sums.
    """

    values: np.ndarray
    sums: np.ndarray
    masses: np.ndarray | None = None

    def mass(self, ranks: np.ndarray) -> np.ndarray:
        """Return the importance of all numbers before each of the `ranks`: how many there are, by default."""
        return ranks if self.masses is None else self.masses[ranks]


def codebook(
    weights: np.ndarray,
    limit: int,
    method: str = "linear",
    price: float = 1.0,
    importance: np.ndarray | None = None,
) -> Codebook:
    """Return values for `weights` [any shape, float, finite], at most `limit` of them, zero included.

    Zero is a value of its own where there are zeros, so that a sparse weight stays as sparse as it is.
    Weights of no more values than `limit` keep them. `method` is one of METHODS, see :func:`cuts`
    for it and `price`. With `importance` [as weights, positive], squared errors count that much.
    """
    numbers = _exact(weights).reshape(-1)
    order = None if importance is None else np.argsort(numbers)
    numbers = np.sort(numbers) if order is None else numbers[order]
    held = None if importance is None else importance.reshape(-1)[order].astype(np.float64)
    first, last = np.searchsorted(numbers, 0.0), np.searchsorted(numbers, 0.0, side="right")
    zeros = int(last - first)
    if zeros:
        numbers = np.concatenate([numbers[:first], numbers[last:]])
        held = None if held is None else np.concatenate([held[:first], held[last:]])
    room = limit - (zeros > 0)
    exact = np.count_nonzero(numbers[1:] != numbers[:-1]) < room
    points = prefix_sums(numbers, None if held is None else held / (held.mean() if held.size else 1.0))
    edges = np.append(_starts(numbers), numbers.size) if exact else cuts(points, room, method, price)
    counts = np.append(np.diff(edges), [zeros] if zeros else np.empty(0, np.int64))
    shares = counts / max(1, counts.sum())
    return Codebook(
        means(points, edges).astype(weights.dtype),
        numbers[edges[1:-1] - 1],
        weights.size,
        len(counts),
        abs(float(shares @ np.log2(shares))),
        bool(exact),
    )


def shared(weights: np.ndarray, book: Codebook) -> np.ndarray:
    """Return `weights` [any shape, float], those `book` was made for, with its values in their place."""
    flat = weights.reshape(-1)
    result = np.zeros_like(flat)
    for start in range(0, flat.size if len(book.values) else 0, _CHUNK):
        part = flat[start : start + _CHUNK]
        codes = np.searchsorted(book.boundaries, _exact(part))
        np.copyto(result[start : start + _CHUNK], book.values[codes], where=part != 0)
    return result.reshape(weights.shape)


def cuts(points: Points, count: int, method: str = "linear", price: float = 1.0) -> np.ndarray:
    """Return where to cut `points` [n > 0] into at most `count` clusters: ranks [clusters + 1], 0 and n too.

    Lloyd's iteration starts from centres in equal steps between the lowest and the highest number ("linear"),
    at equal shares of the numbers ("density") or where the squared error is least ("optimal"). "entropy" is
    no k-means: it finds the least sum of squared error and of code length at `price`, see :func:`least`. No
    cluster is empty.
    """
    if method == "entropy":
        return least(points, count, price)
    if method == "optimal":
        return lloyd(points, means(points, least(points, count)), 0.0)
    if method == "density":
        ranks = (np.arange(count) + 0.5) / count * points.values.size
        centres = np.unique(points.values[ranks.astype(np.int64)]).astype(np.float64)
    else:
        centres = np.linspace(float(points.values[0]), float(points.values[-1]), count)
    return lloyd(points, centres)


def prefix_sums(numbers: np.ndarray, importance: np.ndarray | None = None) -> Points:
    """Return `numbers` [n, sorted, float32 or float64] with their sums; `importance` [n, float64]."""
    middle = int(np.searchsorted(numbers, 0.0))
    heavy = numbers if importance is None else numbers * importance
    below = -np.cumsum(heavy[:middle][::-1], dtype=np.float64)[::-1]
    above = np.cumsum(heavy[middle:], dtype=np.float64)
    masses = None if importance is None else np.append(0.0, np.cumsum(importance))
    return Points(numbers, np.concatenate([below, [0.0], above]), masses)


def means(points: Points, edges: np.ndarray) -> np.ndarray:
    """Return the mean [k, float64] of each range of ranks between `edges` [k + 1]; none is empty."""
    found = np.diff(points.sums[edges]) / np.diff(points.mass(edges))
    mean: np.ndarray = np.clip(found, points.values[edges[:-1]], points.values[edges[1:] - 1])
    return mean


def lloyd(points: Points, centres: np.ndarray, still: float = _STILL) -> np.ndarray:
    """Return the cuts, as of :func:`cuts`, between clusters that began around `centres` [k, ascending].

    Each centre moves to the mean of the numbers nearest to it, until the squares of all movements add up to
    at most `still` times the numbers' variance: by default, the tolerance of scikit-learn's KMeans. To go on
    to the end makes steps finer where numbers are many and coarser for the large ones, which matter more. A
    centre that is nearest to no number waits where it is, and is left out in the end.
    """
    ends, before = [0, points.values.size], np.empty(0)
    peak = float(np.abs(points.values[[0, -1]]).max()) or 1.0  # so that squares stay finite
    enough = still * float(np.var(points.values / peak, dtype=np.float64))
    for _ in range(_STEPS):
        boundaries = (centres[:-1] / 2 + centres[1:] / 2).astype(points.values.dtype)
        inner = np.searchsorted(points.values, boundaries, side="right")
        edges = np.concatenate([ends[:1], inner, ends[1:]])
        if np.array_equal(edges, before):
            break
        before, last = edges, centres
        centres = last.copy()
        centres[np.diff(edges) > 0] = means(points, np.unique(edges))
        if np.sum((centres / peak - last / peak) ** 2) <= enough:
            break
    return np.unique(before)


def least(points: Points, count: int, price: float = 0.0) -> np.ndarray:
    """Return the cuts, as of :func:`cuts`, with the least sum of squared errors.

    With a `price`, of squared error and ideal code length. At 1, a bit of a number's code costs as much as it
    would lower the error by if it were spent on finer steps: 2 ln 2 times the least mean squared error.
    Where there are more than 2,048 different numbers, cuts lie between bins, of which none is wider than one
    2,048th of the range or holds more than that share of the numbers, equal ones apart.
    """
    ranks = _bins(points.values)
    sums, masses = points.sums[ranks], points.mass(ranks)
    sums = sums - masses * ((sums[-1] - sums[0]) / masses[-1])
    sums /= np.abs(sums).max() or 1.0  # so that squares stay finite
    bins = Bins(ranks, sums, masses)
    found = best_cuts(bins, count)
    if price:
        every = np.arange(len(ranks))
        error = np.sum(_gain(bins, every[:-1], every[1:]))
        error -= np.sum(_gain(bins, found[:-1], found[1:]))
        bit = price * 2 * np.log(2) * max(float(error), 0.0) / ranks[-1]
        found = best_cuts(bins, count, bit)
    cut: np.ndarray = ranks[found]
    return cut


@dataclass(frozen=True)
class Bins:
    """Ranges of numbers: `ranks` [bins + 1] of their edges, and prefix `sums` and `masses` there."""

    ranks: np.ndarray
    sums: np.ndarray
    masses: np.ndarray


def best_cuts(bins: Bins, count: int, bit: float = 0.0) -> np.ndarray:
    """Return where to cut `bins` into at most `count` clusters: [clusters + 1], from 0 to the number of bins.

    `bit` is what a bit of code costs. Dynamic programming over clusters: of those that end at a bin, the last
    begins no earlier than that of those that end before it, so bins in the middle go first and halve the
    search for the others (with `bit` that is nearly always so, and the cuts nearly the best).
    """
    size = len(bins.ranks) - 1
    begins = [np.zeros(size + 1, np.int64)]
    most = _gain(bins, begins[0], np.arange(size + 1), bit)
    for _ in range(min(count, size) - 1):
        most, begin = _one_more(bins, bit, most)
        begins.append(begin)
    ends = [size]
    for begin in reversed(begins):
        ends.append(int(begin[ends[-1]]))
    return np.unique(ends)


def _one_more(bins: Bins, bit: float, most: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the gain [bins + 1] of one more cluster for the bins up to each, and where that cluster begins.

    `most` [bins + 1] is the gain without it. All bins at the same distance from solved ones go at once.
    """
    size = len(bins.ranks) - 1
    gains, begins = np.zeros(size + 1), np.full(size + 2, size)
    begins[0] = 0
    for level in range(size.bit_length() - 1, -1, -1):
        ends = np.arange(1 << level, size + 1, 2 << level)
        low = begins[ends - (1 << level)]
        high = np.minimum(begins[np.minimum(ends + (1 << level), size + 1)], ends)
        tries = high - low + 1
        offsets = np.cumsum(tries) - tries
        begin = np.arange(tries.sum()) + np.repeat(low - offsets, tries)
        end = np.repeat(ends, tries)
        gain = most[begin] + _gain(bins, begin, end, bit)
        gains[ends] = np.maximum.reduceat(gain, offsets)
        best = np.flatnonzero(gain == gains[end])[::-1]
        begins[end[best]] = begin[best]
    return gains, begins[:-1]


def _gain(bins: Bins, begin: np.ndarray, end: np.ndarray, bit: float = 0.0) -> np.ndarray:
    """Return by how much a cluster of the bins from `begin` to `end` lowers the cost, up to a constant."""
    mass = bins.masses[end] - bins.masses[begin]
    gain: np.ndarray = (bins.sums[end] - bins.sums[begin]) ** 2 / np.where(mass > 0, mass, 1)
    held = np.maximum(bins.ranks[end] - bins.ranks[begin], 1)
    return gain + bit * held * np.log2(held) if bit else gain


def _bins(numbers: np.ndarray) -> np.ndarray:
    """Return the ranks where the bins of sorted `numbers` begin, and their end; equal numbers share a bin."""
    starts = _starts(numbers)
    if len(starts) > _BINS:
        shares = numbers[np.linspace(0, numbers.size - 1, _BINS + 1).astype(np.int64)]
        steps = np.linspace(float(numbers[0]), float(numbers[-1]), _BINS + 1).astype(numbers.dtype)
        found = np.searchsorted(numbers, np.concatenate([shares, steps]))
        starts = np.unique(np.append(found[found < numbers.size], 0))
    return np.append(starts, numbers.size)


def _starts(numbers: np.ndarray) -> np.ndarray:
    """Return the first rank of each distinct number of sorted `numbers`."""
    return np.append(
        np.zeros(min(1, numbers.size), np.int64), np.flatnonzero(numbers[1:] != numbers[:-1]) + 1
    )


def _exact(weights: np.ndarray) -> np.ndarray:
    """Return `weights` as float32 or float64, whichever holds them exactly."""
    return weights.astype(np.float64 if weights.dtype == np.float64 else np.float32, copy=False)
