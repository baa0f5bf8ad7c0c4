"""16-bit floats: weights stored as float16 or bfloat16, or a model that computes with float16."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onnxcompress.base import Context, Effect, Need, Number, Pass, Record, Result, option
from onnxcompress.edit import Edit, drop, home
from onnxcompress.errors import UsageError
from onnxcompress.halves import PRECISE, RISKY, Halves, Places, infer_types, places, store, unfit
from onnxcompress.layers import constant
from onnxcompress.loss import decibels
from onnxcompress.magnitudes import largest
from onnxcompress.model import MappedTensor, clone, convert_up, graphs, lazy, opset

_FULL = ir.DataType.FLOAT
_KINDS = {
    "float16": (ir.DataType.FLOAT16, np.float16),
    "bfloat16": (ir.DataType.BFLOAT16, ml_dtypes.bfloat16),
}
_OPSETS = {"float16": 6, "bfloat16": 13}  # from which on Cast knows the type


@dataclass(frozen=True, kw_only=True)
class Cast(Pass):
    """Store weights as 16-bit floats, or compute with float16.

    Before: ``y = Conv(x, W)``
    After, ``scope=weights``: ``y = Conv(x, Cast(W_float16))``: the engine casts once, when it loads the model
    After, ``scope=model``: ``y = Cast(Conv(Cast(x), W_float16))``, without Casts between such nodes

    Weights alone take half the room and run at full speed. A whole model is for engines that are fast with
    float16; onnxruntime's CPU engine runs it, but casts around most operators. Its inputs and outputs stay
    float32, as do nodes that can't take float16 or read constants beyond its range, those that compute
    positions or sums larger than their results, what is quantized, and all in functions and in the bodies of
    If, Loop and Scan. So does what overflows (numbers beyond 65,504) or vanishes (none above 2^-14) on
    calibration data; without data, operators known to. Each is recorded with its reason. A second run is
    idle.
    Source: IEEE 754-2019 (binary16); Micikevicius et al., Mixed Precision Training, ICLR 2018.
    """

    name: ClassVar[str] = "cast"
    effect: ClassVar[Effect] = Effect.LOSSY
    uses: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION, Need.RUNTIME})

    to: str = option("float16", "the type; bfloat16 is for weights only", choices=tuple(_KINDS))
    scope: str = option(
        "weights", "weights, stored and cast back, or the whole model", choices=("weights", "model")
    )
    min_size: int = option(
        256, "with scope=weights, store tensors with fewer elements as they are", within=(0, 2**62)
    )
    exclude: str = option(
        "", "leave nodes in float32 whose whole name matches this regular expression", pattern=True
    )

    def call(self, model: ir.Model, context: Context) -> Result:
        """Cast in place."""
        if self.scope == "weights":
            return self._weights(model, context)
        if self.to == "bfloat16":
            raise UsageError(
                f"{self.name}: option to is bfloat16 with scope=model, expected float16: "
                "onnxruntime doesn't compute with bfloat16"
            )
        return self._model(model, context)

    def _weights(self, model: ir.Model, context: Context) -> Result:
        """Store the constants of all graphs and functions in 16 bits."""
        kind, plain = _KINDS[self.to]
        if any(_constants(model)):
            convert_up(model, _OPSETS[self.to])
        result, edit = Result(model), Edit(model)
        for value in list(_constants(model)):
            tensor, name = constant(value), value.name or ""
            assert tensor is not None
            reason = self._refusal(value, tensor, context)
            if reason:
                result.left(name, reason, size=int(tensor.size))
                continue
            record = result.changed(name, f"stored as {self.to}", size=int(tensor.size))
            graph = home(value)
            replaced = store(edit, value, lazy(tensor, _narrowed(plain, record), kind), graph)
            drop(value)
            value.name, replaced.name = None, name
        return result

    def _refusal(self, value: ir.Value, tensor: ir.TensorProtocol, context: Context) -> str | None:
        """Return why the constant `value` stays float32, or None."""
        readers = [use.node for use in value.uses()]
        names = [value.name or "", *map(_label, readers)]
        if any(context.excludes(name, self.exclude) for name in names):
            return "excluded"
        if tensor.size < self.min_size:
            return f"fewer than {self.min_size} elements"
        if value.is_graph_output():
            return "an output of its graph"
        precise = next((node.op_type for node in readers if node.op_type in PRECISE), None)
        if precise is not None:
            return f"{precise}: {PRECISE[precise]}"
        return _unfit(tensor, _KINDS[self.to][1])

    def _model(self, model: ir.Model, context: Context) -> Result:
        """Make the nodes of the main graph compute with float16 where they can."""
        convert_up(model, _OPSETS[self.to])
        result, edit, version = Result(model), Edit(model), opset(model)
        infer_types(model)
        chosen: dict[ir.Node, Places] = {}
        for node in model.graph:
            floats = [
                value for value in (*node.inputs, *node.outputs) if value is not None and value.dtype == _FULL
            ]
            if not floats or node.op_type in ("Constant", "Cast"):
                continue
            found = places(node, version)
            reason = found if isinstance(found, str) else None
            if context.excludes(_label(node), self.exclude):
                reason = "excluded"
            for value in node.inputs if reason is None else ():
                tensor = constant(value)
                if tensor is not None and tensor.dtype == _FULL:
                    reason = reason or _unfit(tensor, np.float16)
            if isinstance(found, Places) and reason is None:
                chosen[node] = found
            else:
                result.left(_label(node), reason or "")
        for node, reason, numbers in self._risks(model, list(chosen), context):
            del chosen[node]
            result.left(_label(node), reason, **numbers)
        for node in chosen:
            result.changed(_label(node), "computes with float16")
        Halves(edit, chosen).write()
        return result

    def _risks(
        self, model: ir.Model, nodes: list[ir.Node], context: Context
    ) -> Iterator[tuple[ir.Node, str, dict[str, Number]]]:
        """Yield the `nodes` that overflow or vanish in float16, by the data or else by name, and why."""
        read = {
            node: [v for v in (*node.inputs, *node.outputs) if v is not None and v.dtype == _FULL and v.name]
            for node in nodes
        }
        names = dict.fromkeys(v.name or "" for values in read.values() for v in values if constant(v) is None)
        seen = largest(clone(model), list(names), context)
        for node, values in read.items():
            if not seen:
                if node.op_type in RISKY:
                    yield node, RISKY[node.op_type], {}
                continue
            for size in sorted((seen[value.name] for value in values if value.name in seen), reverse=True):
                if reason := unfit(size):
                    yield node, reason, {"largest": size}
                    break


def _label(node: ir.Node) -> str:
    return node.name or node.outputs[0].name or node.op_type


def _unfit(tensor: ir.TensorProtocol, plain: type) -> str | None:
    """Return why the numbers of `tensor` can't be `plain`, or None; mapped pages are given back."""
    reason = unfit(tensor.numpy(), plain)
    if isinstance(tensor, MappedTensor):
        tensor.release()
    return reason


def _narrowed(plain: type, record: Record) -> Callable[[np.ndarray], np.ndarray]:
    """Return what makes a weight `plain` and puts into `record` what is kept of it."""

    def narrowed(weight: np.ndarray) -> np.ndarray:
        result: np.ndarray = weight.astype(plain)
        if weight.any():
            record.numbers["snr"] = decibels(weight, result)
        return result

    return narrowed


def _constants(model: ir.Model) -> Iterator[ir.Value]:
    """Yield the float32 constants of all graphs and functions of `model` that are read."""
    for graph in graphs(model):
        initializers = () if isinstance(graph, ir.Function) else list(graph.initializers.values())
        made = [node.outputs[0] for node in graph if node.op_type == "Constant"]
        for value in (*initializers, *made):
            tensor = constant(value)
            if tensor is not None and tensor.dtype == _FULL and value.uses():
                yield value
