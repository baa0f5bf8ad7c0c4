"""Weights for every format, all ways to store them, and models that hand them out."""

from collections.abc import Iterator, Mapping
from functools import cache

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxcompress.formats import ENCODERS, Call, Weight
from onnxcompress.formats.base import Expression
from onnxcompress.formats.storing import Way, computed, store, ways
from onnxcompress.model import check, load

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.dtype(each) for each in (np.float16, np.float32, np.float64, np.int8, np.uint8)] + [BFLOAT16]
ODD = {2: [0x7FC1, 0xFF81, 0x7F80, 0x8000, 0x0001], 4: [0x7FC00123, 0xFF800001, 0x7F800000, 1 << 31, 1]}


def arrays(max_side: int = 12) -> st.SearchStrategy[np.ndarray]:
    """Arrays of every type and shape, of which some values are special and most occur often."""
    return st.sampled_from(DTYPES).flatmap(
        lambda dtype: hnp.arrays(
            np.dtype(f"u{dtype.itemsize}"),
            hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=max_side),
            elements=st.sampled_from(patterns(dtype)),
        ).map(lambda bits: bits.view(dtype) if bits.ndim else bits.reshape(1).view(dtype).reshape(()))
    )


def patterns(dtype: np.dtype) -> list[int]:
    """Bits of a few values of a type: NaNs with a payload, infinity, -0.0, the smallest, and plain ones."""
    if dtype.itemsize == 1:
        return [0, 0, 0, 1, 2, 100, 255]
    plain = np.array([1.0, -2.5, 0.5, -0.5, 6e-8]).astype(dtype).view(f"u{dtype.itemsize}").tolist()
    if dtype.itemsize == 8:
        return [0, 0, 0, *plain, 0x7FF8000000000123, 0x7FF0000000000000, 1 << 63, 1]
    odd = [0x7E01, 0xFC01, 0x7C00, 0x8000, 1] if dtype == np.float16 else ODD[dtype.itemsize]
    return [0, 0, 0, *plain, *odd]


def leaves(expression: Expression) -> Iterator[np.ndarray]:
    """The arrays that an expression is made of."""
    if isinstance(expression, Call):
        for each in expression.inputs:
            yield from leaves(each)
    else:
        yield computed(expression)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def drawn(
    seed: int, kinds: int, density: float, shape: tuple[int, ...], dtype: object = np.float32
) -> np.ndarray:
    """Few values, some more often than others, and zeros."""
    draw = np.random.default_rng(seed)
    table = draw.standard_normal(kinds) * 50
    weight = table[np.minimum(draw.geometric(min(1.0, 4 / kinds) * 0.7, shape) - 1, kinds - 1)]
    return np.where(draw.random(shape) < density, weight, 0).astype(np.dtype(dtype))  # type: ignore[call-overload]


def different(seed: int, density: float, shape: tuple[int, ...], dtype: object = np.float32) -> np.ndarray:
    """Values that are all different, and zeros."""
    draw = np.random.default_rng(seed)
    weight = np.where(draw.random(shape) < density, draw.standard_normal(shape), 0)
    return weight.astype(np.dtype(dtype))  # type: ignore[call-overload]


