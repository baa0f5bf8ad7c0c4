"""Every format: what is encoded decodes to the same bits, here and in onnxruntime, and damage is an error."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from encoded import BFLOAT16, CASES, arrays, computed, kept, leaves, model, same, stored
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress.errors import CompressError
from onnxcompress.formats import ENCODERS, FORMATS, Call, Symbols, Weight, coding, escape, huffman, packing
from onnxcompress.formats.base import Expression
from onnxcompress.formats.storing import SPLIT, Way, choose, ways
from onnxcompress.formats.unpack import unpack
from onnxcompress.model import to_proto


@pytest.mark.parametrize("word", list(ENCODERS))
@given(array=arrays())
def test_what_is_encoded_decodes_to_the_same_bits(word: str, array: np.ndarray) -> None:
    for call in ENCODERS[word].encode(Weight(array)):
        assert same(computed(call), array)
        for way in ways(call, 64):
            assert same(computed(way.make()), array)


VERSIONS = [(name, 13, 64) for name in CASES]
VERSIONS += [(name, *more) for name in list(CASES)[::6] for more in ((18, 32), (23, 128))]


@pytest.mark.parametrize(("name", "opset", "block"), VERSIONS)
def test_functions_compute_what_decode_does(name: str, opset: int, block: int) -> None:
    weight = CASES[name]
    texts, found = zip(*kept(name, block), strict=True)
    made = stored(weight, list(found), block, opset)
    proto = to_proto(made)
    if not proto.graph.sparse_initializer:
        onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = weight.astype(np.float32) if weight.dtype == BFLOAT16 else weight
    for text, result in zip(texts, session.run(None, {"s": np.array(weight.shape)}), strict=True):
        assert same(result, wanted), text
    assert sorted(unpack(made, sparse=True)) == sorted(f"w{number}" for number in range(len(found)))
    for number, text in enumerate(texts):
        assert same(made.graph.initializers[f"w{number}"].const_value.numpy(), weight), text  # type: ignore[union-attr]
    assert not made.functions
    assert len(made.graph) == len(model(dict.fromkeys(made.graph.initializers, weight)).graph)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2), (1, 1, 1, 1), (65,), (2, 3, 2)])
def test_functions_compute_arrays_of_every_shape(shape: tuple[int, ...]) -> None:
    for weight in (np.zeros(shape, np.float32), np.full(shape, 2.5, np.float16), np.ones(shape, np.int8)):
        weight.reshape(-1)[1::3] = 0
        calls = [call for each in ENCODERS.values() for call in each.encode(Weight(weight))]
        found = [way for call in calls for way in ways(call, 64)]
        assert found or not weight.size
        if not found:
            continue
        proto = to_proto(stored(weight, found, 64)).SerializeToString()
        session = onnxruntime.InferenceSession(proto, providers=["CPUExecutionProvider"])
        for way, result in zip(found, session.run(None, {"s": np.array(shape, np.int64)}), strict=True):
            assert same(result, weight), way.text


@pytest.mark.parametrize("name", list(CASES))
def test_the_estimate_of_a_size_is_close(name: str) -> None:
    weight = CASES[name]
    plain = to_proto(model({"w0": weight[:0]})).ByteSize()
    for text, way in kept(name)[::3]:
        made = stored(weight, [way], 64)
        functions = sum(ir.to_proto(each).ByteSize() for each in made.functions.values())
        fixed = SPLIT if "Huffman" in text else 0  # counted with the function
        rest = to_proto(made).ByteSize() - functions - fixed - plain
        assert abs(rest - way.bytes) < 120 + 0.02 * way.bytes, text


@given(st.lists(st.integers(0, 255), max_size=600), st.integers(0, 7))
def test_packing_is_undone(values: list[int], shift: int) -> None:
    symbols = Symbols(np.array(values, np.uint8) >> shift)
    for call in (packing.unpacked(symbols), packing.digits(symbols)):
        if call is not None:
            np.testing.assert_array_equal(computed(call).reshape(-1)[: len(values)], symbols.values)


@given(st.lists(st.integers(0, 255) | st.integers(0, 9), max_size=900))
def test_exceptions_are_put_back(values: list[int]) -> None:
    symbols = Symbols(np.array(values, np.uint8))
    for width in escape.WIDTHS:
        np.testing.assert_array_equal(computed(escape.escaped(symbols, width)), symbols.values)


def test_rare_large_numbers_become_exceptions_in_few_bytes() -> None:
    symbols = Symbols(np.random.default_rng(0).geometric(0.3, 8000).clip(1, 256).astype(np.uint8))
    assert escape.width(symbols) == 4
    call = escape.escaped(symbols, 4)
    assert sum(each.nbytes for each in leaves(call)) == pytest.approx(escape.size(symbols, 4), rel=0.02)
    assert escape.size(symbols, 4) < 0.6 * symbols.values.size
    assert escape.width(Symbols(np.arange(256, dtype=np.uint8))) is None


def way(bytes_: float, memory: float, name: str) -> Way:
    return Way(bytes_, frozenset({name}), lambda: np.zeros(0), name, memory)


def test_within_a_budget_of_memory_the_smallest_ways_are_chosen() -> None:
    each = [way(1e6, 8e6, "Codebook"), way(2e6, 1e6, "Lookup"), way(5e6, 0, "Scatter")]
    options = dict.fromkeys(range(4), (10**7, each))

    def chosen(memory: float | None) -> list[str]:
        return sorted(each.text for each in choose(options, memory).values())

    assert chosen(None) == chosen(32e6) == ["Codebook"] * 4
    assert chosen(31e6) == ["Codebook"] * 3 + ["Lookup"]
    assert chosen(7e6) == ["Lookup"] * 4
    assert chosen(3e6) == ["Lookup"] * 3 + ["Scatter"]
    assert chosen(0) == ["Scatter"] * 4


@given(
    st.lists(st.lists(st.integers(0, 255), min_size=1, max_size=900), min_size=1, max_size=4),
    st.sampled_from(huffman.BLOCKS),
)
def test_streams_side_by_side_are_decoded(streams: list[list[int]], block: int) -> None:
    symbols = [Symbols(np.array(each, np.uint8)) for each in streams]
    packed = coding.pack(symbols, block)
    decoded = FORMATS[f"Huffman{block}"].decode(packed.inputs, packed.attributes)
    parts = np.split(decoded, np.cumsum(packed.sizes)[:-1], axis=1)
    assert sorted(packed.order) == list(range(len(streams)))
    for part, number in zip(parts, packed.order, strict=True):
        values = symbols[number].values
        np.testing.assert_array_equal(part.reshape(-1)[: values.size], values)


def test_similar_streams_share_a_code_and_others_do_not() -> None:
    draw = np.random.default_rng(0)
    shares = [(0.1, 3000), (0.7, 3000), (0.11, 500), (0.69, 500)]
    streams = [Symbols(draw.geometric(p, n).clip(1, 40).astype(np.uint8) - np.uint8(1)) for p, n in shares]
    assert [members for members, _ in coding.alike(streams)] == [[0, 2], [1, 3]]
    apart = sum(coding.coded_bytes(each, 64) or 0 for each in streams)
    assert sum(each.nbytes for each in coding.pack(streams, 64).inputs) < apart - 2 * coding.LIMIT


@given(st.lists(st.integers(1, 10**6), min_size=2, max_size=256))
def test_codes_are_as_short_as_can_be(counts: list[int]) -> None:
    ordered = np.sort(np.array(counts))
    lengths = coding.limited(ordered)
    assert lengths.max() <= coding.LIMIT
    assert (2.0**-lengths).sum() == 1
    assert (np.diff(lengths) <= 0).all()
    entropy = -(ordered / ordered.sum() * np.log2(ordered / ordered.sum())).sum()
    mean = (ordered * lengths).sum() / ordered.sum()
    assert entropy - 1e-9 <= mean < entropy + 1


def test_a_code_of_known_lengths() -> None:
    np.testing.assert_array_equal(coding.limited(np.array([1, 1, 2, 3, 5, 8])), [5, 5, 4, 3, 2, 1])


def test_a_stream_of_equally_frequent_bytes_is_not_coded() -> None:
    assert coding.code(np.full(256, 7)) is None
    assert coding.coded_bytes(Symbols(np.arange(256, dtype=np.uint8)), 64) is None


def damaged(draw: st.DrawFn, expression: Expression) -> Expression:
    """`expression` with some of what is stored changed."""
    if isinstance(expression, Symbols):
        return damaged(draw, expression.values)
    if isinstance(expression, Call):
        attributes = {
            key: draw(
                st.just(value)
                | st.integers(-3, 2**40)
                | st.lists(st.integers(-3, 2**33), max_size=5).map(tuple)
            )
            for key, value in expression.attributes.items()
        }
        return Call(expression.name, tuple(damaged(draw, each) for each in expression.inputs), attributes)
    array = expression.copy()
    if array.size and draw(st.booleans()):
        flat = array.reshape(-1).view(np.uint8)
        flat[draw(st.integers(0, flat.size - 1))] = draw(st.integers(0, 255))
    change = draw(st.sampled_from(["none", "none", "cut", "grown", "typed", "shaped"]))
    if change == "cut":
        return array.reshape(-1)[: draw(st.integers(0, array.size))]
    if change == "grown":
        return np.resize(array, (array.size + 3,))
    if change == "typed":
        return array.astype(draw(st.sampled_from([np.uint8, np.int64, np.float32, np.bool_])))
    return array.reshape(1, -1) if change == "shaped" else array


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damage_is_an_error_or_another_array_but_nothing_else(data: st.DataObject) -> None:
    text, way = data.draw(st.sampled_from(kept(data.draw(st.sampled_from(list(CASES))))))
    with np.errstate(invalid="ignore", over="ignore"):
        broken = damaged(data.draw, way.make())  # type: ignore[arg-type]
        try:
            result = computed(broken)
        except CompressError:
            return
        assert result.size <= 300 * (sum(each.size for each in leaves(broken)) + 64), text


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_streams_are_an_error_or_symbols(data: st.DataObject) -> None:
    streams = [
        Symbols(np.random.default_rng(seed).geometric(0.1, 700).clip(0, 255).astype(np.uint8))
        for seed in range(3)
    ]
    inputs, attributes, _, _ = coding.pack(streams, 64)
    broken = damaged(data.draw, Call("Huffman64", tuple(inputs), attributes))  # type: ignore[arg-type]
    with np.errstate(invalid="ignore", over="ignore"):
        try:
            result = computed(broken)
        except CompressError:
            return
    assert result.shape[0] == 64
    assert result.dtype == np.uint8
