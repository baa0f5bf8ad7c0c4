import models
import numpy as np
import onnx_ir as ir
import pytest
from factored import NETWORK, calibrated, images, operators, run

from onnxcompress.base import Context
from onnxcompress.passes import Quant


@pytest.mark.parametrize("data", [False, True])
def test_a_second_run_is_idle(data: bool) -> None:
    given = models.model(NETWORK)
    context = calibrated(given, images()) if data else None
    assert any(each.changed for each in run(given, context, params=0.5).values())
    again = run(given, context, params=0.5)
    assert not any(each.changed for each in again.values())
    assert again["second"].what == again["second_1"].what == "a factor already"


def test_what_is_not_factorised_says_why() -> None:
    made = models.model(
        """net (float[N, 32] x, float[32, N] t, int64[N] i, float[N, 8, 9, 9] z, float[N, 3, 32] s)
        => (float[N, 32] a, float[N, 32] b, float[N, 32] c, float[N, 32] d, float[A, B] e, float[N, 3, 32] f,
            float[N, 8, A, B] g, float[N, 32] h, float[N, 8, C, D] k, float[N, 32] l)
        <float[32, 32] tied = {}, float[32, 32] table = {}, float[32, 32] turned = {},
         float[32, 32] left = {},
         float[3, 32, 32] stack = {}, float[8, 2, 3, 3] grouped = {}, float[8, 8, 3, 3] up = {},
         float[32, 32] out = {}, float[32, 32] w = {}>
        {
            [one] a = MatMul(x, tied)
            [two] b = MatMul(x, tied)
            [embed] c = Gather(table, i)
            [transposed] d = Gemm<transA = 1>(t, turned)
            [leading] e = MatMul(left, t)
            [stacked] f = MatMul(s, stack)
            [groups] g = Conv<group = 4>(z, grouped)
            [excluded] h = MatMul(x, out)
            [upward] k = ConvTranspose(z, up)
            [zero] l = MatMul(x, w)
        }"""
    )
    zero = made.graph.initializers["w"]
    zero.const_value = ir.tensor(np.zeros((32, 32), np.float32), name="w")
    before = operators(made)
    records = run(made, exclude="excl.*", energy=0.1)
    assert {name: each.what for name, each in records.items()} == {
        "one": "its weight is read more than once",
        "two": "its weight is read more than once",
        "embed": "Gather is not factorised",
        "transposed": "its input is transposed",
        "leading": "MatMul with its weight in place 0 is no plain convolution or product",
        "stacked": "its weight has 3 axes, a matrix has 2",
        "groups": "a grouped convolution",
        "excluded": "excluded",
        "upward": "ConvTranspose is not factorised",
        "zero": "all its weights are zero",
    }
    assert operators(made) == before


def test_small_and_quantized_layers_stay() -> None:
    made = models.model(NETWORK)
    assert run(made, min_size=1000, energy=0.5)["last"].what == "too small"
    made = models.model(NETWORK)
    Quant(activations="none", min_size=0).call(made, Context())
    assert {each.what for each in run(made, energy=0.5).values()} == {"already quantized"}


def test_layers_with_a_bias_or_a_second_reader_between_are_no_factors() -> None:
    made = models.model(
        """net (float[N, 40] x) => (float[N, 40] y, float[N, 40] b, float[N, 40] z)
        <float[40, 40] w1 = {}, float[40] b1 = {}, float[40, 40] w2 = {},
         float[40, 40] w3 = {}, float[40, 40] w4 = {}>
        {
            [biased] a = Gemm(x, w1, b1)
            [after] b = MatMul(a, w2)
            [before] c = MatMul(b, w3)
            [end] y = MatMul(c, w4)
            z = Relu(a)
        }"""
    )
    records = run(made, energy=0.1)
    assert [records[name].changed for name in ("biased", "after", "before", "end")] == [
        True,
        True,
        False,
        False,
    ]
    assert records["before"].what == records["end"].what == "a factor already"


def test_a_layer_with_attributes_of_its_function_stays() -> None:
    values = ", ".join(["0, 0, 0, 0, 1, 0, 0, 0, 0"] * 16)
    made = models.model(
        f"""<ir_version: 8, opset_import: ["": 17, "own": 1]>
        net (float[1, 4, 9, 9] x) => (float[A, B, C, D] y) {{ [call] y = own.block<s = [2, 2]>(x) }}
        <opset_import: ["": 17], domain: "own">
        block <s>(x) => (y) {{
            w = Constant<value = float[4, 4, 3, 3] {{{values}}}>()
            [conv] y = Conv<strides: ints = @s, pads = [1, 1, 1, 1]>(x, w)
        }}"""
    )
    assert run(made)["conv"].what == "its attributes are those of a function's call"
