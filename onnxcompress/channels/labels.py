"""Arrays of labels: what data movement does to them, and which position is which afterwards.

A label array has the rank of its activation and, along each axis, either the activation's size or 1 where
labels don't differ along it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxcompress.errors import CompressError
from onnxcompress.evaluate import label


class TangledError(CompressError):
    """What is kept can't be arranged as the operators expect it; the message says how, `node` where."""

    def __init__(self, message: str, node: ir.Node | None = None) -> None:
        super().__init__(message if node is None else f"{message} at {label(node)}")
        self.node = node


def compact(labels: np.ndarray) -> np.ndarray:
    """Return `labels` with size 1 along every axis on which they don't differ."""
    for axis, size in enumerate(labels.shape):
        if size > 1:
            first = labels.take([0], axis)
            if (labels == first).all():
                labels = first
    return labels


def compact_like(labels: np.ndarray, pattern: np.ndarray) -> np.ndarray:
    """Return `labels` with size 1 along the axes on which `pattern` [same rank] has size 1."""
    for axis, size in enumerate(pattern.shape):
        if size == 1 and labels.shape[axis] > 1:
            first = labels.take([0], axis)
            if not (labels == first).all():
                raise TangledError("channels would differ along an axis where they are all the same")
            labels = first
    return labels


def aligned(labels: np.ndarray, rank: int) -> np.ndarray:
    """Return `labels` with axes of size 1 in front, `rank` in all, as broadcasting does."""
    return labels.reshape((1,) * (rank - labels.ndim) + labels.shape)


def varying(labels: np.ndarray) -> list[int]:
    """Return the axes along which `labels` differ."""
    return [axis for axis, size in enumerate(labels.shape) if size > 1]


def components(count: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return for each of `count` labels the smallest one it is tied to, directly or not, int64 [count].

    `first` and `second` [ties] are the two ends of each tie.
    """
    root = np.arange(count)
    while True:
        ends = root[first], root[second]
        apart = ends[0] != ends[1]
        if not apart.any():
            return root
        low, high = np.minimum(*ends)[apart], np.maximum(*ends)[apart]
        np.minimum.at(root, high, low)
        while not np.array_equal(root, deeper := root[root]):
            root = deeper


def _numbered(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the order that sorts `labels` [n], them sorted, and which occurrence of its label each is."""
    order = np.argsort(labels, kind="stable")
    ranked = labels[order]
    places = np.arange(len(ranked))
    starts = np.maximum.accumulate(np.where(np.r_[True, ranked[1:] != ranked[:-1]], places, 0))
    return order, ranked, places - starts


def matched(new: np.ndarray, old: np.ndarray) -> np.ndarray:
    """Return for each entry of `new` the flat place in `old` that holds it, shaped as `new`.

    The k-th occurrence of a label stands for its k-th occurrence. TangledError where there is none.
    """
    if new.shape == old.shape and np.array_equal(new, old):
        return np.arange(old.size).reshape(old.shape)
    if not new.size:
        return np.zeros(new.shape, np.int64)
    order, ranked, occurrence = _numbered(new.ravel())
    places, known, _ = _numbered(old.ravel())
    found = np.searchsorted(known, ranked) + occurrence
    if not (found < len(known)).all() or not np.array_equal(known[found], ranked):
        raise TangledError("a channel is where it was not before")
    result = np.empty(new.size, np.int64)
    result[order] = places[found]
    return result.reshape(new.shape)


def slabs(new: np.ndarray, old: np.ndarray, axis: int) -> np.ndarray:
    """Return for each place of `new` along `axis` the place of `old` it comes from.

    TangledError where what lay side by side along `axis` comes from several places.
    """
    coordinates = np.unravel_index(matched(new, old), old.shape)[axis]
    lines = np.moveaxis(coordinates, axis, 0).reshape(new.shape[axis], -1)
    if lines.shape[1] == 0 or not (lines == lines[:, :1]).all():
        raise TangledError("channels of several slices would come to lie in one")
    return np.asarray(lines[:, 0])


def box(kept: np.ndarray) -> tuple[int, ...]:
    """Return the shape of what a mask `kept` [any shape, bool] leaves; empty slices fall away.

    TangledError where slices would have different sizes.
    """
    sizes: list[int] = []
    mask, counts = kept, kept.astype(np.int64)
    while mask.ndim:
        counts = mask.sum(axis=-1)
        found = np.unique(counts[counts > 0])
        if len(found) != 1:
            raise TangledError("groups would keep different numbers of channels")
        sizes.insert(0, int(found[0]))
        mask = counts > 0
    return tuple(sizes)


def in_rows(labels: np.ndarray, count: int) -> np.ndarray:
    """Return `labels` [n] as [count, n / count]; TangledError where rows would have different lengths."""
    if len(labels) % count:
        raise TangledError("groups would keep different numbers of channels")
    return labels.reshape(count, -1)


def segments(shape: Sequence[int], target: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Return which axes of `shape` become which axes of `target` by a reshape, in the smallest parts."""
    parts: list[tuple[list[int], list[int]]] = []
    left, right = list(range(len(shape))), list(range(len(target)))
    while left or right:
        mine, yours = [left.pop(0)] if left else [], [right.pop(0)] if right else []
        have, want = np.prod([shape[i] for i in mine]), np.prod([target[i] for i in yours])
        while have != want:
            if have < want:
                mine.append(left.pop(0))
                have *= shape[mine[-1]]
            else:
                yours.append(right.pop(0))
                want *= target[yours[-1]]
        parts.append((mine, yours))
    return parts


def reshaped(
    labels: np.ndarray,
    shape: Sequence[int],
    target: Sequence[int],
    old: tuple[np.ndarray, Sequence[int], Sequence[int]] | None = None,
) -> np.ndarray:
    """Return what a reshape from `shape` to `target` makes of `labels`; axes that don't matter stay 1.

    Which ones matter is told by the labels, shape and target that were before a removal, `old`, if any.
    """
    full, wanted = list(shape), list(target)
    before, given, made = old or (labels, shape, target)
    matter = varying(before)
    for mine, yours in segments(given, made):
        if not any(axis in matter for axis in mine):
            for axis in mine:
                full[axis] = 1
            for axis in yours:
                wanted[axis] = 1
    return np.broadcast_to(labels, full).reshape(wanted)