def signed(seed: int, zeros: bool, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """One magnitude in each channel."""
    draw = np.random.default_rng(seed)
    magnitudes = draw.random((shape[0],) + (1,) * (len(shape) - 1)) + 0.1
    return (draw.choice([-1, 0, 1] if zeros else [-1, 1], shape) * magnitudes).astype(dtype) + dtype(0)


def grouped(
    seed: int, shape: tuple[int, ...], axis: int, group: int, kinds: int, density: float = 1.0
) -> np.ndarray:
    """Values of a table that each `group` of channels along `axis` has of its own, and zeros."""
    draw = np.random.default_rng(seed)
    weight = np.moveaxis(np.empty(shape, np.float32), axis, 0)
    for start in range(0, len(weight), group):
        part = weight[start : start + group]
        part[...] = draw.standard_normal(kinds)[draw.integers(0, kinds, part.shape)]
    return np.where(draw.random(shape) < density, np.moveaxis(weight, 0, axis), np.float32(0))


def scaled(
    seed: int, shape: tuple[int, ...], axis: int | None, bits: int, dtype: object = np.float32
) -> np.ndarray:
    """Whole numbers times a scale for each channel along `axis`, or one for all."""
    draw = np.random.default_rng(seed)
    top = 2 ** (bits - 1) - 1
    many = [size if place == axis else 1 for place, size in enumerate(shape)]
    scale = (draw.random(many) * 0.02 + 0.001).astype(np.dtype(dtype)).astype(np.float32)  # type: ignore[call-overload]
    steps = np.rint(draw.normal(0, top / 3, shape)).clip(-top, top)
    return (steps.astype(np.float32) * scale).astype(np.dtype(dtype)) + np.dtype(dtype).type(0)  # type: ignore[call-overload,no-any-return]


def offset(seed: int, shape: tuple[int, int]) -> np.ndarray:
    """Numbers of 8 bits less a zero point, times a scale; each row has its own."""
    draw = np.random.default_rng(seed)
    point, scale = draw.integers(0, 256, (shape[0], 1)), draw.random((shape[0], 1)).astype(np.float32)
    return (draw.integers(0, 256, shape) - point).astype(np.float32) * scale + np.float32(0)


def powers(seed: int, shape: tuple[int, ...], density: float, dtype: object = np.float32) -> np.ndarray:
    """Powers of two, of either sign, times a scale for each channel, and zeros."""
    draw = np.random.default_rng(seed)
    scale = (draw.random((shape[0],) + (1,) * (len(shape) - 1)) + 0.1).astype(np.float32)
    steps = draw.choice([-1, 1], shape) * 2.0 ** -draw.integers(0, 9, shape)
    coarse = scale.astype(np.dtype(dtype)).astype(np.float32)  # type: ignore[call-overload]
    return np.where(draw.random(shape) < density, steps * coarse, 0).astype(np.dtype(dtype))  # type: ignore[call-overload,no-any-return]


CASES = {
    "dense, 256 values": drawn(0, 256, 1, (60, 50)),
    "dense, 255 values and zero": drawn(1, 255, 0.5, (31, 77)),
    "two values": drawn(2, 2, 1, (40, 40)),
    "ternary int8": np.random.default_rng(3).integers(-1, 2, (50, 41)).astype(np.int8),
    "sparse, 16 values": drawn(4, 16, 0.1, (100, 90)),
    "sparse, 5 values, float16": drawn(5, 5, 0.02, (4, 30, 30, 2), np.float16),
    "sparse, all different": different(6, 0.1, (64, 64)),
    "sparse, one axis": drawn(23, 9, 0.1, (3000,)),
    "one element": np.eye(70, 1, dtype=np.float32).repeat(70, 1)[:, ::-1] * np.eye(70, dtype=np.float32),
    "int8, normal": np.random.default_rng(7).normal(0, 30, (64, 99)).clip(-127, 127).astype(np.int8),
    "half zero, all different": different(8, 0.5, (48, 50), np.float16),
    "half zero, int8": np.where(
        drawn(10, 2, 0.3, (60, 50)), np.random.default_rng(10).integers(-127, 128, (60, 50)), 0
    ).astype(np.int8),
    "ternary by channel": signed(12, True, (30, 8, 3, 3), np.float32),
    "binary": np.random.default_rng(13).choice([-0.7, 0.7], (37, 41)),
    "binary by channel, float16": signed(14, False, (20, 90), np.float16),
    "sparse, wide": drawn(16, 3, 0.02, (20, 700)),
    "blocks": np.where(
        drawn(17, 1, 0.1, (16, 12)).repeat(4, 0).repeat(4, 1),
        np.random.default_rng(17).standard_normal((64, 48)),
        0,
    ).astype(np.float32),
    "blocks of few values, cut off": np.where(
        drawn(18, 1, 0.1, (9, 12)).repeat(8, 0).repeat(8, 1), drawn(18, 9, 1, (72, 96)), 0
    )[:-3, :-5].astype(np.float32),
    "special": np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45] * 200, np.float32).reshape(40, 30),
    "tables by channel": grouped(30, (20, 12, 3, 3), 0, 1, 16),
    "tables by group": grouped(31, (90, 33), 1, 5, 20),
    "tables by channel of a transposed convolution": grouped(32, (16, 12, 5, 5), 1, 1, 16),
    "tables by group, sparse": grouped(33, (40, 150), 0, 4, 20, 0.1),
    "tables by channel, float16": grouped(34, (24, 300), 0, 1, 16).astype(np.float16),
    "scales by channel": scaled(35, (20, 12, 3, 3), 0, 8),
    "zero points by channel": offset(41, (20, 200)),
    "one scale, 4 bits, float16": scaled(36, (64, 48), None, 4, np.float16),
    "scales by column": scaled(37, (100, 20), 1, 6),
    "scales by channel, bfloat16": scaled(38, (20, 120), 0, 4, BFLOAT16),
    "powers of two": powers(39, (20, 12, 3, 3), 0.9),
    "powers of two, sparse, float16": powers(40, (30, 100), 0.2, np.float16),
    "powers of two, bfloat16": powers(42, (30, 40), 0.9, BFLOAT16),
    "few values, bfloat16": drawn(43, 20, 0.6, (40, 40), BFLOAT16),
    "sparse, all different, bfloat16": different(44, 0.1, (64, 64), BFLOAT16),
    "sparse, few values, bfloat16": drawn(45, 7, 0.1, (64, 64), BFLOAT16),
}


