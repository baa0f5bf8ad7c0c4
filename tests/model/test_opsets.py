"""Operator sets are raised, and nothing else changes."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from files import TWO_LAYERS, proto, run, sparse_model, sparse_parts

from onnxcompress.errors import CompressError
from onnxcompress.model import (
    convert_up,
    lazy,
    load,
    notes,
    opset,
    signature,
    to_proto,
)

OLD = """
<ir_version: 6, opset_import: ["": 11]>
graph (float[N, 64] x, bool c) => (float[N, 64] y) <float[64, 64] w = {0}>
{
    t = MatMul(x, w)
    s = Unsqueeze<axes = [0]>(t)
    u = If(c)<then_branch = then () => (float[N, 64] p) { p = Squeeze<axes = [0]>(s) },
              else_branch = else () => (float[N, 64] q) { q = Relu(t) }>
    y = Softmax<axis = 1>(u)
}
"""


def test_raises_the_operator_set_in_subgraphs_too_and_says_so() -> None:
    source = proto(OLD)
    model = load(source)
    value = model.graph.initializers["w"]
    value.const_value = lazy(value.const_value, pytest.fail)  # large weights aren't read for it
    before = signature(model)
    assert convert_up(model, 17)
    value = model.graph.initializers["w"]
    value.const_value = load(source).graph.initializers["w"].const_value
    assert opset(model) == 17
    assert model.ir_version == 8
    assert signature(model) == before
    feeds = {"x": np.ones((2, 64), np.float32), "c": np.array(True)}
    np.testing.assert_allclose(run(to_proto(model), **feeds), run(source, **feeds), rtol=1e-6)


def test_leaves_a_model_with_a_newer_operator_set_alone() -> None:
    model = load(proto(TWO_LAYERS))
    assert not convert_up(model, 17)
    assert not convert_up(model, 13)
    assert opset(model) == 17
    assert notes(model) == []


def test_raising_the_operator_set_keeps_sparse_tensors_and_metadata() -> None:
    source = sparse_model(coordinates=True)
    source.graph.node[1].metadata_props.add(key="made by", value="hand")
    model = load(source)
    convert_up(model, 21)
    result = to_proto(model)
    for before, after in zip(sparse_parts(source), sparse_parts(result), strict=True):
        np.testing.assert_array_equal(before[1], after[1])
    assert opset(model) == result.functions[0].opset_import[0].version == 21
    assert result.graph.node[1].metadata_props[0].value == "hand"


SOFTMAX = """
<ir_version: 8, opset_import: ["": 11, "own": 1]>
graph (float[N, 64] x) => (float[N, 64] y) { y = own.soft<axis = 1>(x) }
<opset_import: ["": 11], domain: "own">
soft AXIS (a) => (z)
{
    k = Constant<value: tensor = float[1] {3}>()
    m = Mul(a, k)
    z = Softmax<axis: int = VALUE>(m)
}
"""


def test_raises_the_operator_set_of_functions() -> None:
    source = proto(SOFTMAX.replace("AXIS", "").replace("<axis = 1>", "").replace("VALUE", "1"))
    model = load(source)
    assert convert_up(model, 13)
    result = to_proto(model)
    assert result.functions[0].opset_import[0].version == 13
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 64)).astype(np.float32)}
    np.testing.assert_allclose(run(result, **feeds), run(source, **feeds), rtol=1e-6)


def test_names_the_function_that_can_not_be_converted() -> None:
    model = load(proto(SOFTMAX.replace("AXIS", "<axis>").replace("VALUE", "@axis")))
    with pytest.raises(CompressError, match=r"function own\.soft: operator set 11 can't be raised"):
        convert_up(model, 13)
    assert opset(model) == 11
    assert notes(model) == []


def test_says_what_the_converter_can_not_convert_and_leaves_the_model() -> None:
    source = proto(OLD)
    source.graph.node.append(onnx.helper.make_node("Foo", ["y"], ["z"], domain="com.other"))
    source.opset_import.add(domain="com.other", version=1)
    model = load(source)
    model.graph.append(ir.Node("", "Gone", [model.graph.inputs[0]]))
    before = to_proto(model).SerializeToString()
    with pytest.raises(CompressError, match="operator set 11 can't be raised to 17"):
        convert_up(model, 17)
    assert to_proto(model).SerializeToString() == before
