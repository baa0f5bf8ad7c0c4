import models
import numpy as np
import pytest

from onnxcompress.base import Context
from onnxcompress.convolve import Window
from onnxcompress.cost import Cost, chain_cost
from onnxcompress.geometry import known_sizes, window
from onnxcompress.layers import Layer, by_weight
from onnxcompress.moments import ROWS, windows
from onnxcompress.windows import conv


def layer(attributes: str, size: str = "10, 9", kernel: str = "3, 4") -> Layer:
    made = models.model(
        f"""net (float[1, 2, {size}] x) => (float[1, 4, A, B] y) <float[4, 2, {kernel}] w = {{}}>
        {{ y = Conv<{attributes}>(x, w) }}"""
    )
    ((readers, _),) = by_weight(made, Context())
    return readers[0]


@pytest.mark.parametrize(
    ("attributes", "begins", "ends"),
    [
        ("pads = [1, 2, 3, 4]", (1, 2), (3, 4)),
        ('auto_pad = "VALID"', (0, 0), (0, 0)),
        ('auto_pad = "SAME_UPPER"', (1, 1), (1, 2)),
        ('auto_pad = "SAME_LOWER"', (1, 2), (1, 1)),
        ('auto_pad = "SAME_UPPER", strides = [2, 3]', (0, 0), (1, 1)),
        ("strides = [2, 1]", (0, 0), (0, 0)),
    ],
)
def test_pads_are_read_or_computed(attributes: str, begins: tuple[int, ...], ends: tuple[int, ...]) -> None:
    found = window(layer(attributes))
    assert isinstance(found, Window)
    assert (found.front, found.back, found.sizes) == (begins, ends, (3, 4))


def test_automatic_pads_of_strides_are_unknown_where_the_size_is() -> None:
    reason = "its padding depends on the size of its input, which isn't known"
    assert window(layer('auto_pad = "SAME_UPPER", strides = [2, 1]', "H, W")) == reason
    assert isinstance(window(layer('auto_pad = "SAME_UPPER"', "H, W")), Window)
    assert known_sizes(layer("strides = [1, 1]", "H, 9"))[1] is False
    assert known_sizes(layer("strides = [1, 1]")) == ((10, 9), True)


def test_a_transposed_convolution_has_the_channels_it_reads_and_makes() -> None:
    made = models.model(
        """net (float[1, 6, 5] x) => (float[1, 4, A] y) <float[6, 2, 3] w = {}>
        { y = ConvTranspose<group = 2, strides = [2], pads = [1, 0]>(x, w) }"""
    )
    ((readers, _),) = by_weight(made, Context())
    assert window(readers[0]) == Window(4, 6, 2, (3,), (2,), (1,), (1,), (0,))


def test_a_chain_costs_what_its_places_times_its_weights_are() -> None:
    whole = window(layer("pads = [1, 2, 3, 4], strides = [2, 1], dilations = [1, 2]"))
    assert isinstance(whole, Window)
    assert whole.output((10, 9)) == (6, 9)
    first, second = whole.along((0,), (5, 2, 3, 1), 2), whole.along((1,), (4, 5, 1, 4), 5)
    assert (first.output((10, 9)), second.output((6, 9))) == ((6, 9), (6, 9))
    cost = chain_cost([first, second], (10, 9))
    assert cost == Cost(30 + 80, (30 + 80) * 54, 2 * 90 + 5 * 54, 5 * 54 + 4 * 54)
    assert Cost(10, 30).share(Cost(20, 40)) == 1.25


def test_windows_are_what_a_convolution_multiplies() -> None:
    draw = np.random.default_rng(0)
    x, weight = draw.standard_normal((2, 2, 10, 9)), draw.standard_normal((4, 2, 3, 4))
    whole = window(layer("pads = [1, 2, 3, 4], strides = [2, 1], dilations = [1, 2]"))
    assert isinstance(whole, Window)
    rows = windows(x, whole, draw)
    expected = conv(x, weight, pads=[1, 2, 3, 4], strides=[2, 1], dilations=[1, 2])
    found = (rows @ weight.reshape(4, -1).T).reshape(2, 6, 9, 4)
    np.testing.assert_allclose(found.transpose(0, 3, 1, 2), expected, atol=1e-5)
    many = windows(draw.standard_normal((9, 2, 10, 9)), whole, draw)
    assert many.shape == (ROWS, 24)
    assert len(np.unique(many, axis=0)) == ROWS  # drawn without replacement
    assert windows(x, Window(4, 9), draw).shape == (40, 9)
