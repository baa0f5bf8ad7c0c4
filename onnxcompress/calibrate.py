"""Statistics of activations, streamed: which range every value stays in on calibration data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from onnxcompress.base import Runtime
from onnxcompress.edit import Edit
from onnxcompress.errors import CompressError, UsageError
from onnxcompress.histogram import Histogram, entropy_range, percentile_range
from onnxcompress.layers import constant
from onnxcompress.model import clone

if TYPE_CHECKING:
    from onnxcompress.data import Data

METHODS = ("min-max", "percentile", "entropy")
Range = tuple[float, float]
_NEVER_NEGATIVE = ("Relu", "Sigmoid", "HardSigmoid", "Softmax", "Softplus", "Exp", "Abs", "Sqrt")
_MOVES = (
    "MaxPool",
    "Concat",
    "Reshape",
    "Flatten",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Identity",
    "GlobalAveragePool",
)
_STRETCH = 32  # calibration runs between two reports of progress


def calibrate(
    model: ir.Model,
    names: Sequence[str],
    data: Data,
    runtime: Runtime,
    method: str = "min-max",
    *,
    percentile: float = 99.999,
    progress: Callable[[int, int | None, str], None] | None = None,
) -> dict[str, Range]:
    """Return the lowest and highest number that matter of each value of `names` when `model` runs on `data`.

    `names` are float values of the main graph. Ranges hold zero. "min-max" takes all numbers, "percentile"
    leaves out ``100 - percentile`` percent, half at either end, "entropy" takes the range whose 256 levels
    keep most information. No activation outlives its run. UsageError where there are no data; CompressError
    where a value gets infinite.
    """

    def feeds() -> Iterator[dict[str, np.ndarray]]:
        done = 0
        for done, feed in enumerate(data, 1):
            yield feed
            if progress:
                progress(done, data.count, "calibrating")
        if not done:
            raise UsageError("calibration: there are no data, expected at least one sample")

    if method == "min-max":
        return _extremes(model, names, feeds(), runtime)
    histograms = {name: Histogram() for name in names}
    runnable = runtime.prepare(model, outputs=list(names))
    for feed in feeds():
        outputs = runnable.run(feed)
        for name in names:
            _count(histograms[name], outputs.pop(name), name)
    if method == "entropy":
        return {name: entropy_range(each.counts, each.width) for name, each in histograms.items()}
    return {name: percentile_range(each.counts, each.width, percentile) for name, each in histograms.items()}


def _count(histogram: Histogram, values: np.ndarray, name: str) -> None:
    try:
        histogram.add(values)
    except ValueError:
        raise CompressError(_endless(name)) from None


def _endless(name: str) -> str:
    return f"calibration: {name} holds NaN or infinity on the calibration data, expected finite numbers"


def _extremes(
    model: ir.Model, names: Sequence[str], feeds: Iterator[dict[str, np.ndarray]], runtime: Runtime
) -> dict[str, Range]:
    """Return the lowest and highest number of each value, or zero; only those two leave the engine."""
    observed = clone(model)
    values = {value.name: value for value in [*observed.graph.inputs, *_made(observed.graph)]}
    edit = Edit(observed)
    highest = {name: _reduced(edit, values[name], "ReduceMax") for name in names}
    lowest = {
        name: _reduced(edit, values[name], "ReduceMin") for name in names if not never_negative(values[name])
    }
    wanted = [*highest.values(), *lowest.values()]
    runnable = runtime.prepare(observed, outputs=wanted)
    ends = np.zeros(len(wanted))
    low, high = np.minimum, np.maximum
    for feed in feeds:
        outputs = runnable.run(feed)
        found = np.array([outputs[name].reshape(()) for name in wanted], np.float64)
        if not np.isfinite(found).all():
            worst = int(np.flatnonzero(~np.isfinite(found))[0])
            raise CompressError(_endless([*highest, *lowest][worst]))
        ends[: len(highest)] = high(ends[: len(highest)], found[: len(highest)])
        ends[len(highest) :] = low(ends[len(highest) :], found[len(highest) :])
    by_output = dict(zip(wanted, ends.tolist(), strict=True))
    return {name: (by_output.get(lowest.get(name, ""), 0.0), by_output[highest[name]]) for name in names}


def _made(graph: ir.Graph) -> Iterator[ir.Value]:
    for node in graph:
        yield from node.outputs


def _reduced(edit: Edit, value: ir.Value, op: str) -> str:
    """Add nodes that reduce `value` to one number by `op`; return that number's name.

    GlobalMaxPool goes first where it can: onnxruntime computes it in the layout its convolutions leave.
    """
    graph = edit.model.graph
    last = value
    if op == "ReduceMax" and value.shape is not None and len(value.shape) == 4:
        pool = edit.node("GlobalMaxPool", [last], f"{value.name}_maxima")
        graph.append(pool)
        last = pool.outputs[0]
    node = edit.node(op, [last], f"{value.name}_{op}", {"keepdims": 0})
    graph.append(node)
    name = node.outputs[0].name
    assert name is not None
    return name


def never_negative(value: ir.Value) -> bool:
    """Return whether the operators that make `value` leave no number below zero."""
    node = value.producer()
    if node is None or node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == "Clip":
        tensor = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        return tensor is not None and bool((tensor.numpy() >= 0).all())
    if node.op_type in _MOVES:
        places = None if node.op_type == "Concat" else 1
        return all(each is not None and never_negative(each) for each in node.inputs[:places])
    return node.op_type in _NEVER_NEGATIVE
