"""How much each unit matters: norms of its weights, or what its activations carry on calibration data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxcompress.base import Runtime
from onnxcompress.channels.elimination import eliminate
from onnxcompress.channels.find import Channels
from onnxcompress.channels.flow import Ride
from onnxcompress.edit import Edit
from onnxcompress.layers import finite
from onnxcompress.model import clone
from onnxcompress.observing import by_name, pooled, watched

SCORES = ("l1", "l2", "batchnorm", "random", "activation", "energy", "residual")
REDUCTIONS = ("mean", "max", "sum")
MOST_TOGETHER = 1024  # channels that are weighed against one another
Feeds = Iterable[Mapping[str, np.ndarray]]


def score_weights(channels: Channels, kind: str, reduce: str) -> np.ndarray:
    """Return for each unit the norm of its weights, float64 [units], by `kind`: l1, l2 or batchnorm.

    `reduce` puts together what a unit has in several layers: mean, max or sum. Those of a layer are relative
    to the mean of the layer. "batchnorm" is the size of the scales, l2 where a unit has none. Source: Li et
    al., Pruning Filters for Efficient ConvNets, ICLR 2017; Liu et al., Network Slimming, ICCV 2017.
    """
    rides = list(channels.flow.rides.values())
    sizes = [(ride, norms(channels, ride, kind)) for ride in rides if ride.role == "out"]
    found = collect(channels, sizes, reduce)
    if kind == "batchnorm":
        scales = [
            (ride, norms(channels, ride, "l1"))
            for ride in rides
            if ride.node.op_type == "BatchNormalization" and ride.place == 1
        ]
        better = collect(channels, scales, reduce)
        found = np.where(np.isnan(better), found, better)
    return np.asarray(np.nan_to_num(found))


def score_activations(
    channels: Channels, data: Feeds, runtime: Runtime, kind: str, reduce: str
) -> np.ndarray:
    """Return for each unit what its channels carry where layers read them, float64 [units].

    "activation" is the mean magnitude; "energy" the mean square times the squared norm of the weights that
    read it: how much the outputs of the readers would change; "residual" the share of the readers' variance
    that the channels left can't make up for, when they go one by one. Where more than MOST_TOGETHER channels
    are read together it is taken for each as if all others stayed. Source: Luo et al., ThiNet, ICCV 2017.
    """
    names = {ride: name for ride in channels.flow.rides.values() if (name := _feeds(ride)) is not None}
    if not names:
        return np.zeros(channels.units.count)
    statistics: dict[str, _Moments] = {}
    runnable = runtime.prepare(channels.model, outputs=list(dict.fromkeys(names.values())))
    for feed in data:
        for name, array in runnable.run(feed).items():
            values = np.moveaxis(array, _axis(channels, name), -1)
            values = values.reshape(-1, values.shape[-1])
            together = kind == "residual" and values.shape[1] <= MOST_TOGETHER
            statistics.setdefault(name, _Moments(values.shape[1], together)).add(values)
    rides: dict[str, list[Ride]] = {}
    for ride, name in names.items():
        rides.setdefault(name, []).append(ride)
    if kind == "residual":
        found = [(each[0], _residuals(channels, each, statistics[name])) for name, each in rides.items()]
        return np.asarray(np.nan_to_num(collect(channels, found, reduce, relative=False)))
    found = []
    for ride, name in names.items():
        carried = getattr(statistics[name], kind)()
        weights = 1.0 if kind != "energy" else norms(channels, ride, "l2").reshape(-1) ** 2
        found.append((ride, (carried * weights).reshape(ride.labels.shape)))
    return np.asarray(np.nan_to_num(collect(channels, found, reduce)))


def largest_activations(channels: Channels, data: Feeds, runtime: Runtime) -> np.ndarray:
    """Return for each unit the largest magnitude its channels have where layers read them, float64 [units].

    Relative to the mean of those of the same activation.
    """
    names = {ride: name for ride in channels.flow.rides.values() if (name := _feeds(ride)) is not None}
    if not names:
        return np.zeros(channels.units.count)
    observed = clone(channels.model)
    edit, known = Edit(observed), by_name(observed.graph)
    outputs = {name: pooled(edit, known[name], "Magnitude") for name in dict.fromkeys(names.values())}
    axes = {name: _axis(channels, name) for name in outputs}
    most: dict[str, np.ndarray | float] = dict.fromkeys(outputs, 0.0)
    for arrays in watched(observed, list(outputs.values()), data, runtime):
        for name, output in outputs.items():
            rows = np.moveaxis(np.abs(arrays[output]), axes[name], -1)
            most[name] = np.maximum(most[name], rows.reshape(-1, rows.shape[-1]).max(axis=0, initial=0))
    found = [(ride, np.reshape(most[name], ride.labels.shape)) for ride, name in names.items()]
    return np.asarray(np.nan_to_num(collect(channels, found, "max")))


def _residuals(channels: Channels, rides: Sequence[Ride], moments: _Moments) -> np.ndarray:
    """Return what the `rides` that read one activation lose with each of its channels, as their labels."""
    variance, covariance = moments.variance(), moments.covariance()
    if covariance is None:
        squares = sum(norms(channels, ride, "l2").reshape(-1) ** 2 for ride in rides)
        lost = squares * variance
        return np.asarray(lost / max(lost.sum(), 1e-30)).reshape(rides[0].labels.shape)
    products = np.zeros_like(covariance)
    for ride in rides:
        own = _products(channels, ride)
        products += own / max(float(np.vdot(own, covariance)), 1e-30)
    return eliminate(covariance, products).reshape(rides[0].labels.shape)


def _products(channels: Channels, ride: Ride) -> np.ndarray:
    """Return the products of the weights that read each two channels as `ride` says, summed, [n, n]."""
    value = ride.node.inputs[ride.place]
    assert value is not None
    weight = finite(channels.flow.example.content(value), value.name).astype(np.float64, copy=False)
    groups = ride.labels.shape[0] if len(ride.axes) > 1 else 1
    inner = ride.labels.size // groups
    rows = np.moveaxis(weight, ride.axes[-1], -1).reshape(groups, -1, inner)
    found = np.zeros((groups, inner, groups, inner))
    every = np.arange(groups)
    found[every, :, every] = rows.swapaxes(1, 2) @ rows
    return found.reshape(ride.labels.size, -1)


class _Moments:
    """Running sums over the values of `size` channels; with `together`, of their products as well."""

    def __init__(self, size: int, together: bool) -> None:
        self.count = 0
        self.sum, self.magnitude, self.square = np.zeros((3, size))
        self.products = np.zeros((size, size)) if together else None

    def add(self, values: np.ndarray) -> None:
        """Take in `values` [any number, size]."""
        self.count += len(values)
        self.sum += values.sum(axis=0, dtype=np.float64)
        self.magnitude += np.abs(values).sum(axis=0, dtype=np.float64)
        self.square += np.einsum("nc,nc->c", values, values, dtype=np.float64)
        if self.products is not None:
            self.products += values.T @ values

    def activation(self) -> np.ndarray:
        """Return the mean magnitudes, [size]."""
        return np.asarray(self.magnitude / max(self.count, 1))

    def energy(self) -> np.ndarray:
        """Return the mean squares, [size]."""
        return np.asarray(self.square / max(self.count, 1))

    def variance(self) -> np.ndarray:
        """Return the variances, [size]."""
        return np.asarray(self.energy() - (self.sum / max(self.count, 1)) ** 2)

    def covariance(self) -> np.ndarray | None:
        """Return the covariance, [size, size]; None where products weren't summed up."""
        if self.products is None:
            return None
        mean = self.sum / max(self.count, 1)
        return np.asarray(self.products / max(self.count, 1) - np.outer(mean, mean))


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
    """Return the norm of each slice of a constant, float64, shaped as the labels of its `ride`.

    `kind` is l1, l2 or largest, the largest magnitude.
    """
    value = ride.node.inputs[ride.place]
    assert value is not None
    weight = finite(channels.flow.example.content(value), value.name).astype(np.float64, copy=False)
    if ride.role == "in" and ride.axes == (0, 1):  # each group reads channels of its own
        weight = weight.reshape(ride.labels.shape[0], -1, *weight.shape[1:])
        rest = (1, *range(3, weight.ndim))
    else:
        rest = tuple(axis for axis in range(weight.ndim) if axis not in ride.axes)
    if kind == "largest":
        return np.asarray(np.abs(weight).max(axis=rest, initial=0))
    return np.asarray(np.abs(weight).sum(axis=rest) if kind == "l1" else np.sqrt((weight**2).sum(axis=rest)))


def collect(
    channels: Channels, norms: Iterable[tuple[Ride, np.ndarray]], reduce: str, relative: bool = True
) -> np.ndarray:
    """Return the norms of each unit's slices put together, `relative` to their layer's mean; NaN: none."""
    count = channels.units.count
    total, number = np.zeros(count), np.zeros(count)
    gather: Callable[..., None] = np.maximum.at if reduce == "max" else np.add.at
    for ride, values in norms:
        units = channels.units.of[ride.labels.ravel()]
        size = max(float(values.mean()), 1e-30) if relative else 1.0
        gather(total, units, values.ravel() / size)
        np.add.at(number, units, 1)
    total = total / np.maximum(number, 1) if reduce == "mean" else total
    return np.where(number > 0, total, np.nan)
