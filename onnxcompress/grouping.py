"""Which channels of a convolution go into which group, so that the groups keep most of its weight.

An assignment gives each channel its group, int64 [channels], and each group equally many.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

STARTS = 4  # random ones, besides the one from singular vectors
ITERATIONS = 30  # to find singular vectors, and centres
_LITTLE = 1e-4  # a share of the energy for which a round more isn't worth its time
_ROUNDING = 1e-12


def contiguous(channels: int, groups: int) -> np.ndarray:
    """Return the assignment of `channels` to `groups` as they lie, one block after another."""
    return np.arange(channels) * groups // channels


def dealt(channels: int, groups: int) -> np.ndarray:
    """Return the order, int64 [channels], in which ShuffleNet's shuffle takes channels: one of each group."""
    return np.arange(channels).reshape(groups, -1).T.ravel()


def kept(energy: np.ndarray, outputs: np.ndarray, inputs: np.ndarray) -> float:
    """Return the share of `energy` [outputs, inputs], not all 0, that lies within groups."""
    return float(energy[outputs[:, None] == inputs].sum() / energy.sum())


def blocks(weight: np.ndarray, groups: int) -> np.ndarray:
    """Return of weight [outputs, inputs, *kernel] what lies in the `groups` blocks on its diagonal.

    The result is [outputs, inputs / groups, *kernel].
    """
    outputs, inputs, *kernel = weight.shape
    cut = weight.reshape(groups, outputs // groups, groups, inputs // groups, *kernel)
    diagonal = np.arange(groups)
    return cut[diagonal, :, diagonal].reshape(outputs, inputs // groups, *kernel)


def search(energy: np.ndarray, groups: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return assignments of outputs and inputs to `groups` that keep much of `energy` [outputs, inputs].

    Outputs are assigned for given inputs and the other way round until nothing more is gained, from inputs
    clustered by singular vectors and from random ones; the best end is returned. Where the energy lies in
    blocks that a permutation hides, the first start finds them. `energy` is not negative, and not all 0.
    """
    draw = np.random.default_rng(seed)
    best = alternated(energy, clustered(energy, groups, draw), groups)
    for _ in range(STARTS):
        if kept(energy, *best) > 1 - _ROUNDING:
            break
        start = draw.permutation(contiguous(energy.shape[1], groups))
        best = max(best, alternated(energy, start, groups), key=lambda ends: kept(energy, *ends))
    return best


def alternated(energy: np.ndarray, inputs: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Return assignments of outputs and inputs where neither gains much for the other, from `inputs`."""
    outputs, best, little = contiguous(len(energy), groups), -1.0, _LITTLE * float(energy.sum())
    while True:
        outputs = assigned(energy @ np.eye(groups)[inputs], outputs)
        score = energy.T @ np.eye(groups)[outputs]
        inputs = assigned(score, inputs)
        now = float(score[np.arange(len(score)), inputs].sum())
        if now <= best + little:
            return outputs, inputs
        best = now


def assigned(score: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Return an assignment with a high sum of `score` [channels, groups], no less than that of `start`.

    No exchange between two groups would make it higher.
    """
    groups = score.shape[1]
    size = len(score) // groups
    members = np.argsort(start, kind="stable").reshape(groups, size)
    least, better = _ROUNDING * float(np.abs(score).max()), True
    while better:
        better = False
        for left, right in _pairs(groups):
            pool = np.concatenate([members[left], members[right]], axis=1)
            gain = score[pool, left[:, None]] - score[pool, right[:, None]]
            order = np.argsort(-gain, axis=1, kind="stable")
            sorted_gain = np.take_along_axis(gain, order, axis=1)
            more = (sorted_gain - gain)[:, :size].sum(axis=1) > least
            pool = np.take_along_axis(pool, order, axis=1)[more]
            members[left[more]], members[right[more]] = pool[:, :size], pool[:, size:]
            better = better or bool(more.any())
    result = np.empty(len(score), np.int64)
    result[members.ravel()] = np.repeat(np.arange(groups), size)
    return result


def _pairs(groups: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield rounds of disjoint pairs of groups, as in a tournament where each meets each other once."""
    players = groups + groups % 2
    order = np.arange(players)
    for _ in range(players - 1):
        left, right = order[: players // 2], order[players // 2 :][::-1]
        both = (left < groups) & (right < groups)
        yield left[both], right[both]
        order[1:] = np.roll(order[1:], 1)


def clustered(energy: np.ndarray, groups: int, draw: np.random.Generator) -> np.ndarray:
    """Return an assignment of the inputs of `energy` [outputs, inputs] by its leading singular vectors.

    Source: Dhillon, Co-clustering documents and words using bipartite spectral graph partitioning, KDD 2001.
    """
    rows, columns = (np.sqrt(np.maximum(energy.sum(axis), 1e-300)) for axis in (1, 0))
    scaled = energy / rows[:, None] / columns
    vectors = draw.standard_normal((len(columns), groups))
    for _ in range(ITERATIONS):
        vectors = np.linalg.qr(scaled.T @ (scaled @ vectors))[0]
    points = vectors / columns[:, None]
    points /= np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-300)
    centres = points[[_farthest(points)]]
    while len(centres) < groups:
        centres = np.concatenate([centres, points[[_farthest(points, centres)]]])
    inputs = contiguous(len(points), groups)
    for _ in range(ITERATIONS):
        before, inputs = inputs, assigned(points @ centres.T, inputs)
        if np.array_equal(before, inputs):
            break
        centres = np.eye(groups)[inputs].T @ points
    return inputs


def _farthest(points: np.ndarray, centres: np.ndarray | None = None) -> int:
    """Return which of `points`, of length 1, is the least like any of `centres`, or like the mean of all."""
    others = points.mean(axis=0, keepdims=True) if centres is None else centres
    return int(np.argmin((points @ others.T).max(axis=1)))
