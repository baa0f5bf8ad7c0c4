"""A numpy interpreter: slow, exact, and every step of it can be watched.

When a model is prepared, each graph becomes a block: the nodes its outputs need, in the graph's order, each
with the values nobody reads after it. Running a block is a loop over its nodes that forgets those values as
it goes, so that only what is still needed is in memory; a weight is read when first needed and forgotten like
any other value. Functions are bound to the attributes of each call while preparing.

MatMul, Gemm and Conv run on the stored form of encoded weights; see ``compressed.py``. What their symbols say
is decoded while preparing, and kept.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import onnx_ir as ir

from onnxcompress.blockwise import CONTRIBUTED
from onnxcompress.errors import CompressError, UsageError
from onnxcompress.evaluate import array, label, operator
from onnxcompress.model import load
from onnxcompress.runtimes.compressed import Weights
from onnxcompress.runtimes.contributed import matmul_n_bits
from onnxcompress.runtimes.control import CONTROL, Attributes, Values
from onnxcompress.runtimes.counts import Counts

Hook = Callable[[ir.Node, Sequence[Any], Sequence[Any]], None]
Kernel = Callable[[ir.Node, Sequence[Any], Attributes], list[Any]]
Run = Callable[[Sequence[Any], Values], list[Any]]  # inputs, what its graph knows -> outputs

_GRAPH = ir.AttributeType.GRAPH

# (domain, operator) -> kernel(node, inputs, attributes) -> outputs; goes before the function of that name
KERNELS: dict[tuple[str, str], Kernel] = {(CONTRIBUTED, "MatMulNBits"): matmul_n_bits}


@dataclass(frozen=True)
class Interpreter:
    """The numpy interpreter as a runtime.

    Each of `hooks` is called as ``hook(node, inputs, outputs)`` after every node that ran, with arrays (None
    where an optional one is left out, or a weight is used in its stored form): nodes in subgraphs and
    functions, then the one that runs them. With `compressed` False, the functions of the model expand its
    encoded weights.
    """

    name: ClassVar[str] = "interpreter"
    hooks: tuple[Hook, ...] = ()
    compressed: bool = True

    @classmethod
    def make(cls, *, threads: int = 0, frugal: bool = False) -> Interpreter:
        """Return the interpreter; numpy decides on threads, and weights are always read where they lie."""
        return cls()

    def patient(self) -> Interpreter:
        """Return the interpreter as it is: it has no threads of its own."""
        return self

    def abreast(self) -> tuple[Interpreter, int]:
        """Return the interpreter, for one run at a time."""
        return self, 1

    def prepare(self, model: ir.Model | Path, outputs: Sequence[str] | None = None) -> Interpretation:
        """Return `model` ready to run; see ``base.Runtime``."""
        model = load(model) if isinstance(model, Path) else model
        wanted = model.graph.outputs if outputs is None else [_find(model.graph, name) for name in outputs]
        weights = Weights(model)
        used = weights if self.compressed else None
        scope = _Scope(model, model.graph.opset_imports, {}, self.hooks, used, {})
        with _named():
            return Interpretation(model.graph.inputs, _Block(model.graph, wanted, scope), weights)


class Interpretation:
    """A model made ready to run by the interpreter."""

    def __init__(self, inputs: Sequence[ir.Value], block: _Block, weights: Weights) -> None:
        self._inputs = {value.name or "": value for value in inputs}
        self._block = block
        self._weights = weights

    @property
    def counts(self) -> dict[str, Counts]:
        """What the products with weights in their stored form took in the last run, by node.

        A node is called by its name, or else that of its first output, and its operator: "fc1 (Gemm)".
        """
        return dict(self._weights.counts)

    @property
    def expanded(self) -> dict[str, str]:
        """Why encoded weights, by name, are made dense after all: by which nodes, and the reason."""
        return dict(self._weights.expanded)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs by name for one feed.

        Raises UsageError where a feed doesn't fit the inputs, CompressError naming the node that fails.
        """
        values: Values = {}
        self._weights.counts.clear()
        for name, given in feeds.items():
            if name not in self._inputs:
                known = ", ".join(self._inputs)
                raise UsageError(f"interpreter: {name} is not an input of the model, expected {known}")
            values[self._inputs[name]] = _checked(self._inputs[name], given)
        for name, value in self._inputs.items():
            if value not in values and not value.is_initializer():
                raise UsageError(f"interpreter: input {name} is missing, expected an array for it")
        with _named():
            results = self._block.run(values)
        named = {value.name or "": result for value, result in zip(self._block.outputs, results, strict=True)}
        for name, result in named.items():
            if not isinstance(result, np.ndarray):
                raise CompressError(f"interpreter: output {name} is a sequence or empty, expected a tensor")
        return named


