"""Second moments of what layers read, streamed over calibration data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from onnxcompress.base import Context, Runnable
from onnxcompress.errors import CompressError, UsageError
from onnxcompress.geometry import Geometry
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
    """The second moments of the windows of a layer, and where these are too wide of what it makes of them.

    One of `inputs` [inputs * kernel, same] and `outputs` [outputs, same], float64, is there.
    """

    inputs: np.ndarray | None = None
    outputs: np.ndarray | None = None


def second_moments(
    model: ir.Model, layers: Mapping[Layer, Geometry], context: Context
) -> Iterator[dict[Layer, Moments]]:
    """Yield the moments of `layers`, nodes of the main graph of `model`, on the context's calibration data.

    They come a few layers at a time, as many as fit in memory; `model` is run anew for each yield and must
    not be changed in between. A hundredth of the inputs' mean square is added as white noise, so that they
    are positive definite. UsageError where there are no data; CompressError where inputs are not finite.
    """
    batch: dict[Layer, Geometry] = {}
    size = 0
    for layer, geometry in layers.items():
        width = 8 * _width(layer) ** 2
        if batch and size + width > BUDGET:
            yield _streamed(model, batch, context)
            batch, size = {}, 0
        batch[layer], size = geometry, size + width
    if batch:
        yield _streamed(model, batch, context)


def mean_squares(
    model: ir.Model, layers: Mapping[Layer, Geometry], context: Context
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
            if moments.inputs is not None:
                found[layer] = np.diag(moments.inputs).reshape(layer.shape[1:])
    return found


@dataclass
class _Sum:
    """Running sums of a layer: of outer products, of squares, and of rows; `weight` is set for a wide one."""

    products: np.ndarray
    weight: np.ndarray | None
    squares: float = 0.0
    rows: int = 0

    def add(self, rows: np.ndarray) -> None:
        self.squares += float(np.vdot(rows, rows))
        self.rows += len(rows)
        seen = rows if self.weight is None else rows @ self.weight.T
        self.products += seen.T @ seen

    def moments(self) -> Moments:
        inputs = self.products.shape[0] if self.weight is None else self.weight.shape[1]
        noise = _RIDGE * self.squares / inputs
        noise = noise if noise > 0 else 1.0  # all inputs are zero: as if white
        if self.weight is None:
            return Moments(inputs=(self.products + noise * np.eye(inputs)) / self.rows)
        return Moments(outputs=(self.products + noise * (self.weight @ self.weight.T)) / self.rows)


def _streamed(model: ir.Model, layers: Mapping[Layer, Geometry], context: Context) -> dict[Layer, Moments]:
    data, runtime = context.calibration, context.runtime
    assert data is not None
    assert runtime is not None
    sums = {layer: _Sum(np.zeros((_width(layer),) * 2), _wide_weight(layer)) for layer in layers}
    names = {layer: layer.node.inputs[0].name or "" for layer in layers if layer.node.inputs[0]}
    runnable = runtime.patient().prepare(model, outputs=list(dict.fromkeys(names.values())))
    draw = np.random.default_rng(context.seed)
    for values in _values(runnable, data, context):
        for layer, geometry in layers.items():
            rows = windows(values[names[layer]], geometry, draw)
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


def windows(values: np.ndarray, geometry: Geometry, draw: np.random.Generator) -> np.ndarray:
    """Return at most ROWS of the windows of `geometry` on `values`, drawn anew where there are more.

    `values` are [samples, channels, *spatial], the result is [windows, channels * kernel]; where the geometry
    has no axes they are [..., channels] and the rows of the last axis.
    """
    if not geometry.kernel:
        rows = values.reshape(-1, values.shape[-1])
        taken = draw.choice(len(rows), ROWS, replace=False) if len(rows) > ROWS else slice(None)
        return rows[taken].astype(np.float32, copy=False)
    pads = (*geometry.begins, *geometry.ends)
    where = Windows(values.shape[2:], geometry.kernel, geometry.strides, geometry.dilations, pads, "NOTSET")
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
    weight = np.moveaxis(layer.value(), layer.channel_axes[-1], 0)
    return weight.reshape(len(weight), -1).astype(np.float32, copy=False)
