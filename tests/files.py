"""Models of ONNX text, and files of them that the tools of onnx itself write."""

from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnxruntime

TWO_LAYERS = """
<ir_version: 8, opset_import: ["": 17]>
graph (float[N, 64] x) => (float[N, 64] y) <float[64, 64] w = {0}, float[64] b = {0}>
{
    t = MatMul(x, w)
    u = Relu(t)
    v = MatMul(u, w)
    y = Add(v, b)
}
"""
EVERYWHERE = """
<ir_version: 8, opset_import: ["": 17, "own": 1]>
graph (float[N, 64] x, bool c) => (float[N, 512] y) <float[64, 512] w = {0}>
{
    k = Constant<value: tensor = float[1] {2}>()
    t = MatMul(x, w)
    u = If(c)<then_branch = then () => (float[N, 512] p) <float[512] s = {0}> { p = Add(t, s) },
              else_branch = else () => (float[N, 512] q) { q = Mul(t, k) }>
    y = own.shift(u)
}
<opset_import: ["": 17], domain: "own">
shift (a) => (z)
{
    m = Constant<value: tensor = float[1] {3}>()
    z = Sub(a, m)
}
"""


def proto(text: str, seed: int = 0, **values: np.ndarray) -> onnx.ModelProto:
    """Return the model of an ONNX `text`; initializers without values there get `values` or seeded ones."""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(seed)
    for tensor in model.graph.initializer:
        given = values.get(tensor.name, rng.standard_normal(list(tensor.dims)).astype(np.float32))
        tensor.CopyFrom(onnx.numpy_helper.from_array(given, tensor.name))
    return model


def everywhere() -> onnx.ModelProto:
    """Return a model with weights in its graph, a Constant, a subgraph and a function."""
    model = proto(EVERYWHERE)
    constant, _, choice, _ = model.graph.node
    branch = next(each.g for each in choice.attribute if each.name == "then_branch")
    rng = np.random.default_rng(1)
    for tensor in (constant.attribute[0].t, branch.initializer[0], model.functions[0].node[0].attribute[0].t):
        value = rng.standard_normal(512).astype(np.float32)
        tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    return model


def run(model: onnx.ModelProto | Path, **feeds: np.ndarray) -> list[np.ndarray]:
    """Return the outputs of plain onnxruntime."""
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"]).run(None, feeds)


def weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def written(folder: Path, model: onnx.ModelProto, name: str = "in.onnx", external: bool = False) -> Path:
    """Write `model` with the tools of onnx itself."""
    if external:
        onnx.save(
            model,
            folder / name,
            save_as_external_data=True,
            location=f"{name}.bin",
            size_threshold=0,
            convert_attribute=True,
        )
    else:
        onnx.save(model, folder / name)
    return folder / name


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def sparse_proto(name: str, coordinates: bool) -> onnx.SparseTensorProto:
    """Return the [64, 64] tensor with 1.5 at (0, 3) and -2 at (63, 0)."""
    values = onnx.helper.make_tensor(name, onnx.TensorProto.FLOAT, [2], [1.5, -2])
    places, shape = ([0, 3, 63, 0], [2, 2]) if coordinates else ([3, 63 * 64], [2])
    indices = onnx.helper.make_tensor(f"{name}_i", onnx.TensorProto.INT64, shape, places)
    return onnx.helper.make_sparse_tensor(values, indices, [64, 64])


def sparse_model(coordinates: bool) -> onnx.ModelProto:
    """Return a model with sparse tensors as an initializer, a Constant, in a subgraph and in a function."""
    model = proto(
        """
        <ir_version: 8, opset_import: ["": 17, "own": 1]>
        graph (float[N, 64] x, bool c) => (float[N, 64] y)
        {
            k = Constant<value: tensor = float[1] {0}>()
            t = MatMul(x, w)
            u = If(c)<then_branch = then () => (float[N, 64] p) { p = MatMul(t, s) },
                      else_branch = else () => (float[N, 64] q) { q = MatMul(t, k) }>
            y = own.turn(u)
        }
        <opset_import: ["": 17], domain: "own">
        turn (a) => (z) { m = Constant<value: tensor = float[1] {0}>() z = MatMul(a, m) }
        """
    )
    model.graph.sparse_initializer.append(sparse_proto("w", coordinates))
    constant, _, choice, _ = model.graph.node
    branch = next(each.g for each in choice.attribute if each.name == "then_branch")
    branch.sparse_initializer.append(sparse_proto("s", coordinates))
    for node in (constant, model.functions[0].node[0]):
        node.attribute[0].CopyFrom(
            onnx.AttributeProto(
                name="sparse_value",
                type=onnx.AttributeProto.SPARSE_TENSOR,
                sparse_tensor=sparse_proto("", coordinates),
            )
        )
    return model


def sparse_parts(model: onnx.ModelProto) -> list[tuple[list[int], np.ndarray, np.ndarray]]:
    """Return dims, values and indices of the four sparse tensors of `sparse_model`."""
    constant, _, choice, _ = model.graph.node
    branch = next(each.g for each in choice.attribute if each.name == "then_branch")
    found = [
        *model.graph.sparse_initializer,
        *branch.sparse_initializer,
        *(node.attribute[0].sparse_tensor for node in (constant, model.functions[0].node[0])),
    ]
    read = onnx.numpy_helper.to_array
    return [(list(each.dims), read(each.values), read(each.indices)) for each in found]