@contextmanager
def _named() -> Iterator[None]:
    """Say in every error that passes by that it is the interpreter's."""
    try:
        yield
    except CompressError as error:
        raise type(error)(f"interpreter: {error}") from error


def _find(graph: ir.Graph, name: str) -> ir.Value:
    """Return the value of `graph` called `name`."""
    made = (value for node in graph for value in node.outputs)
    known = {
        value.name: value for value in (*graph.inputs, *graph.initializers.values(), *made) if value.name
    }
    if name not in known:
        near = " or ".join(difflib.get_close_matches(name, known, n=3))
        raise UsageError(
            f"interpreter: the model has no value {name}" + (f"; did you mean {near}?" if near else "")
        )
    return known[name]


def _checked(value: ir.Value, given: np.ndarray) -> np.ndarray:
    """Return what is fed to the input `value`, if it has the input's type and shape."""
    given = np.asarray(given)
    if isinstance(value.type, ir.TensorType) and value.dtype not in (None, ir.DataType.STRING):
        assert value.dtype is not None
        if given.dtype != value.dtype.numpy():
            raise UsageError(
                f"interpreter: input {value.name} is {given.dtype}, expected {value.dtype.numpy()}"
            )
    if value.shape is not None:
        dims = tuple(dim if isinstance(dim, int) else None for dim in value.shape)
        if len(dims) != given.ndim or any(d not in (None, g) for d, g in zip(dims, given.shape, strict=True)):
            wanted = "x".join("?" if isinstance(dim, ir.SymbolicDim) else str(dim) for dim in value.shape)
            found = "x".join(map(str, given.shape))
            raise UsageError(f"interpreter: input {value.name} has shape {found}, expected {wanted}")
    return given


@dataclass(frozen=True)
class _Scope:
    """What the nodes of a body mean (opsets by domain, attributes of the call), and who watches."""

    model: ir.Model
    opsets: Mapping[str, int]
    attributes: Attributes
    hooks: tuple[Hook, ...]
    weights: Weights | None  # where they are used in their stored form
    bodies: dict[ir.OperatorIdentifier, _Block]  # of functions that are called without attributes

    def resolve(self, attributes: Iterable[ir.Attr]) -> dict[str, ir.Attr]:
        """Return `attributes` by name, references to those of the call replaced by what they refer to.

        One that refers to an attribute the call doesn't give is left out.
        """
        found = {}
        for attribute in attributes:
            if attribute.ref_attr_name is None:
                found[attribute.name] = attribute
            elif (bound := self.attributes.get(attribute.ref_attr_name)) is not None:
                found[attribute.name] = ir.Attr(attribute.name, bound.type, bound.value)
        return found

    def version(self, node: ir.Node) -> int:
        """Return the opset `node` belongs to."""
        names = (node.domain,) if node.domain else ("", "ai.onnx")
        for name in names:
            if name in self.opsets:
                return self.opsets[name]
        raise CompressError(f"{label(node)}: domain {names[-1]} is not among the opset imports")


class _Step(NamedTuple):
    """A node, how it runs, and the values that may be forgotten after it."""

    node: ir.Node
    inputs: Sequence[ir.Value | None]
    run: Run
    last: Sequence[ir.Value]


