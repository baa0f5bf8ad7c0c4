"""Operators that slide a window over [N, C, *spatial], in numpy, for any number of spatial dimensions.

They loop over the places in the window, never over the elements of the input: what one place sees, of all
windows at once, is a strided view. They take every attribute of their operator, also those that say nothing
new (`kernel_shape` of a convolution) or matter to another output (`storage_order`). Source: the ONNX operator
specification.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

Ints = Sequence[int]
WIDTH = 64  # least inner dimension of the products a convolution is made of


def conv(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> np.ndarray:
    """Return Conv: `w` is [M, C / group, *kernel], `b` is [M]; the result is [N, M, *spatial], of x's dtype.

    Half precision is accumulated in float32. Raises ValueError where the shapes don't fit.
    """
    windows = Windows(x.shape[2:], w.shape[2:], strides, dilations, pads, auto_pad)
    if x.shape[1] != w.shape[1] * group or w.shape[0] % group:
        raise ValueError(unfit(x, w.shape, group))
    inner, area = w.shape[1], int(np.prod(windows.output))
    dtype = _accumulator(x)
    kernels = np.moveaxis(w.astype(dtype, copy=False), 1, -1).reshape(group, w.shape[0] // group, -1)
    y = np.zeros((x.shape[0], group, w.shape[0] // group, area), dtype)
    many = max(WIDTH // inner, 1)  # places to gather, so that the product is wide enough to be fast
    for image, target in zip(windows.pad(x.astype(dtype, copy=False), 0), y, strict=True):
        views = windows.views(image)
        for start in range(0, kernels.shape[-1], many * inner):
            seen = [view.reshape(group, inner, area) for view in islice(views, many)]
            columns = seen[0] if len(seen) == 1 else np.concatenate(seen, axis=1)
            target += kernels[..., start : start + columns.shape[1]] @ columns
    return _biased(y.reshape(x.shape[0], w.shape[0], *windows.output), b, x)


def conv_transpose(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints | None = None,
    group: int = 1,
    kernel_shape: Ints | None = None,
    output_padding: Ints | None = None,
    output_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> np.ndarray:
    """Return ConvTranspose: `w` is [C, M / group, *kernel], `b` is [M]; the result is [N, M, *spatial].

    Half precision is accumulated in float32. Raises ValueError where the shapes don't fit.
    """
    if x.shape[1] != w.shape[0] or w.shape[0] % group:
        raise ValueError(unfit(x, w.shape, group))
    sizes, rank = x.shape[2:], x.ndim - 2
    steps, gaps = strides or [1] * rank, dilations or [1] * rank
    reach = [(k - 1) * gap + 1 for k, gap in zip(w.shape[2:], gaps, strict=True)]
    more = output_padding or [0] * rank
    full = [s * (n - 1) + r + m for s, n, r, m in zip(steps, sizes, reach, more, strict=True)]
    front = [0] * rank if pads is None else list(pads[:rank])
    back = [0] * rank if pads is None else list(pads[rank:])
    if output_shape is None and auto_pad.startswith("SAME"):
        output_shape = [n * s for n, s in zip(sizes, steps, strict=True)]
    if output_shape is not None:
        total = [max(have - wanted, 0) for have, wanted in zip(full, output_shape[-rank:], strict=True)]
        full = [max(have, wanted) for have, wanted in zip(full, output_shape[-rank:], strict=True)]
        front = [t // 2 if auto_pad == "SAME_UPPER" else t - t // 2 for t in total]
        back = [t - f for t, f in zip(total, front, strict=True)]
    dtype = _accumulator(x)
    inputs = x.astype(dtype, copy=False).reshape(x.shape[0], group, x.shape[1] // group, -1)
    kernels = w.astype(dtype, copy=False).reshape(group, w.shape[0] // group, *w.shape[1:])
    y = np.zeros((x.shape[0], group * w.shape[1], *full), dtype)
    for place in np.ndindex(*w.shape[2:]):
        index: Any = (..., *place)
        product = kernels[index].swapaxes(-1, -2) @ inputs  # [N, group, M / group, area of x]
        starts = [at * gap for at, gap in zip(place, gaps, strict=True)]
        y[_spread(starts, sizes, steps)] += product.reshape(*y.shape[:2], *sizes)
    cut: Any = (..., *(slice(f, n - b) for f, n, b in zip(front, full, back, strict=True)))
    return _biased(y[cut], b, x)


def max_pool(
    x: np.ndarray,
    *,
    kernel_shape: Ints,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Ints | None = None,
    pads: Ints | None = None,
    storage_order: int = 0,
    strides: Ints | None = None,
) -> np.ndarray:
    """Return the first output of MaxPool; padding never wins."""
    windows = Windows(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad, bool(ceil_mode))
    lowest = np.iinfo(x.dtype).min if x.dtype.kind in "iu" else -np.inf
    y = np.full((*x.shape[:2], *windows.output), lowest, x.dtype)
    for view in windows.views(windows.pad(x, lowest)):
        np.maximum(y, view, out=y)
    return y


def average_pool(
    x: np.ndarray,
    *,
    kernel_shape: Ints,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> np.ndarray:
    """Return AveragePool; what a window of `ceil_mode` reaches beyond the padding never counts."""
    windows = Windows(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad, bool(ceil_mode))
    dtype = _accumulator(x)
    values = windows.pad(x.astype(dtype, copy=False), 0)
    counted = windows.pad(np.ones((1, 1, *x.shape[2:]), dtype), 1 if count_include_pad else 0, beyond=0)
    total = np.zeros((*x.shape[:2], *windows.output), dtype)
    count = np.zeros((1, 1, *windows.output), dtype)
    for value, one in zip(windows.views(values), windows.views(counted), strict=True):
        total += value
        count += one
    return (total / count).astype(x.dtype, copy=False)


def _accumulator(x: np.ndarray) -> np.dtype:
    """Return the dtype to add up values of `x` in: its own, for half precision float32."""
    return x.dtype if x.dtype.kind in "iu" or x.dtype.itemsize > 2 else np.dtype(np.float32)


def _biased(y: np.ndarray, b: np.ndarray | None, x: np.ndarray) -> np.ndarray:
    """Return `y` plus the bias of its channels, in the dtype of `x`."""
    if b is not None:
        y = y + b.astype(y.dtype, copy=False).reshape(-1, *[1] * (x.ndim - 2))
    return np.ascontiguousarray(y, x.dtype)


def unfit(x: np.ndarray, shape: Ints, group: int) -> str:
    """Return what is wrong with a convolution of `x` with a weight of `shape`."""
    return f"weight {list(shape)} in {group} groups does not fit an input of {x.shape[1]} channels"


def _spread(starts: Ints, counts: Ints, steps: Ints) -> Any:
    """Return the index that takes, in the last axes, `counts` elements from `starts` on, `steps` apart."""
    spans = zip(starts, counts, steps, strict=True)
    return (..., *(slice(start, start + (count - 1) * step + 1, step) for start, count, step in spans))


class Windows:
    """Where windows lie on an input of size `spatial`; `output` is how many there are in each dimension."""

    def __init__(
        self,
        spatial: Ints,
        kernel: Ints,
        strides: Ints | None,
        dilations: Ints | None,
        pads: Ints | None,
        auto_pad: str,
        ceil: bool = False,
    ) -> None:
        rank = len(spatial)
        self.kernel = tuple(kernel)
        self.strides = tuple(strides or [1] * rank)
        self.dilations = tuple(dilations or [1] * rank)
        self.reach = reach = [(k - 1) * gap + 1 for k, gap in zip(kernel, self.dilations, strict=True)]
        lines = zip(spatial, reach, self.strides, strict=True)
        if auto_pad.startswith("SAME"):
            same = [_same(*line, upper=auto_pad == "SAME_UPPER") for line in lines]
            self.begins, self.ends = ([each[side] for each in same] for side in (0, 1))
            self.output = tuple(-(-size // step) for size, step in zip(spatial, self.strides, strict=True))
        else:
            pads = [0] * (2 * rank) if pads is None or auto_pad == "VALID" else pads
            self.begins, self.ends = list(pads[:rank]), list(pads[rank:])
            sides = zip(self.begins, self.ends, strict=True)
            self.output = tuple(_count(*line, *side, ceil) for line, side in zip(lines, sides, strict=True))
        if min(self.output, default=1) < 1:
            raise ValueError(f"a kernel of {list(kernel)} does not fit an input of {list(spatial)}")
        padded = [n + begin + end for n, begin, end in zip(spatial, self.begins, self.ends, strict=True)]
        needed = [(n - 1) * step + r for n, step, r in zip(self.output, self.strides, reach, strict=True)]
        self.beyond = [max(need - have, 0) for need, have in zip(needed, padded, strict=True)]

    def pad(self, x: np.ndarray, value: float, beyond: float | None = None) -> np.ndarray:
        """Return `x` padded with `value`, and with `beyond` (or `value`) where windows reach farther."""
        none = [(0, 0)] * (x.ndim - len(self.kernel))
        if any(self.begins) or any(self.ends):
            widths = list(zip(self.begins, self.ends, strict=True))
            x = np.pad(x, none + widths, constant_values=value)
        if any(self.beyond):
            more = [(0, width) for width in self.beyond]
            x = np.pad(x, none + more, constant_values=value if beyond is None else beyond)
        return x

    def views(self, padded: np.ndarray) -> Iterator[np.ndarray]:
        """Yield what each place in the window sees of the padded input, a view [..., *output]."""
        for place in np.ndindex(*self.kernel):
            starts = [at * gap for at, gap in zip(place, self.dilations, strict=True)]
            yield padded[_spread(starts, self.output, self.strides)]

    def seen(self, padded: np.ndarray) -> np.ndarray:
        """Return what all places in the window see of the padded input, a view [..., *output, *kernel]."""
        axes = tuple(range(-len(self.kernel), 0))
        every = np.lib.stride_tricks.sliding_window_view(padded, self.reach, axes)
        lines = zip(self.output, self.strides, strict=True)
        firsts = [slice(0, (count - 1) * step + 1, step) for count, step in lines]
        index: Any = (..., *firsts, *(slice(None, None, gap) for gap in self.dilations))
        view: np.ndarray = every[index]
        return view


def _same(size: int, reach: int, step: int, upper: bool) -> tuple[int, int]:
    """Return the padding at both ends with which windows `step` apart yield ceil(size / step) values."""
    total = max((-(-size // step) - 1) * step + reach - size, 0)
    begin = total // 2 if upper else total - total // 2
    return begin, total - begin


def _count(size: int, reach: int, step: int, begin: int, end: int, ceil: bool) -> int:
    """Return how many windows there are; one that would start in the padding at the end doesn't count."""
    room = size + begin + end - reach
    if not ceil:
        return room // step + 1
    count = -(-room // step) + 1
    return count - 1 if (count - 1) * step >= size + begin else count
