import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import models
import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from onnxcompress.base import Context
from onnxcompress.errors import CompressError, UsageError
from onnxcompress.model import signature
from onnxcompress.parts import Stopwatch, cut, kind
from onnxcompress.runtimes import OnnxRuntime

NETWORK = """net (float[N, 4, 8, 8] x) => (float[N, 5, A, B] y, float[N, 3, 8, 8] z)
<float[3, 4, 3, 3] v = {}, float[5, 3, 3, 3] w = {}, float[3] b = {}, int64[4] q = {0, 3, 8, 8}>
{
    [before] r = Relu(x)
    [first] a = Conv<pads = [1, 1, 1, 1]>(r, v, b)
    [view] f = Reshape(a, q)
    [second] c = Conv(f, w)
    [after] y = Relu(c)
    [other] z = Sigmoid(f)
}"""


def network(text: str = NETWORK) -> ir.Model:
    made = models.model(text)
    ShapeInferencePass()(made)
    return made


def test_a_part_computes_what_its_nodes_compute_in_the_model() -> None:
    made = network()
    part = cut(made, [made.graph.node(name) for name in ("second", "first", "view")])
    ports = signature(part)
    assert [(port.name, port.shape) for port in ports.inputs] == [("r", (1, 4, 8, 8))]
    assert [port.name for port in ports.outputs] == ["f", "c"]
    assert [node.name for node in part.graph] == ["first", "view", "second"]
    x = np.random.default_rng(0).standard_normal((1, 4, 8, 8)).astype(np.float32)
    seen = OnnxRuntime().prepare(made, outputs=["r", "f", "c"]).run({"x": x})
    for name, found in zip("fc", models.run(part, {"r": seen["r"]}), strict=True):
        np.testing.assert_allclose(found, seen[name], rtol=1e-5, atol=1e-6)


def test_the_model_is_not_touched_and_shares_its_weights() -> None:
    made = network()
    before = [(node.name, node.inputs, node.outputs) for node in made.graph]
    part = cut(made, [made.graph.node("first")])
    assert [(node.name, node.inputs, node.outputs) for node in made.graph] == before
    assert made.graph.inputs[0].shape != part.graph.inputs[0].shape
    assert part.graph.initializers["v"].const_value is made.graph.initializers["v"].const_value


def test_parts_of_bodies_read_what_lies_outside() -> None:
    made = network(
        """net (bool q, float[2, 3] x) => (float[2, 3] y) <float[3] w = {}>
        {
            o = Relu(x)
            y = If(q) <then_branch = t () => (float[2, 3] a) { k = Constant<value = float {2}>()
                                                              s = Mul(o, k) a = Add(s, w) },
                       else_branch = e () => (float[2, 3] b) { b = Neg(o) }>
        }"""
    )
    (choice,) = [node for node in made.graph if node.op_type == "If"]
    body = choice.attributes["then_branch"].as_graph()
    part = cut(made, [node for node in body if node.op_type != "Constant"])
    assert [value.name for value in part.graph.inputs] == ["o"]
    (found,) = models.run(part, {"o": np.ones((2, 3), np.float32)})
    weight = made.graph.initializers["w"].const_value
    assert weight is not None
    np.testing.assert_allclose(found, np.broadcast_to(2 + weight.numpy(), (2, 3)))


def test_sizes_that_are_open_but_for_the_first_can_not_be_timed() -> None:
    made = network("net (float[N, 4, H, 8] x) => (float[N, 4, H, 8] y) { y = Relu(x) }")
    with pytest.raises(CompressError, match="the sizes of x aren't known"):
        cut(made, list(made.graph))


def test_parts_are_of_one_kind_where_all_that_takes_time_is_alike() -> None:
    text = "net (float[N, {1}, 8, 8] x) => (float[N, C, H, W] y) <float[{0}, {1}, 3, 3] w = {{}}> {{ {2} }}"

    def one(outputs: int, inputs: int, body: str, seed: int = 0) -> tuple[object, ...]:
        made = models.model(text.format(outputs, inputs, body), seed=seed)
        return kind(cut(made, list(made.graph)))

    plain = one(4, 3, "y = Conv(x, w)")
    assert plain == one(4, 3, "[other] y = Conv(x, w)", seed=1)
    assert plain != one(5, 3, "y = Conv(x, w)")
    assert plain != one(4, 2, "y = Conv(x, w)")
    assert plain != one(4, 3, "y = Conv<strides=[2,2]>(x, w)")
    assert plain != one(4, 3, "a = Conv(x, w) y = Relu(a)")
    wired = "a = Conv(x, w) b = Relu(a) y = Sub({})"
    assert one(4, 3, wired.format("a, b")) != one(4, 3, wired.format("b, a"))
    sizes = "s = Constant<value = int64[4] {{1, 3, {0}, 1}}>() y = Reshape(x, s)"
    assert one(4, 3, sizes.format(64)) != one(4, 3, sizes.format(-1))


@dataclass
class Slow:
    """An engine that takes a millisecond for each node, and counts what it prepares and with what threads."""

    name: ClassVar[str] = "slow"
    prepared: ClassVar[list[tuple[int, int]]] = []
    threads: int = 0

    @classmethod
    def make(cls, *, threads: int = 0, frugal: bool = False) -> "Slow":
        return cls(threads)

    def patient(self) -> "Slow":
        return self

    def prepare(self, model: ir.Model, outputs: Sequence[str] | None = None) -> "Slow.Run":
        nodes = len(list(model.graph))
        self.prepared.append((nodes, self.threads))
        return Slow.Run(nodes)

    @dataclass
    class Run:
        nodes: int

        def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            time.sleep(self.nodes / 1000)
            return {}


def test_alternatives_are_timed_in_turns_and_each_kind_once() -> None:
    made = network()
    second, after = made.graph.node("second"), made.graph.node("after")
    one, two = cut(made, [second]), cut(made, [second, after])
    told: list[str] = []
    Slow.prepared.clear()
    context = Context(runtime=Slow(), threads=3, progress=lambda *args: told.append(str(args)))  # type: ignore[arg-type]
    watch = Stopwatch(context, 60)
    alone, both = watch.times([one, two])
    assert alone.ratio == 1
    assert 1.2 < both.ratio < 2.5
    assert both.pairs >= 30
    assert Slow.prepared == [(1, 3), (2, 3)]
    assert watch.times([cut(made, [second]), two])[1] is both
    assert len(Slow.prepared) == 2
    assert told == ["(1, None, 'measuring')"]


def test_measuring_ends_when_its_time_is_over() -> None:
    made = network()
    watch = Stopwatch(Context(runtime=OnnxRuntime()), 0)
    watch.times([cut(made, [made.graph.node("second")])])
    with pytest.raises(CompressError, match="not measured: the 0 s for measuring are over"):
        watch.times([cut(made, [made.graph.node("first")])])


def test_feeds_may_be_given_and_an_engine_is_needed() -> None:
    made = network()
    part = cut(made, [made.graph.node("second")])
    feeds = {"f": np.ones((1, 3, 8, 8), np.float32)}
    (found,) = Stopwatch(Context(runtime=OnnxRuntime(), threads=1), 60).times([part], feeds)
    assert found.seconds > 0
    with pytest.raises(UsageError, match="there is no runtime to measure with"):
        Stopwatch(Context(), 60)