def model(weights: Mapping[str, np.ndarray], opset: int = 13) -> ir.Model:
    """A model that hands its weights out, all of the shape that it is fed, bfloat16 as float32."""
    nodes, inputs, outputs, held = [], [], [], []
    inputs.append(onnx.helper.make_tensor_value_info("s", onnx.TensorProto.INT64, ["rank"]))
    for name, weight in weights.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(weight.dtype)
        short = weight.dtype == BFLOAT16
        nodes.append(onnx.helper.make_node("Reshape", [name, "s"], [f"{name}_r" if short else f"{name}_y"]))
        if short:
            nodes.append(onnx.helper.make_node("Cast", [f"{name}_r"], [f"{name}_y"], to=1))
        outputs.append(
            onnx.helper.make_tensor_value_info(f"{name}_y", 1 if short else kind, ["?"] * weight.ndim)
        )
        held.append(onnx.TensorProto(name=name, data_type=kind, dims=weight.shape, raw_data=weight.tobytes()))
    graph = onnx.helper.make_graph(nodes, "g", inputs, outputs, held)
    imports = [onnx.helper.make_opsetid("", opset)]
    return load(onnx.helper.make_model(graph, opset_imports=imports, ir_version=8))


@cache
def kept(name: str, block: int = 64) -> list[tuple[str, Way]]:
    """Ways to store a case, with what they are called: up to 5 for each expression, of all kinds."""
    found = []
    for word, each in ENCODERS.items():
        for number, call in enumerate(each.encode(Weight(CASES[name]))):
            every = ways(call, block)
            found += [(f"{word}{number}: {way.text}", way) for way in every[:: -(-len(every) // 5)]]
    return found


def stored(weight: np.ndarray, found: list[Way], block: int, opset: int = 13) -> ir.Model:
    """A model with `weight` stored in each of the ways, as w0, w1, ..."""
    made = model({f"w{number}": weight for number in range(len(found))}, opset)
    values = made.graph.initializers
    store(made, {values[f"w{number}"]: way.make() for number, way in enumerate(found)}, {}, block)
    check(made)
    return made
