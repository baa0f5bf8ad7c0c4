"""Peak memory of activations, against brute force and by hand."""

from itertools import permutations

import models
import onnx_ir as ir
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress.liveness import plan


def size(value: ir.Value) -> int:
    assert value.shape is not None
    return 4 * int(value.shape[0])  # type: ignore[arg-type]


@st.composite
def graphs(draw: st.DrawFn) -> ir.Model:
    """Small graphs of vectors: concatenations, sums of equals, activations and views of values before."""
    lines, sizes = [], [draw(st.integers(1, 4))]
    for number in range(1, draw(st.integers(2, 6))):
        kind = draw(st.sampled_from(["Relu", "Concat", "Add", "Identity", "Neg"]))
        picks = draw(st.lists(st.integers(0, number - 1), min_size=1, max_size=3))
        if kind == "Concat":
            lines.append(f"v{number} = Concat<axis=0>({', '.join(f'v{each}' for each in picks)})")
            sizes.append(sum(sizes[each] for each in picks))
        else:
            given = [picks[0], picks[0]] if kind == "Add" else picks[:1]
            lines.append(f"v{number} = {kind}({', '.join(f'v{each}' for each in given)})")
            sizes.append(sizes[picks[0]])
    last = len(sizes) - 1
    made = models.model(
        f"net (float[{sizes[0]}] v0) => (float[{sizes[last]}] v{last}) {{ {' '.join(lines)} }}"
    )
    for node, count in zip(made.graph, sizes[1:], strict=True):
        node.outputs[0].shape = ir.Shape([count])
    return made


def simulated(model: ir.Model, order: tuple[ir.Node, ...]) -> int | None:
    """The peak of an order, told from sets of values alone; None where it is no order."""
    graph = model.graph
    outputs, done = set(graph.outputs), set()
    root = {value: value for value in (*graph.inputs, *(value for node in graph for value in node.outputs))}
    for node in graph:
        if node.op_type == "Identity":
            root[node.outputs[0]] = root[node.inputs[0]]
    live = {graph.inputs[0]: size(graph.inputs[0])}
    peak = sum(live.values())
    for node in order:
        if any(value.producer() is not None and value.producer() not in done for value in node.inputs):
            return None
        done.add(node)
        needed = {
            root[value]
            for each in graph
            if each not in done
            for value in each.inputs
            if each.op_type != "Identity"
        } | {root[value] for value in outputs}
        if node.op_type == "Identity":
            continue
        out = node.outputs[0]
        dying = {root[value] for value in node.inputs} - needed
        takes = node.op_type != "Concat" and any(
            size(each) == size(out) and each is not graph.inputs[0] for each in dying
        )
        peak = max(peak, sum(live.values()) + (0 if takes else size(out)))
        live[out] = size(out)
        live = {value: count for value, count in live.items() if value in needed}
    return peak


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_the_best_order_is_the_best_of_all_and_the_file_order_is_simulated_right(model: ir.Model) -> None:
    layout = plan(model.graph, size)
    every = [simulated(model, order) for order in permutations(model.graph)]
    best = layout.best()
    assert layout.peak() == simulated(model, tuple(model.graph)) == max(layout.trace(), default=layout.peak())
    assert best.optimal
    assert best.peak == min(each for each in every if each is not None)
    assert layout.peak(best.steps) == best.peak == max(layout.trace(best.steps), default=best.peak)


BRANCHES = """net (float[1] x) => (float[2] y) {
    a = Concat<axis=0>(x, x, x, x, x, x, x, x) b = Concat<axis=0>(x, x, x, x, x, x, x, x)
    c = ReduceSum<keepdims=1>(a) d = ReduceSum<keepdims=1>(b) y = Concat<axis=0>(c, d) }"""


def test_an_order_that_ends_one_branch_before_the_next_takes_less() -> None:
    made = models.model(BRANCHES)
    for node, count in zip(made.graph, (8, 8, 1, 1, 2), strict=True):
        node.outputs[0].shape = ir.Shape([count])
    layout = plan(made.graph, size)
    assert layout.peak() == 4 * (1 + 8 + 8 + 1) - 4  # x is not needed once both are made
    best = layout.best()
    assert best.peak == 4 * (1 + 8 + 1)
    assert [layout.steps[each].node.op_type for each in best.steps][:2] == ["Concat", "ReduceSum"]
    assert layout.trace() == [36, 68, 68, 40, 16]
    assert layout.trace(best.steps) == [36, 40, 40, 40, 16]


def test_a_narrow_search_is_never_worse_than_the_file_and_says_it_is_no_proof() -> None:
    lines = [f"a{n} = Concat<axis=0>(x, x) b{n} = ReduceSum(a{n})" for n in range(8)]
    names = ", ".join(f"b{n}" for n in range(8))
    made = models.model(
        f"net (float[3] x) => (float[8] y) {{ {' '.join(lines)} y = Concat<axis=0>({names}) }}"
    )
    for node in made.graph:
        node.outputs[0].shape = ir.Shape([{"C": 6, "R": 1}[node.op_type[0]]])
    layout = plan(made.graph, size)
    found = layout.best(beam=1)
    assert found.peak <= layout.peak()
    assert not found.optimal


def test_what_a_branch_reads_from_around_it_stays_until_then() -> None:
    made = models.model(
        """net (bool c, float[4] x) => (float[4] y) {
            a = Exp(x) b = Concat<axis=0>(x, x)
            y = If(c) <then_branch = t () => (float[4] u) { u = Relu(a) },
                       else_branch = e () => (float[4] v) { v = Neg(a) }> }"""
    )
    layout = plan(made.graph, lambda value: 0 if value.name in ("c", "b", "y") else 16)
    assert layout.trace() == [32, 32, 16]
    assert [sorted(step.reads) for step in layout.steps][-1] == [0, 2]


def test_a_view_of_a_weight_takes_no_memory() -> None:
    made = models.model(
        "net (float[4] x) => (float[4] y) <float[2, 2] w = {1, 2, 3, 4}> "
        "{ s = Constant<value_ints = [4]>() v = Reshape(w, s) y = Add(x, v) }"
    )
    for node in made.graph:
        node.outputs[0].shape = ir.Shape([1 if node.op_type == "Constant" else 4])
    assert plan(made.graph, size).peak() == 2 * 4 * 4  # x and y
