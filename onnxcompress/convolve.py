"""Convolutions composed and put side by side: arithmetic on shapes and arrays, exact up to rounding.

A convolution here is output[o] = bias + sum over t of weight[t] * input[stride * o - front + dilation * t],
the input being zero outside its bounds. A matrix product is one without spatial axes. Weights are
[outputs, inputs / groups, *sizes] in float64. Source: the ONNX operator specification, Conv; Ding et al.,
RepVGG, CVPR 2021 and Diverse Branch Block, CVPR 2021, for merging branches and sequences.
"""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Ints = tuple[int, ...]


@dataclass(frozen=True)
class Window:
    """The shape of a convolution: its channels, and for each spatial axis how its kernel lies and moves."""

    outputs: int
    inputs: int
    groups: int = 1
    sizes: Ints = ()
    strides: Ints = ()
    dilations: Ints = ()
    front: Ints = ()
    back: Ints = ()

    @property
    def shape(self) -> Ints:
        """The shape of its weight."""
        return (self.outputs, self.inputs // self.groups, *self.sizes)

    @property
    def reach(self) -> Ints:
        """How far the last element of the kernel lies behind the first, for each axis."""
        return tuple(d * (k - 1) for d, k in zip(self.dilations, self.sizes, strict=True))

    @property
    def last(self) -> Ints:
        """The place of the kernel's last element relative to its window's stride, for each axis."""
        return tuple(r - f for r, f in zip(self.reach, self.front, strict=True))

    def along(self, axes: Container[int], shape: Sequence[int], inputs: int) -> Window:
        """Return the window of a weight of `shape` that reads `inputs` channels.

        It moves and pads as this one along the spatial `axes`, and not along others.
        """

        def taken(own: Ints, other: int) -> Ints:
            return tuple(each if axis in axes else other for axis, each in enumerate(own))

        return Window(
            shape[0],
            inputs,
            inputs // shape[1],
            tuple(shape[2:]),
            taken(self.strides, 1),
            taken(self.dilations, 1),
            taken(self.front, 0),
            taken(self.back, 0),
        )

    def output(self, spatial: Sequence[int]) -> Ints:
        """Return the spatial sizes of the output for an input of sizes `spatial`."""
        ends = zip(spatial, self.back, self.last, self.strides, strict=True)
        return tuple((n + b - e - 1) // s + 1 for n, b, e, s in ends)


def composed(first: Window, second: Window) -> Window:
    """Return the one convolution that does what `first` and then `second` do, but for the border.

    Its output has the same size for every input.
    """
    rank = range(len(first.sizes))
    moves = [first.strides[i] * second.dilations[i] for i in rank]
    reach = [first.reach[i] + moves[i] * (second.sizes[i] - 1) for i in rank]
    steps = [_step(first.dilations[i] * (first.sizes[i] > 1), moves[i] * (second.sizes[i] > 1)) for i in rank]
    return Window(
        second.outputs,
        first.inputs,
        math.gcd(first.groups, second.groups),
        tuple(reach[i] // steps[i] + 1 for i in rank),
        tuple(first.strides[i] * second.strides[i] for i in rank),
        tuple(steps),
        tuple(first.front[i] + first.strides[i] * second.front[i] for i in rank),
        tuple(first.back[i] + first.strides[i] * second.back[i] for i in rank),
    )


def sees_outside(first: Window, second: Window, spatial: Sequence[int] | None) -> bool:
    """Return whether `first` would give anything but its bias where `second` pads its output with zeros.

    Their composition is then not the same at the border. `spatial` are the sizes of `first`'s input, or None
    where they aren't known: the answer then holds for all sizes.
    """
    for i, reach in enumerate(first.reach):
        if second.front[i] and reach >= first.strides[i] + first.front[i]:
            return True
        beyond = first.back[i] >= reach
        if spatial is not None:
            beyond = first.strides[i] * first.output(spatial)[i] - first.front[i] >= spatial[i]
        if second.back[i] and not beyond:
            return True
    return False


def compose(first: np.ndarray, second: np.ndarray, shapes: tuple[Window, Window]) -> np.ndarray:
    """Return the weight of ``composed(*shapes)`` from those of the two convolutions."""
    one, two = shapes
    target = composed(one, two)
    groups = target.groups
    inner = regroup(first, one.groups, groups).reshape(groups, one.outputs // groups, -1)
    outer = regroup(second, two.groups, groups).reshape(
        groups, two.outputs // groups, one.outputs // groups, *two.sizes
    )
    result = np.zeros((groups, target.outputs // groups, target.inputs // groups, *target.sizes))
    for place in np.ndindex(*two.sizes):
        index: Any = (..., *place)
        part = (outer[index] @ inner).reshape(*result.shape[:3], *one.sizes)
        starts = [p * s * d for p, s, d in zip(place, one.strides, two.dilations, strict=True)]
        result[_lattice(starts, one, target)] += part
    return result.reshape(target.shape)


def compose_bias(bias: np.ndarray, second: np.ndarray, groups: int) -> np.ndarray:
    """Return what the bias [inputs] of a convolution adds to each output of the one after it, padding apart.

    `second` is the weight of that, in `groups`.
    """
    whole = second.reshape(*second.shape[:2], -1).sum(axis=-1)
    outer = whole.reshape(groups, -1, second.shape[1])
    result: np.ndarray = (outer @ bias.reshape(groups, -1, 1)).reshape(-1)
    return result


def common(windows: Sequence[Window], spatial: Sequence[int] | None) -> Window | None:
    """Return the smallest window that holds all of `windows` on one input; None where they don't move alike.

    Channels and groups are those of the first one. The outputs must have one size for an input of sizes
    `spatial` or, where these aren't known (None), for every input.
    """
    first, rank = windows[0], range(len(windows[0].sizes))
    spare = [tuple(b - e for b, e in zip(each.back, each.last, strict=True)) for each in windows]
    alike = len(set(spare)) == 1
    if spatial is not None:
        alike = len({each.output(spatial) for each in windows}) == 1
    front = tuple(max(each.front[i] for each in windows) for i in rank)
    last = tuple(max(each.last[i] for each in windows) for i in rank)
    back = tuple(max(last[i] + min(each[i] for each in spare), 0) for i in rank)
    if not alike or any(each.strides != first.strides for each in windows):
        return None
    steps = tuple(
        _step(
            *(each.dilations[i] * (each.sizes[i] > 1) for each in windows),
            *(front[i] - each.front[i] for each in windows),
        )
        for i in rank
    )
    sizes = tuple((front[i] + last[i]) // steps[i] + 1 for i in rank)
    return replace(first, sizes=sizes, dilations=steps, front=front, back=back)


def widen(weight: np.ndarray, window: Window, target: Window) -> np.ndarray:
    """Return `weight`, of `window`, as one of the wider window `target`, zero elsewhere.

    The channels are the window's own, the groups the target's, which divide the window's.
    """
    grown = regroup(weight, window.groups, target.groups)
    result = np.zeros((*grown.shape[:2], *target.sizes))
    starts = [wide - own for wide, own in zip(target.front, window.front, strict=True)]
    result[_lattice(starts, window, target)] = grown
    return result


def regroup(weight: np.ndarray, groups: int, fewer: int) -> np.ndarray:
    """Return `weight` [outputs, inputs / groups, *sizes] as one in `fewer` groups, a divisor of `groups`."""
    if groups == fewer:
        return weight
    joined, sizes = groups // fewer, weight.shape[2:]
    outputs, inputs = weight.shape[0] // groups, weight.shape[1]
    result = np.zeros((fewer, joined, outputs, joined, inputs, *sizes))
    diagonal = np.arange(joined)
    blocks = weight.reshape(fewer, joined, outputs, inputs, *sizes)
    result[:, diagonal, :, diagonal] = np.moveaxis(blocks, 1, 0)
    return result.reshape(weight.shape[0], joined * inputs, *sizes)


def _step(*distances: int) -> int:
    """Return the greatest step whose multiples all `distances` are; 1 where all are zero."""
    return math.gcd(*distances) or 1


def _lattice(starts: Sequence[int], window: Window, target: Window) -> Any:
    """Return the index of the elements of `target` where those of `window` lie, the first at `starts`."""
    return (
        ...,
        *(
            slice(start // step, (start + reach) // step + 1, max(dilation // step, 1))
            for start, reach, dilation, step in zip(
                starts, window.reach, window.dilations, target.dilations, strict=True
            )
        ),
    )
