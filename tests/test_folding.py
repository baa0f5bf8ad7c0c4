import models
import numpy as np
import onnx_ir as ir
import pytest

from onnxcompress.base import Context
from onnxcompress.folding import fold_batch_norms
from onnxcompress.model import clone

NORM = "n = BatchNormalization(c, scale, shift, mean, variance)"
STATISTICS = "float[6] scale = {}, float[6] shift = {}, float[6] mean = {}"
VARIANCE = {"variance": np.linspace(0.1, 3, 6, dtype=np.float32)}


def network(layer: str, weights: str, follower: str = NORM, more: str = "y = Relu(n)") -> ir.Model:
    dims = "N, 4" if "Gemm" in layer or "MatMul" in layer else "N, 4, 7, 7"
    body = f"c = {layer}\n{follower}\n{more}"
    text = f"net (float[{dims}] x) => (float[N, ...] y) <{weights}, {STATISTICS}>\n{{ {body} }}"
    text = text.replace("float[N, ...] y", f"float[{'N, 6' if dims == 'N, 4' else 'N, 6, H, W'}] y")
    return models.model(text, VARIANCE)


def feed(made: ir.Model) -> dict[str, np.ndarray]:
    dims = (3, 4) if len(made.graph.inputs[0].shape or ()) == 2 else (3, 4, 7, 7)
    return {"x": np.random.default_rng(1).normal(0, 1, dims).astype(np.float32)}


LAYERS = {
    "Conv(x, w, b)": "float[6, 4, 3, 3] w = {}, float[6] b = {}",
    "Conv(x, w)": "float[6, 4, 3, 3] w = {}",
    "Conv<group=2>(x, w)": "float[6, 2, 3, 3] w = {}",
    "ConvTranspose(x, w, b)": "float[4, 6, 3, 3] w = {}, float[6] b = {}",
    "ConvTranspose<group=2>(x, w)": "float[4, 3, 3, 3] w = {}",
    "Gemm(x, w, b)": "float[4, 6] w = {}, float[6] b = {}",
    "Gemm<transB=1, alpha=0.5, beta=2.0>(x, w, b)": "float[6, 4] w = {}, float[1, 6] b = {}",
    "Gemm<transB=1>(x, w)": "float[6, 4] w = {}",
    "MatMul(x, w)": "float[4, 6] w = {}",
}


@pytest.mark.parametrize("layer", LAYERS)
def test_batch_norm_goes_into_the_layer_before_it_and_outputs_agree(layer: str) -> None:
    made = network(layer, LAYERS[layer])
    expected = models.run(clone(made), feed(made))[0]
    assert len(fold_batch_norms(made)) == 1
    assert [node.op_type for node in made.graph] == [
        layer.split("(")[0].split("<")[0].replace("MatMul", "Gemm"),
        "Relu",
    ]
    np.testing.assert_allclose(models.run(made, feed(made))[0], expected, rtol=1e-4, atol=1e-5)
    assert fold_batch_norms(made) == []  # a second time there is nothing left to do


@pytest.mark.parametrize(
    "chain",
    [
        "n = Mul(c, k)",
        "n = Mul(k, c)",
        "n = Add(c, k)",
        "n = Sub(c, k)",
        "n = Div(c, one)",
        "d = Mul(c, k) e = Add(k, d) n = BatchNormalization(e, scale, shift, mean, variance)",
    ],
)
def test_constants_go_in_as_well_and_chains_of_them(chain: str) -> None:
    more = "float[6, 1, 1] k = {}, float one = {1.5}"
    made = network("Conv(x, w, b)", LAYERS["Conv(x, w, b)"] + ", " + more, chain)
    expected = models.run(clone(made), feed(made))[0]
    assert len(fold_batch_norms(made)) == 1
    assert [node.op_type for node in made.graph] == ["Conv", "Relu"]
    np.testing.assert_allclose(models.run(made, feed(made))[0], expected, rtol=1e-4, atol=1e-5)


def test_what_is_folded_leaves_no_constants_behind() -> None:
    made = network("Conv(x, w, b)", LAYERS["Conv(x, w, b)"])
    fold_batch_norms(made)
    assert len(made.graph.initializers) == 2


@pytest.mark.parametrize(
    ("follower", "more"),
    [
        (NORM, "r = Relu(n) y = Add(r, c)"),  # read elsewhere
        ("n = Add(c, wide)", "y = Relu(n)"),  # differs along other axes than the channels
        ("n = Div(one, c)", "y = Relu(n)"),
        ("n = Sub(one, c)", "y = Relu(n)"),
        ("n = Add(c, x6)", "y = Relu(n)"),  # not a constant
        ("n = Mul(c, c)", "y = Relu(n)"),
    ],
)
def test_what_is_not_one_number_a_channel_stays(follower: str, more: str) -> None:
    weights = (
        "float[6, 4, 1, 1] w = {}, float[6, 7, 7] wide = {}, float one = {1.5}, float[6, 4, 1, 1] v = {}"
    )
    made = network("Conv(x, w)\nx6 = Conv(x, v)", weights, follower, more)
    before = [node.op_type for node in made.graph]
    assert fold_batch_norms(made) == []
    assert [node.op_type for node in made.graph] == before


def test_a_shared_weight_stays() -> None:
    made = network("Conv(x, w)", "float[6, 4, 3, 3] w = {}", NORM, "o = Conv(x, w) y = Add(n, o)")
    assert fold_batch_norms(made) == []


def test_excluded_layers_stay_whoever_excludes_them() -> None:
    made = network("Conv(x, w)", "float[6, 4, 3, 3] w = {}")
    assert fold_batch_norms(made, exclude="c") == []
    assert fold_batch_norms(made, Context(exclude=("c",))) == []
    assert fold_batch_norms(made, Context(exclude=("other",))) != []


def test_a_batch_norm_without_spread_stays() -> None:
    made = network("Conv(x, w)", "float[6, 4, 3, 3] w = {}")
    made.graph.initializers["variance"].const_value = ir.tensor(np.full(6, -1, np.float32), name="variance")
    assert fold_batch_norms(made) == []


def test_an_output_of_the_graph_keeps_its_name() -> None:
    made = network("Conv(x, w)", "float[6, 4, 3, 3] w = {}", NORM.replace("n =", "y ="), "")
    expected = models.run(clone(made), feed(made))[0]
    assert len(fold_batch_norms(made)) == 1
    assert made.graph.outputs[0].name == "y"
    np.testing.assert_allclose(models.run(made, feed(made))[0], expected, rtol=1e-4, atol=1e-5)


def test_weights_are_scaled_only_when_they_are_read() -> None:
    made = network("Conv(x, w)", "float[6, 4, 3, 3] w = {}")
    fold_batch_norms(made)
    assert isinstance(made.graph.initializers["w"].const_value, ir.LazyTensor)
