"""Binary activations: signs written into the graph, and the magnitudes that scale what is made of them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxcompress.edit import Edit, substitute
from onnxcompress.geometry import rows_read, window
from onnxcompress.layers import Layer

OPSET = 11  # Sign, and Gemm without a bias


def refusal(layer: Layer) -> str | None:
    """Return why the input of `layer` can't be made binary, or None."""
    found = window(layer)
    if isinstance(found, str):
        return found
    if rows_read(layer) is None:
        return f"{layer.op} of {found.groups} groups, expected a Conv of one, Gemm or MatMul"
    value = layer.node.inputs[0]
    maker = value.producer() if value is not None else None
    if maker is not None and maker.op_type == "Sign":
        return "binary already"
    if maker is not None and maker.op_type == "Abs":
        return "magnitudes, which have one sign"
    return None if layer.bias() is not None else "its bias isn't one constant for each output channel"


def binarise_input(edit: Edit, layer: Layer) -> None:
    """Let `layer`, which has no :func:`refusal`, multiply signs, and scale what it makes by magnitudes.

    Signs are -1, 0 and 1. Each place of the output is multiplied by the mean magnitude of the numbers other
    than 0 that the layer reads for it; the bias is added behind that.
    Source: Rastegari et al., XNOR-Net, ECCV 2016, section 3.2, where no number is 0.
    """
    node, kind, graph = layer.node, layer.tensor.dtype, layer.node.graph
    value, bias = node.inputs[0], layer.bias()
    assert isinstance(graph, ir.Graph)
    assert value is not None
    assert bias is not None
    made: list[ir.Node] = []

    def put(op: str, inputs: list[ir.Value], attributes: bool = False) -> ir.Value:
        new = edit.node(op, inputs, f"{layer.name}_{op.lower()}", dtype=kind)
        if attributes:
            new.attributes.update(node.attributes)
        made.append(new)
        return new.outputs[0]

    def number(word: str, content: np.ndarray) -> ir.Value:
        return edit.constant(graph, f"{layer.name}_{word}", content.astype(kind.numpy()))

    convolution, sizes = layer.op == "Conv", layer.shape
    adds = "Conv" if convolution else "MatMul"
    everything = number("all", np.ones((1, *sizes[1:]) if convolution else (layer.size // len(bias), 1)))
    signs = put("Sign", [value])
    total = put(adds, [put("Abs", [value]), everything], convolution)
    count = put(adds, [put("Abs", [signs]), everything], convolution)
    mean = put("Div", [total, put("Max", [count, number("one", np.ones(()))])])
    unscaled = put(layer.op, [signs, layer.weight], True)
    product = made[-1]
    result = put("Mul", [unscaled, mean])
    if bias.any():
        shape = (-1, *[1] * (len(sizes) - 2)) if convolution else (-1,)
        result = put("Add", [result, number("bias", bias.reshape(shape))])
    graph.insert_before(node, made)
    substitute(node.outputs[0], result)
    product.name = node.name
