"""Mean and covariance of what layers read, streamed over calibration data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from onnxcompress.base import Context, Runnable
from onnxcompress.convolve import Window
from onnxcompress.errors import CompressError, UsageError
from onnxcompress.geometry import oriented
from onnxcompress.layers import Layer
from onnxcompress.windows import Windows

if TYPE_CHECKING:
    from onnxcompress.data import Data

WIDEST = 4608  # inputs of a layer whose moments are kept; of wider ones those of the outputs are
BUDGET = 1 << 30  # bytes of moments held at a time: more layers are done in more runs
ROWS = 256  # windows looked at in one feed
_RIDGE = 0.01  # of white inputs in the moments: few samples say nothing of most directions


@dataclass(frozen=True)
class Moments:
    """Mean [inputs * kernel] and covariance of the windows of a layer, float64; none where it has no data.

    Of the covariances `inputs` [inputs * kernel, same] and `outputs` [outputs, same], that of what a layer
    makes of windows too wide for the other, one is there.
    """

    mean: np.ndarray | None = None
    inputs: np.ndarray | None = None
    outputs: np.ndarray | None = None

    def about_zero(self, weight: np.ndarray) -> Moments:
        """Return the second moments as they are without subtracting the mean; of the layer's own `weight`."""
        if self.mean is None:
            return self
        if self.inputs is not None:
            return Moments(inputs=self.inputs + np.outer(self.mean, self.mean))
        made = weight.reshape(len(weight), -1) @ self.mean
        return Moments(outputs=self.outputs + np.outer(made, made))


def second_moments(
    model: ir.Model, layers: Mapping[Layer, Window], context: Context
) -> Iterator[dict[Layer, Moments]]:
    """Yield the moments of `layers`, nodes of the main graph of `model`, on the context's calibration data.

    They come a few layers at a time, as many as fit in memory; `model` is run anew for each yield and must
    not be changed in between. A hundredth of the inputs' variance is added as white noise, so that they are
    positive definite. UsageError where there are no data; CompressError where inputs are not finite.
    """
    batch: dict[Layer, Window] = {}
    size = 0
    for layer, window in layers.items():
        width = 8 * _width(layer) ** 2
        if batch and size + width > BUDGET:
            yield _streamed(model, batch, context)
            batch, size = {}, 0
        batch[layer], size = window, size + width
    if batch:
        yield _streamed(model, batch, context)


def mean_squares(
    model: ir.Model, layers: Mapping[Layer, Window], context: Context
) -> dict[Layer, np.ndarray]:
    """Return the mean square of each input of `layers` at each place of a window, float64 [inputs, *kernel].

    As :func:`second_moments`, but of layers with too many inputs, and of all where there are no data, they
    are ones.
    """
    found = {layer: np.ones(layer.shape[1:]) for layer in layers}
    if context.calibration is None or context.runtime is None:
        return found
    for batch in second_moments(model, layers, context):
        for layer, moments in batch.items():
            if moments.inputs is not None and moments.mean is not None:
                found[layer] = (np.diag(moments.inputs) + moments.mean**2).reshape(layer.shape[1:])
    return found


@dataclass
class _Sum:
    """Running sums of a layer, of what is `shift` less: of outer products, values, squares, and rows.

    The shift is the mean of the first rows, so that a large mean costs no digits; `weight` is set for a wide
    layer.
    """

    products: np.ndarray
    weight: np.ndarray | None
    shift: np.ndarray | None = None
    values: np.ndarray | float = 0.0
    squares: float = 0.0
    rows: int = 0

    def add(self, rows: np.ndarray) -> None:
        self.shift = rows.mean(axis=0) if self.shift is None else self.shift
        rows = rows - self.shift
        self.values += rows.sum(axis=0, dtype=np.float64)
        self.squares += float(np.vdot(rows, rows))
        self.rows += len(rows)
        seen = rows if self.weight is None else rows @ self.weight.T
        self.products += seen.T @ seen

    def moments(self) -> Moments:
        assert self.shift is not None
        off = np.asarray(self.values) / self.rows
        variance = self.squares / self.rows - float(np.vdot(off, off))
        noise = _RIDGE * variance / len(off) if variance > 0 else 1.0  # constant inputs count as white
        mean, products = self.shift + off, self.products / self.rows
        if self.weight is None:
            return Moments(mean, inputs=products - np.outer(off, off) + noise * np.eye(len(off)))
        made, white = self.weight @ off, self.weight @ self.weight.T
        return Moments(mean, outputs=products - np.outer(made, made) + noise * white)


def _streamed(model: ir.Model, layers: Mapping[Layer, Window], context: Context) -> dict[Layer, Moments]:
    data, runtime = context.calibration, context.runtime
    assert data is not None
    assert runtime is not None
    sums = {layer: _Sum(np.zeros((_width(layer),) * 2), _wide_weight(layer)) for layer in layers}
    names = {layer: layer.node.inputs[0].name or "" for layer in layers if layer.node.inputs[0]}
    runnable = runtime.patient().prepare(model, outputs=list(dict.fromkeys(names.values())))
    draw = np.random.default_rng(context.seed)
    for values in _values(runnable, data, context):
        for layer, window in layers.items():
            rows = windows(values[names[layer]], window, draw)
            if not np.isfinite(rows).all():
                raise CompressError(
                    f"calibration: {names[layer]} holds NaN or infinity, expected finite numbers"
                )
            sums[layer].add(rows)
    return {layer: each.moments() for layer, each in sums.items()}


def _values(runnable: Runnable, data: Data, context: Context) -> Iterator[dict[str, np.ndarray]]:
    done = 0
    for done, feed in enumerate(data, 1):
        yield runnable.run(feed)
        context.progress(done, data.count, "calibrating")
    if not done:
        raise UsageError("calibration: there are no data, expected at least one sample")


def windows(values: np.ndarray, window: Window, draw: np.random.Generator) -> np.ndarray:
    """Return at most ROWS of the places of `window` on `values`, drawn anew where there are more.

    `values` are [samples, channels, *spatial], the result is [windows, channels * kernel]; where the window
    has no axes they are [..., channels] and the rows of the last axis.
    """
    if not window.sizes:
        rows = values.reshape(-1, values.shape[-1])
        taken = draw.choice(len(rows), ROWS, replace=False) if len(rows) > ROWS else slice(None)
        return rows[taken].astype(np.float32, copy=False)
    pads = window.front + window.back
    where = Windows(values.shape[2:], window.sizes, window.strides, window.dilations, pads, "NOTSET")
    places = (len(values), *where.output)
    count = int(np.prod(places))
    taken = draw.choice(count, ROWS, replace=False) if count > ROWS else np.arange(count)
    sample, *at = np.unravel_index(taken, places)
    index: Any = (sample, slice(None), *at)
    seen = [view[index] for view in where.views(where.pad(values, 0))]  # each [windows, channels]
    return np.stack(seen, axis=-1).reshape(len(taken), -1).astype(np.float32, copy=False)


def _inputs(layer: Layer) -> int:
    outputs = layer.shape[layer.channel_axes[-1]]
    return layer.size // outputs


def _width(layer: Layer) -> int:
    inputs = _inputs(layer)
    return inputs if inputs <= WIDEST else layer.shape[layer.channel_axes[-1]]


def _wide_weight(layer: Layer) -> np.ndarray | None:
    """Return the weight [outputs, inputs] of a layer with too many inputs, None for others."""
    if _inputs(layer) <= WIDEST:
        return None
    weight = oriented(layer)
    return weight.reshape(len(weight), -1).astype(np.float32, copy=False)
