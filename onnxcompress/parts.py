"""Parts of a model as models of their own, and how fast alternatives for a part are on this machine.

The rule for all that is chosen by time: a change is made only where it is :func:`faster`. So nothing gets
slower by choice, and what can't be told apart stays as it is. A part runs without its neighbours: what an
engine would merge across its border isn't seen.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxcompress.base import Context, Runnable
from onnxcompress.data import random_data
from onnxcompress.errors import CompressError, UsageError
from onnxcompress.layers import constant
from onnxcompress.measure import Latency, latencies
from onnxcompress.model import clone

EACH = 0.1  # seconds for each alternative, or what PAIRS take
PAIRS = 30
SURELY = 0.99  # two sessions of one model differ by up to a hundredth
_SMALL = 1024  # elements of integers, such as sizes, that tell kinds of parts apart


def cut(model: ir.Model, nodes: Collection[ir.Node]) -> ir.Model:
    """Return `nodes`, all of one graph of `model`, as a model of their own that shares its weights.

    Its inputs are what they read from outside, its outputs what is read outside of them. A first dimension
    that is open becomes 1; CompressError where another one is, or a type isn't known.
    """
    graph = next(iter(nodes)).graph
    assert graph is not None
    inside = [node for node in graph if node in nodes]
    read = dict.fromkeys(value for node in inside for value in node.inputs if value is not None)
    fixed = {value: value.producer() for value in read if constant(value) is not None}
    makers = [node for node in fixed.values() if node is not None]
    every = {*inside, *makers}
    outside = [value for value in read if value not in fixed and value.producer() not in every]
    made = [
        output
        for node in inside
        for output in node.outputs
        if output.is_graph_output() or any(use.node not in every for use in output.uses())
    ]
    view = ir.GraphView(
        outside,
        made,
        nodes=[*makers, *inside],
        initializers=[value for value, maker in fixed.items() if maker is None],
        opset_imports=model.graph.opset_imports,
        name="part",
    )
    part = clone(ir.Model(view.clone(), ir_version=model.ir_version, functions=[*model.functions.values()]))
    for value in part.graph.inputs:
        first, *others = list(value.shape) or [1] if value.shape is not None else [None, None]
        if value.dtype is None or not all(isinstance(dim, int) for dim in others):
            raise CompressError(f"the sizes of {value.name} aren't known, so what reads it can't be timed")
        if value.shape:
            value.shape = ir.Shape([first if isinstance(first, int) else 1, *others])
    return part


def kind(part: ir.Model) -> tuple[object, ...]:
    """Return what tells how long `part` runs: equal for the same operators, attributes, types and shapes."""
    graph = part.graph
    numbers: dict[ir.Value | None, int] = {None: -1}
    told: list[object] = []
    for value in (*graph.inputs, *graph.initializers.values()):
        numbers[value] = len(numbers)
        told.append((value.dtype, tuple(value.shape or ()), _content(constant(value))))
    for node in graph:
        attributes = sorted((name, _told(each)) for name, each in node.attributes.items())
        told.append((node.op_identifier(), *attributes, *(numbers[value] for value in node.inputs)))
        for value in node.outputs:
            numbers[value] = len(numbers)
    return (*told, *(numbers[value] for value in graph.outputs))


def _told(attribute: ir.Attr) -> str:
    """Return what of `attribute` tells how long its node runs; of a large tensor, type and shape."""
    if attribute.type != ir.AttributeType.TENSOR or attribute.is_ref():
        return str(attribute)
    tensor = attribute.as_tensor()
    return f"{tensor.dtype} {tensor.shape} {_content(tensor)!r}"


def _content(tensor: ir.TensorProtocol | None) -> bytes | None:
    """Return the content of `tensor` where it is integers that may be sizes or axes, which are int64."""
    if tensor is None or tensor.dtype is not ir.DataType.INT64 or tensor.size > _SMALL:
        return None
    return tensor.tobytes()


def faster(latency: Latency) -> bool:
    """Return whether the whole 95 % interval of the ratio lies below 0.99."""
    return latency.high < SURELY


@dataclass(frozen=True)
class Fed:
    """A runnable that runs on `given`, whatever it is fed."""

    runnable: Runnable
    given: Mapping[str, np.ndarray]

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs by name."""
        return self.runnable.run(self.given)


@dataclass
class Stopwatch:
    """Times alternatives in the engine of `context`, with its threads, for about `seconds` in all.

    What runs longer than the seconds that are left is run six times. Alternatives of a kind that was timed
    before aren't timed again.
    """

    context: Context
    seconds: float
    _spent: float = field(default=0.0, init=False)
    _known: dict[tuple[object, ...], list[Latency]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if self.context.runtime is None:
            raise UsageError("measured latency: there is no runtime to measure with, expected one")

    def times(
        self, models: Sequence[ir.Model], feeds: Mapping[str, np.ndarray] | None = None
    ) -> list[Latency]:
        """Return the latencies of `models` run in turns; ratios are to the first.

        Models of the same inputs may be given `feeds`, else each gets random ones. CompressError where the
        engine can't run one, or time is over.
        """
        key = tuple(map(kind, models))
        if key in self._known:
            return self._known[key]
        if self._spent > self.seconds:
            raise CompressError(f"not measured: the {self.seconds:g} s for measuring are over")
        began, runtime = time.perf_counter(), self.context.runtime
        assert runtime is not None
        engine = type(runtime).make(threads=self.context.threads)
        runnables = [
            Fed(engine.prepare(model), next(iter(random_data(model, count=1))) if feeds is None else feeds)
            for model in models
        ]
        self._known[key] = latencies(
            runnables,
            {},
            budget=EACH * len(models),
            min_pairs=PAIRS,
            most=self.seconds - (self._spent + time.perf_counter() - began),
        )
        self._spent += time.perf_counter() - began
        self.context.progress(len(self._known), None, "measuring")
        return self._known[key]
