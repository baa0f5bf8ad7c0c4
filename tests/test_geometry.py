import models
import numpy as np
import pytest

from onnxcompress.base import Context
from onnxcompress.geometry import Cost, Geometry, Stage, cost, known_sizes
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
    found = Geometry.of(layer(attributes))
    assert found is not None
    assert (found.begins, found.ends, found.kernel) == (begins, ends, (3, 4))


def test_automatic_pads_of_strides_are_unknown_where_the_size_is() -> None:
    assert Geometry.of(layer('auto_pad = "SAME_UPPER", strides = [2, 1]', "H, W")) is None
    assert Geometry.of(layer('auto_pad = "SAME_UPPER"', "H, W")) is not None
    assert known_sizes(layer("strides = [1, 1]", "H, 9"))[1] is False
    assert known_sizes(layer("strides = [1, 1]")) == ((10, 9), True)


def test_a_chain_costs_what_its_places_times_its_weights_are() -> None:
    geometry = Geometry.of(layer("pads = [1, 2, 3, 4], strides = [2, 1], dilations = [1, 2]"))
    assert geometry is not None
    assert geometry.output((10, 9)) == (6, 9)
    first, second = geometry.along((0,), (3, 1)), geometry.along((1,), (1, 4))
    assert (first.output((10, 9)), second.output((6, 9))) == ((6, 9), (6, 9))
    stages = [Stage((5, 2, 3, 1), first), Stage((4, 5, 1, 4), second)]
    assert cost(stages, (10, 9)) == Cost(30 + 80, (30 + 80) * 54)
    assert Cost(10, 30).share(Cost(20, 40)) == 1.25


def test_windows_are_what_a_convolution_multiplies() -> None:
    draw = np.random.default_rng(0)
    x, weight = draw.standard_normal((2, 2, 10, 9)), draw.standard_normal((4, 2, 3, 4))
    geometry = Geometry.of(layer("pads = [1, 2, 3, 4], strides = [2, 1], dilations = [1, 2]"))
    assert geometry is not None
    rows = windows(x, geometry, draw)
    expected = conv(x, weight, pads=[1, 2, 3, 4], strides=[2, 1], dilations=[1, 2])
    found = (rows @ weight.reshape(4, -1).T).reshape(2, 6, 9, 4)
    np.testing.assert_allclose(found.transpose(0, 3, 1, 2), expected, atol=1e-5)
    many = windows(draw.standard_normal((9, 2, 10, 9)), geometry, draw)
    assert many.shape == (ROWS, 24)
    assert len(np.unique(many, axis=0)) == ROWS  # drawn without replacement
    product = Geometry((), (), (), (), ())
    assert windows(x, product, draw).shape == (40, 9)
