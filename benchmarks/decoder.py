"""A language model in the shape of those with 7 billion parameters, with weights that are not in memory.

Each layer has the attention and the gated unit that such models share, without positions and the cache of
keys: 4,096 wide, 32 heads, 11,008 inside, 32,000 tokens. Source: Touvron et al., LLaMA, 2023, table 2.
Weights are float16 and normally distributed. They are slices of one drawn array, which starts elsewhere in
each of them: drawing 7 billion numbers would take longer than compressing them.
"""

from functools import cache, partial
from pathlib import Path

import numpy as np
import onnx.parser
import onnx_ir as ir

from onnxcompress.model import lazy, load
from onnxcompress.runtimes import OnnxRuntime
from onnxcompress.verify import Likeness

WIDTH, HEADS, INSIDE, TOKENS = 4096, 32, 11008, 32000
DRAWN = 2**24 + 43  # numbers; no row of a weight repeats in it
SEED = 2023

LAYER = """
    [N_square] N_s = Mul(N_x, N_x)
    N_mean = ReduceMean <axes = [-1]> (N_s)
    N_safe = Add(N_mean, epsilon)
    N_root = Sqrt(N_safe)
    N_h = Div(N_x, N_root)
    [N_query] N_q = MatMul(N_h, N_wq)
    [N_key] N_k = MatMul(N_h, N_wk)
    [N_value] N_v = MatMul(N_h, N_wv)
    N_q4 = Reshape(N_q, split)
    N_k4 = Reshape(N_k, split)
    N_v4 = Reshape(N_v, split)
    N_qt = Transpose <perm = [0, 2, 1, 3]> (N_q4)
    N_kt = Transpose <perm = [0, 2, 3, 1]> (N_k4)
    N_vt = Transpose <perm = [0, 2, 1, 3]> (N_v4)
    N_product = MatMul(N_qt, N_kt)
    N_scores = Mul(N_product, scale)
    N_shares = Softmax <axis = -1> (N_scores)
    N_mixed = MatMul(N_shares, N_vt)
    N_back = Transpose <perm = [0, 2, 1, 3]> (N_mixed)
    N_joined = Reshape(N_back, joined)
    [N_output] N_o = MatMul(N_joined, N_wo)
    N_a = Add(N_x, N_o)
    [N_gate] N_g = MatMul(N_a, N_wg)
    [N_up] N_u = MatMul(N_a, N_wu)
    N_open = Sigmoid(N_g)
    N_swish = Mul(N_g, N_open)
    N_gated = Mul(N_swish, N_u)
    [N_down] N_d = MatMul(N_gated, N_wd)
    NEXT_x = Add(N_a, N_d)
"""
SHAPES = {
    **dict.fromkeys(("wq", "wk", "wv", "wo"), (WIDTH, WIDTH)),
    **dict.fromkeys(("wg", "wu"), (WIDTH, INSIDE)),
    "wd": (INSIDE, WIDTH),
}


def model(layers: int) -> ir.Model:
    """Return the model with so many `layers`, of tokens [1, length, int64]; no weight is made yet."""
    body = "".join(
        LAYER.replace("NEXT_", f"l{number + 1}_").replace("N_", f"l{number}_") for number in range(layers)
    )
    weights = {"embedding": (TOKENS, WIDTH), "wh": (WIDTH, TOKENS)}
    for number in range(layers):
        weights |= {f"l{number}_{name}": shape for name, shape in SHAPES.items()}
    inputs = "".join(f", float16[{rows}, {columns}] {name}" for name, (rows, columns) in weights.items())
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    decoder (int64[1, length] tokens{inputs}, float16[1] epsilon, float16[1] scale, int64[4] split,
        int64[3] joined) => (float16[1, length, {TOKENS}] logits)
    {{ [embed] l0_x = Gather(embedding, tokens) {body} [head] logits = MatMul(l{layers}_x, wh) }}"""
    made = load(onnx.parser.parse_model(text))
    held = {name: weight(name, place, shape) for place, (name, shape) in enumerate(weights.items())}
    held["epsilon"] = ir.tensor(np.array([1e-3], np.float16), name="epsilon")
    held["scale"] = ir.tensor(np.array([(WIDTH // HEADS) ** -0.5], np.float16), name="scale")
    held["split"] = ir.tensor(np.array([1, -1, HEADS, WIDTH // HEADS]), name="split")
    held["joined"] = ir.tensor(np.array([1, -1, WIDTH]), name="joined")
    for value in list(made.graph.inputs)[1:]:
        made.graph.inputs.remove(value)
        value.const_value = held[value.name or ""]
        made.graph.register_initializer(value)
    return made


def weight(name: str, place: int, shape: tuple[int, int]) -> ir.TensorProtocol:
    """Return the tensor `name`, which is the `place`-th of a model."""
    start = ir.tensor(np.array(place * 7_368_787 % DRAWN), name=name)
    return lazy(start, partial(part, shape=shape), ir.DataType.FLOAT16, shape)


def part(start: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return normal numbers of `shape`, from the place `start` on."""
    return np.resize(np.roll(drawn(), -int(start)), shape)


@cache
def drawn() -> np.ndarray:
    """Return the array that weights are slices of: float16 [DRAWN], deviating as models begin."""
    values = np.random.default_rng(SEED).standard_normal(DRAWN, dtype=np.float32)
    return (values * np.float32(0.02)).astype(np.float16)


def checked(source: Path, result: Path) -> str:
    """Return how the last layer of `result` compares with that of `source`, which it was made of.

    AssertionError where a product of `result` has tensors that don't fit together, or one is missing.
    """
    before, after = load(source), load(result)
    products = [node for node in after.graph if node.op_type == "MatMulNBits"]
    for node in products:
        _, steps, scales = (value.const_value for value in node.inputs)
        inputs, outputs, size, bits = (
            node.attributes[name].as_int() for name in ("K", "N", "block_size", "bits")
        )
        assert tuple(scales.shape) == (outputs, -(-inputs // size))
        assert tuple(steps.shape) == (*scales.shape, size * bits // 8)
    layers = sum((node.name or "").endswith("_gate") for node in before.graph)
    assert len(products) == layers * len(SHAPES) + 1
    x = np.random.default_rng(SEED).standard_normal((1, 8, WIDTH)).astype(np.float16)
    first, second = (
        OnnxRuntime().prepare(alone(each, layers - 1)).run({f"l{layers - 1}_x": x})[f"l{layers}_x"]
        for each in (before, after)
    )
    error = Likeness()
    error.add(first, second)
    return f"{len(products)} products in blocks; layer {layers - 1} in onnxruntime: {error.snr:.1f} dB"


def alone(model: ir.Model, number: int) -> ir.Model:
    """Return the layer of that `number` as a model of its own."""
    graph = ir.convenience.extract(model.graph, [f"l{number}_x"], [f"l{number + 1}_x"])
    for value in (*graph.inputs, *graph.outputs):
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT16), ir.Shape((1, "length", WIDTH))
    return ir.Model(graph, ir_version=model.ir_version)
