import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnxruntime.quantization import quant_utils

from onnxcompress.quantize import (
    FULL,
    REDUCED,
    Activations,
    activation_scale,
    roomy,
    to_int8,
    to_int32,
    to_integers,
    weight_scale,
)

WEIGHTS = hnp.arrays(
    st.sampled_from([np.float16, np.float32, np.float64]),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
    elements=st.floats(-60000, 60000, width=16),
)
ENDS = st.floats(-1e6, 1e6, width=32)


@given(WEIGHTS, st.data())
def test_a_weight_comes_back_within_half_a_step_of_its_channel(
    weight: np.ndarray, data: st.DataObject
) -> None:
    axes = data.draw(st.sets(st.integers(0, max(weight.ndim - 1, 0)), max_size=weight.ndim))
    scale = weight_scale(weight, tuple(axes))
    stored = to_int8(weight, scale)
    assert scale.dtype == np.float32
    assert scale.shape == tuple(n if axis in axes else 1 for axis, n in enumerate(weight.shape))
    assert (stored.dtype, stored.shape) == (np.int8, weight.shape)
    assert (np.abs(stored.astype(int)) <= 127).all()
    error = np.abs(stored * scale.astype(np.float64) - weight.astype(np.float64))
    assert (error <= scale * 0.5001).all()


def test_the_largest_magnitude_of_every_channel_takes_all_steps() -> None:
    weight = np.float32([[0.5, -2.0, 1.0], [1e-6, 3e-6, -1e-6]])
    np.testing.assert_array_equal(np.abs(to_int8(weight, weight_scale(weight, (0,)))).max(axis=1), [127, 127])


@pytest.mark.parametrize("filling", [0.0, 1e-45, -1e-38])
def test_channels_of_nothing_have_a_positive_scale_and_store_zeros(filling: float) -> None:
    weight = np.full((3, 4), filling, np.float32)
    scale = weight_scale(weight, (0,))
    assert (scale > 0).all()
    assert not to_int8(weight, scale).any()


@given(ENDS, ENDS)
def test_an_activation_range_holds_its_ends_and_meets_zero_exactly(one: float, other: float) -> None:
    low, high = min(one, other), max(one, other)
    scale, zero_point = activation_scale(low, high)
    assert (scale.dtype, zero_point.dtype) == (np.float32, np.uint8)
    assert scale > 0
    ends = np.float32([low, high, 0.0])
    back = (to_integers(ends, scale, zero_point).astype(np.float64) - zero_point) * scale
    assert back[2] == 0.0
    assert (np.abs(back - ends) <= 0.51 * float(scale) + 1e-6 * np.abs(ends)).all()


@given(ENDS, ENDS)
def test_scale_and_zero_point_are_those_of_onnxruntime(one: float, other: float) -> None:
    low, high = np.float32(min(one, other)), np.float32(max(one, other))
    if (
        max(high, 0) - min(low, 0) < 1e-16
    ):  # onnxruntime goes on to scales whose products are no normal numbers
        return
    zero_point, scale = quant_utils.compute_scale_zp(
        low, high, np.array(0, np.uint8), np.array(255, np.uint8)
    )
    ours = activation_scale(float(low), float(high))
    np.testing.assert_allclose(ours[0], scale, rtol=1e-6)
    assert abs(int(ours[1]) - int(zero_point)) <= 1  # the scale's last bit may tip a tie


@pytest.mark.parametrize("constant", [0.0, 3.0, -3.0, 1e-44])
def test_a_constant_activation_has_a_positive_scale(constant: float) -> None:
    scale, zero_point = activation_scale(constant, constant)
    assert scale > 0
    back = (to_integers(np.float32(constant), scale, zero_point).astype(float) - zero_point) * scale
    assert back == pytest.approx(constant, rel=1e-6, abs=1e-18)


def test_values_are_rounded_as_quantize_linear_does() -> None:
    from onnx.reference.ops.op_quantize_linear import QuantizeLinear_19

    values = np.random.default_rng(0).normal(0, 3, 1000).astype(np.float32)
    scale, zero_point = activation_scale(-4.0, 5.0)
    expected = QuantizeLinear_19.eval(values, scale, zero_point)
    np.testing.assert_array_equal(to_integers(values, scale, zero_point), expected)


@given(
    hnp.arrays(np.float64, 5, elements=st.floats(-1e5, 1e5)),
    hnp.arrays(np.float32, 5, elements=st.floats(2**-62, 10, width=32)),
    st.floats(2**-63, 10, width=32),
)
def test_a_bias_fits_with_room_for_the_sum_it_is_added_to(
    bias: np.ndarray, scale: np.ndarray, activation: float
) -> None:
    enough = roomy(scale, bias, np.float32(activation))
    assert (enough >= scale).all()
    steps = (enough * np.float32(activation)).astype(np.float32)
    stored = to_int32(bias, steps)
    assert (np.abs(stored.astype(np.int64)) <= 2**30 + 2**8).all()
    assert (np.abs(stored * steps.astype(np.float64) - bias) <= 0.51 * steps).all()


def test_a_clipped_scale_goes_along_with_the_size_of_the_weight() -> None:
    weight = np.random.default_rng(0).standard_t(3, (4, 500)).astype(np.float32)
    large = np.float32(2.0**100)  # squares overflow float32
    np.testing.assert_array_equal(
        weight_scale(weight * large, (0,), clip=True), weight_scale(weight, (0,), clip=True) * large
    )


def test_a_bias_beyond_int32_is_clipped_not_wrapped() -> None:
    np.testing.assert_array_equal(to_int32(np.array([1e9, -1e9]), np.float32(1e-9)), [2**31 - 1, -(2**31)])


@given(ENDS, ENDS, st.booleans(), st.booleans())
def test_ranges_hold_their_ends_in_every_form(
    one: float, other: float, signed: bool, symmetric: bool
) -> None:
    low, high = min(one, other), max(one, other)
    form = Activations(signed, symmetric)
    scale, zero_point = activation_scale(low, high, form)
    assert zero_point.dtype == (np.int8 if signed else np.uint8)
    assert not symmetric or zero_point == (0 if signed else 128)
    ends = np.float32([low, high, 0.0])
    back = (to_integers(ends, scale, zero_point).astype(np.float64) - zero_point) * scale
    assert back[2] == 0.0
    assert (np.abs(back - ends) <= 0.51 * float(scale) + 1e-6 * np.abs(ends)).all()


def test_seven_bits_reach_the_largest_magnitude_in_63_steps() -> None:
    weight = np.float32([[0.5, -2.0, 1.0], [1e-6, 3e-6, -1e-6]])
    stored = to_int8(weight, weight_scale(weight, (0,), REDUCED))
    np.testing.assert_array_equal(np.abs(stored).max(axis=1), [63, 63])


@pytest.mark.parametrize("levels", [FULL, REDUCED])
def test_a_clipped_scale_has_less_error_and_keeps_to_its_levels(levels: int) -> None:
    weight = np.random.default_rng(0).standard_t(3, (4, 5000)).astype(np.float32)
    errors, largest = [], []
    for clip in (False, True):
        scale = weight_scale(weight, (0,), levels, clip)
        steps = to_int8(weight, scale, levels)
        errors.append(np.sum((weight - steps * scale) ** 2, axis=1))
        largest.append(np.abs(steps).max(axis=1))
    assert (errors[1] < errors[0]).all()
    assert (np.array(largest) == levels).all()
