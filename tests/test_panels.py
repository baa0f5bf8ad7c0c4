"""Arithmetic on panels of blocks, against what numpy does the plain way."""

import numpy as np
import pytest

from onnxcompress.blocks import Blocks, pack
from onnxcompress.panels import extremes, joined, one_magnitude, turned, widened


def test_every_finite_float16_is_widened_as_numpy_does() -> None:
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    every = every[np.isfinite(every)]
    assert widened(every).tobytes() == every.astype(np.float32).tobytes()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("shift", [-9, 0, 9])
def test_extremes_are_those_of_the_numbers_and_zero(dtype: type[np.floating], shift: float) -> None:
    panel = (np.random.default_rng(0).standard_normal((3, 16, 5)) + shift).astype(dtype)
    panel[0, 0, 0] = -0.0
    low, high = extremes(panel)
    np.testing.assert_array_equal(low, np.minimum(panel.min(axis=1), 0))
    np.testing.assert_array_equal(high, np.maximum(panel.max(axis=1), 0))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_steps_below_zero_are_joined_as_they_are_packed_above(bits: int) -> None:
    draw = np.random.default_rng(bits)
    whole = draw.integers(0, 1 << bits, (2, 16, 7)).astype(np.uint8)
    zero = draw.integers(0, 1 << bits, (2, 7)).astype(np.float32)
    np.testing.assert_array_equal(joined(whole - zero[:, None], zero, bits), pack(whole, bits, axis=1))


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_blocks_of_one_magnitude_are_found_whether_few_or_many(share: float) -> None:
    draw = np.random.default_rng(0)
    panel = draw.choice(np.array([-2, 0, 2], np.float32), (4, 16, 50))
    wanted = draw.random((4, 50)) < share
    panel[:, 9][~wanted] = 1
    np.testing.assert_array_equal(one_magnitude(panel, np.full((4, 50), 2, np.float32)), wanted)


def test_a_weight_larger_than_a_panel_is_quantized_as_its_parts_are() -> None:
    weight = np.random.default_rng(0).standard_normal((530, 4100)).astype(np.float16)
    blocks = Blocks(4, 32, dtype=np.float16)
    fit, stored = blocks.quantize(weight)
    for part in (slice(0, 3), slice(4094, 4100)):
        alone, steps = blocks.quantize(weight[:, part])
        np.testing.assert_array_equal(fit.scale[part], alone.scale)
        np.testing.assert_array_equal(stored.steps[part], steps.steps)
    again = blocks.quantize(np.asfortranarray(weight))[1]
    np.testing.assert_array_equal(stored.steps, again.steps)
    np.testing.assert_array_equal(turned(weight.T), weight.T)
