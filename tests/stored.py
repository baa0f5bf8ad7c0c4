"""Models of one node whose weight is stored in some format, and what two ways to run them give."""

import numpy as np
import onnx
import onnx_ir as ir

from onnxcompress.formats import ENCODERS, Weight
from onnxcompress.formats.storing import store, ways
from onnxcompress.runtimes import Interpreter
from onnxcompress.runtimes.counts import Counts


def weight_of(kind: str, shape: tuple[int, ...], seed: int, dtype: type = np.float32) -> np.ndarray:
    """A weight of which some formats are exact: sparse or not, of few values or not."""
    draw = np.random.default_rng(seed)
    some = draw.random(shape) < 0.2
    found = {
        "sparse": draw.standard_normal(shape) * some,
        "sparse, few": draw.choice([-1.3, 0.4, 0.7, 2.1], shape) * some,
        "half": draw.standard_normal(shape) * (draw.random(shape) < 0.5),
        "few": draw.choice([-1.3, 0.0, 0.4, 0.7, 2.1], shape),
        "ternary": draw.choice([-0.3, 0.0, 0.3], shape),
        "ternary by channel": draw.choice([-1, 0, 1], shape)
        * (draw.random(shape[:1] + (1,) * (len(shape) - 1)) + 0.1),
        "binary": draw.choice([-0.7, 0.7], shape),
        "powers": draw.choice([-1, 1], shape) * 2.0 ** draw.integers(-4, 2, shape) * some,
        "powers, scaled": 1.3 * draw.choice([-1, 1], shape) * 2.0 ** draw.integers(-4, 2, shape),
        "zero": np.zeros(shape),
        "blocks": np.kron(draw.random((*shape[:1], shape[1] // 4)) < 0.1, np.ones(4))
        * draw.standard_normal(shape)
        if len(shape) == 2 and not shape[1] % 4
        else np.zeros(shape),
    }
    return found[kind].astype(dtype) + dtype(0)


KINDS = (
    "sparse",
    "sparse, few",
    "half",
    "few",
    "ternary",
    "ternary by channel",
    "binary",
    "powers",
    "powers, scaled",
    "zero",
    "blocks",
)


def encoded(made: ir.Model, name: str = "w", word: str = "", pick: int = 0) -> str:
    """Encode the weight `name` of `made` in the format `word`, or any; return what it is stored as."""
    value = made.graph.initializers[name]
    assert value.const_value is not None
    weight = Weight(value.const_value.numpy())
    formats = [ENCODERS[word]] if word else list(ENCODERS.values())
    found = [way for each in formats for call in each.encode(weight) for way in ways(call, 32)]
    if not found:
        return ""
    way = found[pick % len(found)]
    store(made, {value: way.make()}, {}, 32)
    return way.text


def agree(made: ir.Model, feeds: dict[str, np.ndarray], products: int = 1) -> dict[str, Counts]:
    """Check that the stored form gives what expanded weights give, `products` times; return the counts."""
    expected = Interpreter(compressed=False).prepare(made).run(feeds)
    runnable = Interpreter().prepare(made)
    found = runnable.run(feeds)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert found[name].shape == value.shape
        size = float(np.abs(value).max(initial=1))
        close = {np.float16: 2e-3, np.float32: 1e-5, np.float64: 1e-12}[value.dtype.type]
        np.testing.assert_allclose(found[name], value, rtol=close, atol=close * size)
    assert len(runnable.counts) == products, runnable.expanded
    return runnable.counts


def normal(shape: tuple[int, ...], dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(dtype)


def layer(op: str, inputs: str, weight: np.ndarray, **attributes: object) -> ir.Model:
    """A model of one node, which is called "node"; of its inputs, w is the weight and others are given."""
    names = inputs.split()
    kind = onnx.helper.np_dtype_to_tensor_dtype(weight.dtype)
    given = [onnx.helper.make_tensor_value_info(name, kind, None) for name in names if name != "w"]
    y = onnx.helper.make_tensor_value_info("y", kind, None)
    node = onnx.helper.make_node(op, names, ["y"], name="node", **attributes)
    graph = onnx.helper.make_graph([node], "g", given, [y], [onnx.numpy_helper.from_array(weight, "w")])
    imports = [onnx.helper.make_opsetid("", 17)]
    return ir.from_proto(onnx.helper.make_model(graph, ir_version=8, opset_imports=imports))
