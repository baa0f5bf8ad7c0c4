"""Watching what a model computes on data: reduced where it is computed, runs side by side."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import onnx_ir as ir

from onnxcompress.base import Runtime
from onnxcompress.edit import Edit
from onnxcompress.layers import constant

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


def watched(
    model: ir.Model,
    outputs: Sequence[str],
    feeds: Iterable[Mapping[str, np.ndarray]],
    runtime: Runtime,
    *,
    apart: bool = False,
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the values called `outputs` of `model` for each of `feeds`, in order.

    Runs lie side by side where `runtime` can do so, which takes less time in all, and memory for what they
    compute and return; `apart`, they come one by one.
    """
    engine, abreast = (runtime.patient(), 1) if apart else runtime.abreast()
    runnable = engine.prepare(model, outputs=outputs)
    if abreast == 1:
        yield from map(runnable.run, feeds)
        return
    waiting: deque[Future[dict[str, np.ndarray]]] = deque()
    with ThreadPoolExecutor(abreast) as pool:
        for feed in feeds:
            waiting.append(pool.submit(runnable.run, feed))
            if len(waiting) > abreast:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def by_name(graph: ir.Graph) -> dict[str, ir.Value]:
    """Return the inputs of `graph` and what its nodes make, by name."""
    made = (value for node in graph for value in node.outputs)
    return {value.name or "": value for value in (*graph.inputs, *made)}


def is_image(value: ir.Value) -> bool:
    """Return whether channels of `value` lie along its second axis: a convolution reads it, maybe padded."""
    return any(
        node.op_type == "Conv" or (node.op_type == "Pad" and is_image(node.outputs[0]))
        for node in value.consumers()
    )


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


def pooled(edit: Edit, value: ir.Value, kind: str) -> str:
    """Return the name of `value`, or that of its channels pooled to one number each where it is an image.

    `kind` is "Max" or "Average"; "Magnitude" pools to the largest magnitudes.
    """
    if not is_image(value):
        return value.name or ""
    source = value
    if kind == "Magnitude" and not never_negative(value):
        source = _appended(edit, "Abs", value, "magnitudes")
    op = "Average" if kind == "Average" else "Max"
    return _appended(edit, f"Global{op}Pool", source, kind).name or ""


def reduced(edit: Edit, value: ir.Value, op: str) -> str:
    """Add nodes that reduce `value` to one number by `op`; return that number's name.

    GlobalMaxPool goes first where it can: onnxruntime computes it in the layout its convolutions leave.
    """
    last = value
    if op == "ReduceMax" and value.shape is not None and len(value.shape) == 4:
        last = _appended(edit, "GlobalMaxPool", value, "maxima")
    node = edit.node(op, [last], f"{value.name}_{op}", {"keepdims": 0})
    edit.model.graph.append(node)
    return node.outputs[0].name or ""


def _appended(edit: Edit, op: str, value: ir.Value, what: str) -> ir.Value:
    node = edit.node(op, [value], f"{value.name}_{what}")
    edit.model.graph.append(node)
    return node.outputs[0]
