"""How much memory activations take while a graph runs, and in which order of its nodes they take least.

A buffer holds one value, or several that are views of one another. It is taken when its node runs and given
back after the last node that reads it. While a node runs, what it reads and what it makes are both there,
except where it may compute in place: an operator that makes each element from the same element of an input
takes over the buffer of that input when nothing else needs it any more and the sizes agree. What the
operators themselves need in between (im2col, packed matrices) isn't counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import onnx_ir as ir

from onnxcompress.cost import VIEWS
from onnxcompress.layers import constant

BEAM = 32  # sets of nodes that have run which are followed at a time
# Each element of the output depends on the same elements of the inputs only.
# fmt: off
IN_PLACE = frozenset((
    "Abs", "Acos", "Add", "And", "Asin", "Atan", "Cast", "Ceil", "Celu", "Clip", "Cos", "DequantizeLinear",
    "Div", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Max",
    "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow", "QuantizeLinear", "Reciprocal",
    "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Sub", "Sum",
    "Swish", "Tanh", "ThresholdedRelu", "Where", "Xor",
))
# fmt: on


class Step(NamedTuple):
    """A node: the buffers it reads, those it makes, and those of the first that it may take over."""

    node: ir.Node
    reads: frozenset[int]
    makes: tuple[int, ...]
    takes: frozenset[int]


class _State(NamedTuple):
    """Where an order stands: the bytes in use, the most so far, and the steps that could be next."""

    live: int
    peak: int
    ready: tuple[int, ...]


class Order(NamedTuple):
    """An order of steps, the most bytes in use at a time, and whether no order needs less."""

    peak: int
    steps: tuple[int, ...]
    optimal: bool


@dataclass(frozen=True)
class Plan:
    """The buffers of a graph and the steps that use them, in the file's order.

    `sizes` are the bytes of the buffers, `readers` the steps that read each as a set of bits; the bit after
    the last step stands for the caller, who reads the outputs. `given` are there before the first step,
    `needs` the steps that must run before each one, `follows` those that need it.
    """

    sizes: tuple[int, ...]
    readers: tuple[int, ...]
    given: frozenset[int]
    steps: tuple[Step, ...]
    needs: tuple[int, ...]
    follows: tuple[tuple[int, ...], ...]

    def peak(self, order: Iterable[int] | None = None) -> int:
        """Return the most bytes in use at a time when the steps run in `order` (None: the file's)."""
        state, ran = self._start(), 0
        for each in range(len(self.steps)) if order is None else order:
            state, ran = self._after(ran, state, each), ran | 1 << each
        return state.peak

    def trace(self, order: Iterable[int] | None = None) -> list[int]:
        """Return the bytes in use while each step runs in `order` (None: the file's), one taken over once."""
        state, ran, found = self._start(), 0, []
        for each in range(len(self.steps)) if order is None else order:
            state = self._after(ran, state._replace(peak=0), each)
            found.append(state.peak)
            ran |= 1 << each
        return found

    def best(self, beam: int = BEAM) -> Order:
        """Return the order with the least peak found, no worse than the file's.

        A search over the sets of steps that may have run, one step more at a time: of the sets of one size,
        those `beam` with the least peak, and then the least memory in use, are followed. A step that stays
        within the peak so far and leaves no more in use than before runs at once, which is never worse. Where
        no set had to be left out, no order needs less.
        """
        bound, states, optimal = self.peak(), {0: self._start()}, True
        came: list[dict[int, tuple[int, int]]] = []
        for _ in self.steps:
            found: dict[int, _State] = {}
            parents: dict[int, tuple[int, int]] = {}
            for ran, state in states.items():
                for each, after in self._choices(ran, state):
                    new = ran | 1 << each
                    if after.peak <= bound and (new not in found or after.peak < found[new].peak):
                        found[new], parents[new] = after, (ran, each)
            kept = sorted(found, key=lambda ran: (found[ran].peak, found[ran].live))
            optimal = optimal and len(kept) <= beam
            states = {ran: found[ran] for ran in kept[:beam]}
            came.append({ran: parents[ran] for ran in states})
        if not states:  # the file's order was left out on the way, and the others need more
            return Order(bound, tuple(range(len(self.steps))), False)
        ((ran, last),) = states.items()
        order = []
        for parents in reversed(came):
            ran, each = parents[ran]
            order.append(each)
        return Order(last.peak, tuple(reversed(order)), optimal)

    def _choices(self, ran: int, state: _State) -> list[tuple[int, _State]]:
        """Return the steps that may be next with the state after each: one alone if it is never worse."""
        found = []
        for each in state.ready:
            after = self._after(ran, state, each)
            if after.peak == state.peak and after.live <= state.live:
                return [(each, after)]
            found.append((each, after))
        return found

    def _start(self) -> _State:
        live = sum(self.sizes[each] for each in self.given)
        return _State(live, live, tuple(at for at, needed in enumerate(self.needs) if not needed))

    def _after(self, ran: int, state: _State, each: int) -> _State:
        """Return where the order stands after the steps `ran` and then `each`."""
        step, new = self.steps[each], ran | 1 << each
        gone = [buffer for buffer in (*step.reads, *step.makes) if not self.readers[buffer] & ~new]
        made = sum(self.sizes[buffer] for buffer in step.makes)
        taken = any(b in step.takes and self.sizes[b] == self.sizes[step.makes[0]] for b in gone)
        reached = state.live + made - (self.sizes[step.makes[0]] if taken else 0)
        live = state.live + made - sum(self.sizes[buffer] for buffer in gone)
        ready = [other for other in state.ready if other != each]
        ready += [other for other in self.follows[each] if not self.needs[other] & ~new]
        return _State(live, max(state.peak, reached), tuple(ready))


def plan(graph: ir.Graph, size: Callable[[ir.Value], int], inputs: bool = True) -> Plan:
    """Return the buffers and steps of `graph`; `size` tells the bytes of a value.

    With `inputs` False, the graph's inputs take no memory, as where the caller keeps them.
    """
    sizes: list[int] = []
    buffers: dict[ir.Value, int] = {}
    makers: dict[int, int] = {}
    steps: list[Step] = []

    def add(value: ir.Value, count: int) -> int:
        buffers[value] = len(sizes)
        sizes.append(count)
        return buffers[value]

    given = [add(each, size(each) if inputs else 0) for each in graph.inputs if constant(each) is None]
    for node in graph:
        reads = frozenset(buffers[value] for value in read_by(node) if value in buffers)
        used = [value for value in node.outputs if value.name]
        if node.op_type in VIEWS and node.domain in ("", "ai.onnx") and len(used) == 1 and len(reads) < 2:
            for buffer in reads:  # none of a constant, whose view takes no memory either
                buffers[used[0]] = buffer
            continue
        makes = tuple(add(value, size(value)) for value in used)
        makers |= dict.fromkeys(makes, len(steps))
        elementwise = node.op_type in IN_PLACE and node.domain in ("", "ai.onnx")
        steps.append(Step(node, reads, makes, reads - set(given) if elementwise else frozenset()))
    readers = [0] * len(sizes)
    needs, follows = [0] * len(steps), [[] for _ in steps]  # type: tuple[list[int], list[list[int]]]
    for at, step in enumerate(steps):
        for buffer in step.reads:
            readers[buffer] |= 1 << at
        for maker in {makers[buffer] for buffer in step.reads if buffer in makers}:
            needs[at] |= 1 << maker
            follows[maker].append(at)
    for value in graph.outputs:
        if value in buffers:
            readers[buffers[value]] |= 1 << len(steps)
    return Plan(
        tuple(sizes), tuple(readers), frozenset(given), tuple(steps), tuple(needs), tuple(map(tuple, follows))
    )


def read_by(node: ir.Node) -> Iterator[ir.Value]:
    """Yield the values that `node` reads, those that graphs inside it take from around them included."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) and not attribute.is_ref():
            bodies = (
                [attribute.as_graph()] if attribute.type == ir.AttributeType.GRAPH else attribute.as_graphs()
            )
            for body in bodies:
                yield from (value for inner in body for value in read_by(inner))
                yield from body.outputs
