"""Some places of the calibration samples, and what layers read and compute there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import onnx_ir as ir

from onnxcompress.channels.stages import Feeds
from onnxcompress.convolve import Window

Places = tuple[np.ndarray, ...]
SAMPLES = 512  # of the calibration data that are looked at
POSITIONS = 32  # of each sample that are looked at, at least
EQUATIONS = 128  # for each weight of an output
SIZE = 1 << 27  # bytes of what a layer reads at all places, at most
BATCH = 32  # samples a run takes where the model leaves their number open


def batched(data: Iterable[Feeds], model: ir.Model) -> Iterator[Feeds]:
    """Yield the first SAMPLES feeds, some at a time where every input of `model` leaves their number open."""
    shapes = [value.shape for value in model.graph.inputs]
    free = all(shape is not None and len(shape) and not isinstance(shape[0], int) for shape in shapes)
    waiting: list[Feeds] = []
    for feed in islice(data, SAMPLES):
        waiting.append(feed)
        if not free or len(waiting) == BATCH:
            yield _joined(waiting)
            waiting = []
    if waiting:
        yield _joined(waiting)


def _joined(feeds: Sequence[Feeds]) -> Feeds:
    return {name: np.concatenate([each[name] for each in feeds]) for name in feeds[0]}


def places(
    arrays: Sequence[np.ndarray], axis: int, window: Window, draw: np.random.Generator
) -> list[Places]:
    """Return for each of `arrays` indices along all axes but `axis`, drawn at random where there are many.

    There are EQUATIONS for each weight of an output of `window`, at least POSITIONS for each sample, and no
    more than what its inputs take SIZE bytes for, in float32.
    """
    unknown = int(np.prod(window.shape[1:]))
    samples = sum(len(array) for array in arrays)
    most = max(EQUATIONS * unknown, POSITIONS * samples)
    share = min(most, SIZE // (4 * unknown * window.groups)) / sum(a.size // a.shape[axis] for a in arrays)
    found = []
    for array in arrays:
        sizes = np.delete(array.shape, axis)
        count = int(np.prod(sizes))
        taken = max(int(count * share), 1)
        flat = np.arange(count) if taken >= count else np.sort(draw.choice(count, taken, replace=False))
        found.append(np.unravel_index(flat, sizes))
    return found


def at(arrays: Sequence[np.ndarray], axis: int, where: Sequence[Places]) -> np.ndarray:
    """Return what lies at the places `where` of the other axes, float32 [all places, size of `axis`]."""
    found = [np.moveaxis(array, axis, -1)[each] for array, each in zip(arrays, where, strict=True)]
    return np.concatenate(found).astype(np.float32, copy=False)


def read(window: Window, arrays: Sequence[np.ndarray], where: Sequence[Places]) -> np.ndarray:
    """Return what a layer reads at its outputs' places `where`, float32 [groups, places, inputs of a group].

    `arrays` are [N, C, *spatial], or [..., C] for a `window` without spatial axes.
    """
    if not window.sizes:
        return at(arrays, -1, where)[None]
    found = [_patches(window, array, each) for array, each in zip(arrays, where, strict=True)]
    joined = np.concatenate(found)
    return np.moveaxis(joined.reshape(len(joined), window.groups, -1), 1, 0)


def _patches(window: Window, array: np.ndarray, where: Places) -> np.ndarray:
    """Return what `window` sees of `array` [N, C, *spatial] at `where`, float32 [places, C, *sizes]."""
    edges = [(0, 0), *zip(window.front, window.back, strict=True), (0, 0)]
    padded = np.pad(np.moveaxis(array, 1, -1), edges)
    found = np.empty((len(where[0]), array.shape[1], *window.sizes), np.float32)
    moves = list(zip(where[1:], window.strides, window.dilations, strict=True))
    for offset in np.ndindex(*window.sizes):
        seen = [at * stride + each * step for (at, stride, step), each in zip(moves, offset, strict=True)]
        found[(..., *offset)] = padded[(where[0], *seen)]
    return found
