"""What formats say of the memory that they take is what their bodies' nodes make."""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
import pytest
from encoded import computed, different, drawn, grouped, powers, scaled, signed

from onnxcompress.formats import DOMAIN, ENCODERS, FORMATS, Call, Symbols, Weight, coding, huffman
from onnxcompress.formats.base import VERSION, Expression
from onnxcompress.formats.packing import digits, unpacked
from onnxcompress.runtimes.interpreter import Interpreter

BLOCKS = drawn(5, 1, 0.1, (70, 150)).repeat(4, 0).repeat(4, 1) != 0
WEIGHTS = {
    "codebook": [drawn(0, 200, 1, (400, 500)), drawn(0, 30, 1, (300, 300), np.float16)],
    "codebooks": [
        grouped(1, (200, 900), 0, 1, 16),
        grouped(1, (300, 700), 1, 16, 30, 0.1).astype(np.float64),
    ],
    "affine": [scaled(2, (200, 900), 0, 8), scaled(2, (500, 400), None, 4, np.float16)],
    "logscale": [powers(3, (200, 900), 0.9), powers(3, (300, 500), 0.8, np.float16)],
    "relative": [different(4, 0.1, (400, 500)), drawn(4, 16, 0.05, (400, 600))],
    "joint": [drawn(4, 16, 0.1, (400, 500)), drawn(4, 3, 0.3, (300, 300), np.int8)],
    "bitmask": [different(4, 0.4, (400, 500)), drawn(4, 100, 0.4, (400, 300), np.float64)],
    "ternary": [signed(6, True, (200, 900), np.float32), signed(6, True, (200, 900), np.float16)],
    "binary": [signed(7, False, (200, 900), np.float32), signed(7, False, (200, 900), np.float64)],
    "csr": [different(4, 0.1, (400, 500)), drawn(4, 16, 0.05, (40, 6000))],
    "block": [
        np.where(BLOCKS, different(5, 1, BLOCKS.shape), np.float32(0)),
        np.where(BLOCKS, drawn(5, 9, 1, BLOCKS.shape), np.float32(0)),
    ],
}


def calls(expression: Expression) -> Iterator[Call]:
    """The calls of an expression."""
    if isinstance(expression, Call):
        yield expression
        for each in expression.inputs:
            yield from calls(each)


def made(call: Call) -> tuple[int, int]:
    """The bytes of all that the nodes of the function of a call make but its result, and what is stated."""
    known = FORMATS[call.name]
    inputs = [computed(each) for each in call.inputs]
    values = [
        ir.Value(name=f"i{place}", const_value=ir.tensor(each, name=f"i{place}"))
        for place, each in enumerate(inputs)
    ]
    node = ir.node(call.name, values, call.attributes, domain=DOMAIN)
    node.outputs[0].name = "y"
    graph = ir.Graph(
        [], node.outputs, nodes=[node], initializers=values, opset_imports={"": 13, DOMAIN: VERSION}
    )
    model = ir.Model(graph, ir_version=8, functions=known.functions(13))
    found = []

    def hook(node: ir.Node, _: object, outputs: list[np.ndarray]) -> None:
        if node.domain != DOMAIN:
            found.extend(each.nbytes for each in outputs)

    result = Interpreter(hooks=(hook,)).prepare(model).run({})["y"]
    wanted = known.decode(inputs, call.attributes)
    assert result.tobytes() == wanted.tobytes()
    return sum(found) - result.nbytes, known.memory(inputs, result)


@pytest.mark.parametrize("word", list(WEIGHTS))
def test_memory_is_what_the_nodes_make(word: str) -> None:
    for weight in WEIGHTS[word]:
        expressions = list(ENCODERS[word].encode(Weight(weight)))
        assert expressions
        for call in (each for expression in expressions for each in calls(expression)):
            real, stated = made(call)
            assert abs(stated - real) < 0.1 * real + 4096, (call.name, stated / real)


def test_memory_of_packed_numbers_is_what_the_nodes_make() -> None:
    for bits in (1, 3, 4):
        symbols = Symbols(np.random.default_rng(bits).integers(0, 2**bits, 1_000_000).astype(np.uint8))
        for call in (unpacked(symbols), digits(symbols)):
            assert call is not None
            real, stated = made(call)
            assert abs(stated - real) < 0.1 * real + 4096, (call.name, stated / real)


@pytest.mark.parametrize("block", huffman.BLOCKS)
def test_memory_of_huffman_codes_is_what_the_nodes_make(block: int) -> None:
    streams = [Symbols(drawn(seed, 60, 0.9, (100_000,), np.uint8)) for seed in range(3)]
    inputs, attributes, _, _ = coding.pack(streams, block)
    real, stated = made(Call(f"Huffman{block}", tuple(inputs), attributes))
    assert abs(stated - real) < 0.1 * real + 4096, stated / real


def test_every_format_is_measured() -> None:
    assert set(WEIGHTS) == {word for word, each in ENCODERS.items() if each.functions(13)}
