"""How much each unit matters: norms of its weights, or what its activations carry on calibration data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import onnx_ir as ir

from onnxcompress.base import Runtime
from onnxcompress.channels.find import Channels
from onnxcompress.channels.flow import Ride
from onnxcompress.layers import finite

SCORES = ("l1", "l2", "batchnorm", "random", "activation", "energy")
REDUCTIONS = ("mean", "max", "sum")
Feeds = Iterable[Mapping[str, np.ndarray]]


def score_weights(channels: Channels, kind: str, reduce: str) -> np.ndarray:
    """Return for each unit the norm of its weights, float64 [units], by `kind`: l1, l2 or batchnorm.

    `reduce` puts together what a unit has in several layers: mean, max or sum. Those of a layer are relative
    to the mean of the layer. "batchnorm" is the size of the scales, l2 where a unit has none. Source: Li et
    al., Pruning Filters for Efficient ConvNets, ICLR 2017; Liu et al., Network Slimming, ICCV 2017.
    """
    rides = list(channels.flow.rides.values())
    sizes = [(ride, norms(channels, ride, kind)) for ride in rides if ride.role == "out"]
    found = _collect(channels, sizes, reduce)
    if kind == "batchnorm":
        scales = [
            (ride, norms(channels, ride, "l1"))
            for ride in rides
            if ride.node.op_type == "BatchNormalization" and ride.place == 1
        ]
        better = _collect(channels, scales, reduce)
        found = np.where(np.isnan(better), found, better)
    return np.asarray(np.nan_to_num(found))


def score_activations(
    channels: Channels, data: Feeds, runtime: Runtime, kind: str, reduce: str
) -> np.ndarray:
    """Return for each unit what its channels carry where layers read them, float64 [units].

    "activation" is the mean magnitude; "energy" the mean square times the squared norm of the weights that
    read it: how much the outputs of the readers would change. Source: Luo et al., ThiNet, ICCV 2017.
    """
    flow = channels.flow
    names = {ride: name for ride in flow.rides.values() if (name := _feeds(ride)) is not None}
    power = 1 if kind == "activation" else 2
    if not names:
        return np.zeros(channels.units.count)
    totals: dict[str, np.ndarray] = {}
    runnable = runtime.prepare(channels.model, outputs=list(dict.fromkeys(names.values())))
    count = 0
    for feed in data:
        count += 1
        for name, array in runnable.run(feed).items():
            axis = _axis(channels, name)
            rest = tuple(each for each in range(array.ndim) if each != axis)
            mean = np.mean(np.abs(array, dtype=np.float64) ** power, axis=rest)
            totals[name] = totals.get(name, 0) + mean
    found = []
    for ride, name in names.items():
        carried = totals[name] / max(count, 1)
        weights = norms(channels, ride, "l2").reshape(-1) ** 2 if kind == "energy" else 1.0
        found.append((ride, (carried * weights).reshape(ride.labels.shape)))
    return np.asarray(np.nan_to_num(_collect(channels, found, reduce)))


def _feeds(ride: Ride) -> str | None:
    """Return the name of the activation that a layer reads as `ride` says; None where it doesn't."""
    if ride.role != "in" or ride.node.op_type in ("LSTM", "GRU", "RNN"):
        return None
    value = ride.node.inputs[0 if ride.place else 1]
    return value.name if value is not None else None


def _axis(channels: Channels, name: str) -> int:
    """Return the axis along which the channels of the value called `name` lie."""
    values: dict[str | None, ir.Value] = {value.name: value for value in channels.flow.arrays}
    labels = channels.flow.arrays[values[name]]
    return int(np.argmax(labels.shape))


def norms(channels: Channels, ride: Ride, kind: str) -> np.ndarray:
    """Return the norm of each slice of a constant, float64, shaped as the labels of its `ride`."""
    value = ride.node.inputs[ride.place]
    assert value is not None
    weight = finite(channels.flow.example.content(value), value.name).astype(np.float64, copy=False)
    if ride.role == "in" and len(ride.axes) > 1:  # each group reads channels of its own
        weight = weight.reshape(ride.labels.shape[0], -1, *weight.shape[1:])
        rest = (1, *range(3, weight.ndim))
    else:
        rest = tuple(axis for axis in range(weight.ndim) if axis not in ride.axes)
    return np.asarray(np.abs(weight).sum(axis=rest) if kind == "l1" else np.sqrt((weight**2).sum(axis=rest)))


def _collect(channels: Channels, norms: Iterable[tuple[Ride, np.ndarray]], reduce: str) -> np.ndarray:
    """Return the norms of each unit's slices, relative to their layer's mean, put together; NaN: none."""
    count = channels.units.count
    total, number = np.zeros(count), np.zeros(count)
    gather: Callable[..., None] = np.maximum.at if reduce == "max" else np.add.at
    for ride, values in norms:
        units = channels.units.of[ride.labels.ravel()]
        gather(total, units, values.ravel() / max(float(values.mean()), 1e-30))
        np.add.at(number, units, 1)
    total = total / np.maximum(number, 1) if reduce == "mean" else total
    return np.where(number > 0, total, np.nan)