class _Block:
    """The nodes of one graph or function body that `outputs` need."""

    def __init__(self, graph: ir.Graph | ir.Function, outputs: Sequence[ir.Value], scope: _Scope) -> None:
        self.inputs = tuple(graph.inputs)
        self.outputs = tuple(outputs)
        self.captured: set[ir.Value] = set()  # values of outer graphs
        self._hooks = scope.hooks
        self._steps: list[_Step] = []
        needed = set(outputs)
        own = set(graph.inputs) | {value for node in graph for value in node.outputs}
        if isinstance(graph, ir.Graph):
            own.update(graph.initializers.values())
        for node in reversed(graph):
            if needed.isdisjoint(node.outputs):
                continue
            run, inputs, captured = _prepare(node, scope)
            reads = {value for value in inputs if value is not None} | captured
            touched = reads.union(node.outputs)
            self._steps.append(_Step(node, inputs, run, tuple((touched - needed) & own)))
            needed |= reads
            self.captured |= reads - own
        self._steps.reverse()
        self.captured.update(value for value in outputs if value not in own)
        self._passing = tuple(own.intersection((*self.inputs, *self.outputs)))

    def run(self, values: Values, inputs: Sequence[Any] = ()) -> list[Any]:
        """Return the outputs; `values` are those of the outer graphs, and are left as they were found."""
        values.update(zip(self.inputs, inputs, strict=False))
        for step in self._steps:
            given = [None if value is None else _read(value, values, step.node) for value in step.inputs]
            results = step.run(given, values)
            for hook in self._hooks:
                hook(step.node, given, results)
            values.update(zip(step.node.outputs, results, strict=False))
            del given, results
            for value in step.last:
                values.pop(value, None)
        found = [_read(value, values, None) for value in self.outputs]
        for value in self._passing:
            values.pop(value, None)
        return found


def _read(value: ir.Value, values: Values, reader: ir.Node | None) -> Any:
    """Return what `value` holds; an initializer is read from its tensor when it is first needed."""
    if value not in values:
        if value.const_value is None or not value.is_initializer():
            who = "the outputs" if reader is None else label(reader)
            raise CompressError(f"{who}: nothing before it computes {value.name}, expected a sorted graph")
        values[value] = array(value.const_value)
    return values[value]


def _prepare(node: ir.Node, scope: _Scope) -> tuple[Run, Sequence[ir.Value | None], set[ir.Value]]:
    """Return how `node` runs, the inputs it needs, in their places, and which other values it reads."""
    run, captured = _runner(node, scope)
    if scope.weights is None:
        return run, node.inputs, captured
    attributes = scope.resolve(node.attributes.values())
    found = scope.weights.operator(node, attributes, lambda inputs: run(inputs, {}))
    if found is None:
        return run, node.inputs, captured
    operator, place = found
    needed = [None if at == place else value for at, value in enumerate(node.inputs)]
    return lambda inputs, values: operator(inputs), needed, captured


def _runner(node: ir.Node, scope: _Scope) -> tuple[Run, set[ir.Value]]:
    """Return how `node` runs on all its inputs, and which values besides them it reads."""
    attributes = scope.resolve(node.attributes.values())
    if (kernel := KERNELS.get((node.domain, node.op_type))) is not None:
        found = partial(kernel, node)
        return lambda inputs, values: found(inputs, attributes), set()
    if (function := scope.model.functions.get(node.op_identifier())) is not None:
        body = _body(function, attributes, scope)
        rest = [None] * (len(function.inputs) - len(node.inputs))
        return lambda inputs, values: body.run({}, [*inputs, *rest]), set()
    if node.domain == "" and node.op_type in CONTROL:
        if scope.version(node) < 9 and node.op_type == "Scan":
            raise CompressError(f"{label(node)}: opset 8 had another Scan, expected opset 9 or later")
        graphs = {name: each.as_graph() for name, each in attributes.items() if each.type == _GRAPH}
        bodies = {name: _Block(graph, graph.outputs, scope) for name, graph in graphs.items()}
        captured = set().union(*(body.captured for body in bodies.values()))
        return partial(CONTROL[node.op_type], attributes, bodies), captured
    plain = operator(node, scope.version(node), attributes)
    return lambda inputs, values: plain(inputs), set()


def _body(function: ir.Function, attributes: Attributes, scope: _Scope) -> _Block:
    """Return the body of `function` for a call with `attributes`."""
    defaults = {name: each for name, each in function.attributes.items() if each.value is not None}
    bound = {**defaults, **attributes}
    key = function.identifier()
    if not bound and key in scope.bodies:
        return scope.bodies[key]
    inner = replace(scope, opsets=function.opset_imports, attributes=bound, weights=None)
    made = _Block(function, function.outputs, inner)
    if not bound:
        scope.bodies[key] = made
    return made
