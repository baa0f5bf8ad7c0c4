import models
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from onnxcompress.cost import MACS_PER_ELEMENT, Cost, elements, node_cost, total

COSTS = {
    "y = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w, b)": Cost(6 * 4 * 9 + 6, 6 * 16 * 4 * 9, 4 * 64, 6 * 16),
    "y = Conv<group=2>(x, g)": Cost(6 * 2 * 9, 6 * 36 * 2 * 9, 4 * 64, 6 * 36),
    "y = ConvTranspose<group=2, strides=[2,2]>(x, t)": Cost(4 * 3 * 4, 4 * 64 * 3 * 4, 4 * 64, 6 * 256),
    "f = Flatten(x) y = Gemm<transB=1>(f, d)": Cost(10 * 256, 10 * 256, 256, 10),
    "f = Flatten(x) y = Gemm(f, e)": Cost(10 * 256, 10 * 256, 256, 10),
    "y = MatMul(x, m)": Cost(24, 4 * 8 * 3 * 8, 256, 4 * 8 * 3),
    "y = Add(x, one)": Cost(1, 0, 256, 256),
    "a = Relu(x) y = Mul(x, a)": Cost(0, 0, 256 + 512, 512),
    "r = Identity(x) y = Dropout(r)": Cost(),
    "y, z = Split<axis=1>(x)": Cost(0, 0, 256, 256),
}


@pytest.mark.parametrize(("body", "cost"), COSTS.items())
def test_costs_are_those_a_hand_counts_for_one_sample(body: str, cost: Cost) -> None:
    rank = {"Gemm": "N, C", "MatMul": "N, C, H, W"}.get(body.split("y = ")[-1].split("(")[0].split("<")[0])
    weights = """float[6, 4, 3, 3] w = {}, float[6] b = {}, float[6, 2, 3, 3] g = {},
    float[4, 3, 2, 2] t = {}, float[10, 256] d = {}, float[256, 10] e = {}, float[8, 3] m = {},
    float one = {1}"""
    made = models.model(
        f"net (float[N, 4, 8, 8] x) => (float[{rank or 'N, C, H, W'}] y) <{weights}> {{ {body} }}"
    )
    ShapeInferencePass()(made)
    assert total(made.graph) == cost


def test_traffic_and_multiply_adds_make_one_price() -> None:
    cost = Cost(1, 2, 3, 4) + Cost(10, 20, 30, 40)
    assert cost == Cost(11, 22, 33, 44)
    assert (cost.moved, cost.price) == (77, 22 + 77 * MACS_PER_ELEMENT)


def test_a_cost_that_shapes_do_not_tell_is_none() -> None:
    made = models.model("net (float[N, 4, H, W] x, float[N, K] z) => (float[N, C, I, J] y) { y = Relu(x) }")
    assert elements(made.graph.inputs[0]) is None
    assert elements(None) is None
    assert node_cost(made.graph.node(0)) is None
    assert total(made.graph) is None


def test_what_a_branch_costs_is_not_known() -> None:
    made = models.model(
        """net (bool c, float[2] x) => (float[2] y)
        { y = If(c) <then_branch = t () => (float[2] a) { a = Relu(x) },
                     else_branch = e () => (float[2] b) { b = Neg(x) }> }"""
    )
    assert node_cost(made.graph.node(0)) is None


@pytest.mark.parametrize(
    ("text", "macs"),
    [
        (
            "float[5, 2, 3] x, float[1, 16, 3] w, float[1, 16, 4] r| y = LSTM<hidden_size=4>(x, w, r)",
            10 * 16 * 7,
        ),
        (
            "float[2, 5, 3] x, float[2, 12, 3] w, float[2, 12, 4] r|"
            "y = GRU<hidden_size=4, layout=1, direction='bidirectional'>(x, w, r)",
            2 * 10 * 12 * 7,
        ),
        ("float[5, 2, 3] x, float[1, 4, 3] w, float[1, 4, 4] r| y = RNN<hidden_size=4>(x, w, r)", 10 * 4 * 7),
        ("float[2, 3, 4] x, float[4, 5] w, float r| y = Einsum<equation='bij,jk->bik'>(x, w)", 2 * 3 * 4 * 5),
        ("uint8[1, 4, 8, 8] x, int8[6, 2, 3, 3] w, float r| y = ConvInteger<group=2>(x, w)", 6 * 36 * 2 * 9),
        ("uint8[3, 7] x, int8[7, 5] w, float r| y = MatMulInteger(x, w)", 3 * 7 * 5),
    ],
)
def test_multiply_adds_are_those_a_hand_counts(text: str, macs: int) -> None:
    inputs, body = text.replace("'", '"').split("|")
    kind = "int32" if "Integer" in body else "float"
    shape = {"Conv": "1, 6, 6, 6", "MatM": "3, 5", "Eins": "2, 3, 5"}.get(body.split("= ")[1][:4])
    shape = shape or ("2, 5, 2, 4" if "layout" in body else "5, 1, 2, 4")
    made = models.model(
        f'<ir_version: 8, opset_import: ["": 14]> net ({inputs}) => ({kind}[{shape}] y) {{ {body} }}'
    )
    cost = node_cost(made.graph.node(0))
    assert cost is not None
    assert cost.macs == macs


def test_arithmetic_that_is_not_counted_is_not_taken_for_none() -> None:
    made = models.model("net (float[4, 4] x) => (float y) { y = Det(x) }")
    assert node_cost(made.graph.node(0)) is None
