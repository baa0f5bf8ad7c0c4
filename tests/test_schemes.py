from collections.abc import Callable
from functools import partial

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxcompress.compensation import compensated
from onnxcompress.loss import decibels
from onnxcompress.schemes import (
    Grid,
    array,
    binary,
    fixed,
    fixed_exponent,
    logarithmic,
    matrix,
    ternary,
)

DTYPES = [np.dtype(each) for each in (np.float16, np.float32, np.float64, ml_dtypes.bfloat16)]
SCHEMES: dict[str, Callable[[np.ndarray], Grid]] = {
    "ternary": ternary,
    "two scales": partial(ternary, two=True),
    "binary": binary,
    "powers, 2 bits": partial(logarithmic, bits=2),
    "powers, 4 bits": partial(logarithmic, bits=4),
    "powers of sqrt2": partial(logarithmic, bits=4, steps=2),
    "powers, 8 bits": partial(logarithmic, bits=8),
    "fixed, 2 bits": partial(fixed, bits=2),
    "fixed, 8 bits": partial(fixed, bits=8),
    "fixed, 16 bits": partial(fixed, bits=16),
}
rows = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(
        np.float64,
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=9),
        elements=st.floats(-8, 8, width=16) | st.sampled_from([0.0, -0.0, 1.0, -1.0, 6e-8]),
    ).map(lambda values: values.astype(dtype))
)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("name", SCHEMES)
@settings(max_examples=25)
@given(rows)
def test_a_second_rounding_changes_nothing(name: str, given: np.ndarray) -> None:
    scheme = SCHEMES[name]
    once = scheme(given)(given)
    assert (once.shape, once.dtype) == (given.shape, given.dtype)
    np.testing.assert_array_equal(scheme(once)(once), once)
    if name != "binary":
        assert not once[given == 0].any()
    assert not np.signbit(once[once == 0].astype(np.float64)).any()


@settings(max_examples=25)
@given(rows)
def test_ternary_holds_zero_and_one_magnitude_that_is_a_mean(given: np.ndarray) -> None:
    made = ternary(given)(given).astype(np.float64)
    for row, found in zip(given.astype(np.float64), made, strict=True):
        sizes = np.unique(np.abs(found[found != 0]))
        assert sizes.size <= 1
        large = np.abs(row)[np.abs(row) > 0.7 * np.abs(row).mean()] if row.size else row
        if sizes.size and len({*np.abs(row[row != 0])}) > 1:
            # 2**-7 is the precision of bfloat16, the least of all, 2**-24 its smallest float16
            assert sizes[0] == pytest.approx(large.mean(), rel=2**-7, abs=2**-24)
            np.testing.assert_array_equal(np.sign(found), np.sign(row) * np.isin(np.abs(row), large))


def test_two_scales_are_the_means_of_either_sign() -> None:
    row = np.array([[8.0, 4.0, 0.1, -0.1, -2.5, -3.5]], np.float32)
    made = ternary(row, two=True)(row)
    np.testing.assert_array_equal(made, [[6, 6, 0, 0, -3, -3]])
    assert decibels(row, made) > decibels(row, ternary(row)(row))


@settings(max_examples=25)
@given(rows)
def test_binary_holds_the_mean_magnitude_with_the_signs_of_the_row(given: np.ndarray) -> None:
    made = binary(given)(given)
    for row, found in zip(given.astype(np.float64), made.astype(np.float64), strict=True):
        if row.size:
            mean = np.abs(row).mean()
            np.testing.assert_allclose(np.abs(found), mean, rtol=2**-7, atol=2**-24)
            assert (np.sign(found)[row != 0] == np.sign(row)[row != 0]).all() or mean < 2**-24
            assert (found[row == 0] >= 0).all()


@pytest.mark.parametrize("steps", [1, 2])
@settings(max_examples=25)
@given(rows, st.integers(2, 8))
def test_powers_are_as_many_as_bits_tell_apart_and_as_near_as_can_be(
    steps: int, given: np.ndarray, bits: int
) -> None:
    grid = logarithmic(given, bits, steps)
    made = grid(given)
    for row, found, exponent in zip(given, made, grid.exponent, strict=True):
        sizes = np.unique(np.abs(found[found != 0].astype(np.float64)))
        least = float(exponent[0]) - (2 ** (bits - 1) - 2) / steps
        powers = steps * np.log2(sizes)
        normal_numbers = sizes >= 2.0**-14  # smaller float16 are coarse
        np.testing.assert_allclose(powers[normal_numbers], np.rint(powers[normal_numbers]), atol=0.03)
        assert (sizes <= 2.0 ** exponent[0]).all()
        assert (np.log2(sizes) >= least - 0.02).all()
        within = (np.abs(row) <= 2.0 ** exponent[0]) & (np.abs(row) >= max(2.0**least, 2.0**-13))
        error = np.abs(found.astype(np.float64) - row.astype(np.float64))[within]
        widest = 1 / 3 if steps == 1 else (2**0.5 - 1) / (2**0.5 + 1)
        assert (error <= (widest + 0.01) * np.abs(row[within].astype(np.float64))).all()


@settings(max_examples=25)
@given(rows, st.integers(2, 16))
def test_fixed_point_holds_whole_numbers_of_steps_as_near_as_can_be(given: np.ndarray, bits: int) -> None:
    grid = fixed(given, bits)
    made = grid(given).astype(np.float64)
    for row, found, exponent in zip(given.astype(np.float64), made, grid.exponent, strict=True):
        steps = found / 2.0 ** exponent[0]
        if given.dtype in (np.float32, np.float64):  # others can't hold all numbers of 16 bits
            np.testing.assert_array_equal(steps, np.rint(steps))
            within = (row / 2.0 ** exponent[0] <= grid.high) & (row / 2.0 ** exponent[0] >= grid.low)
            assert (np.abs(found - row)[within] <= 2.0 ** exponent[0] / 2).all()
        assert (steps <= grid.high).all() or bits > 8
        assert (steps >= grid.low).all()


def test_the_full_scale_is_the_one_of_the_least_squared_error() -> None:
    row = np.concatenate([normal(1, 5000), [[9.0]]], axis=1)
    for scheme in (partial(fixed, bits=4), partial(logarithmic, bits=3)):
        grid = scheme(row)
        best = decibels(row, grid(row))
        kind = type(grid)
        for other in (-2, -1, 1, 2):
            rest = (grid.low, grid.high) if hasattr(grid, "low") else (grid.sizes,)  # type: ignore[attr-defined]
            assert decibels(row, kind(grid.exponent + other, *rest)(row)) < best  # type: ignore[attr-defined]
    assert fixed(row, 4).exponent < fixed_exponent(np.array(9.0), 7)


def test_each_channel_has_a_grid_of_its_own() -> None:
    given = normal(3, 500) * np.array([[1], [100], [1e-30]], np.float32)
    for scheme in SCHEMES.values():
        made = scheme(given)(given)
        for row, found in zip(given, made, strict=True):
            np.testing.assert_array_equal(found, scheme(row[None])(row[None])[0])
            assert decibels(row, found) > 4


@pytest.mark.parametrize(
    ("extent", "most", "exponent"), [(127, 127, 0), (128, 127, 1), (1, 255, -7), (0, 7, -126)]
)
def test_the_fixed_exponent_is_the_least_that_reaches(extent: float, most: int, exponent: int) -> None:
    assert fixed_exponent(np.array(extent), most) == exponent


# Miyashita et al. 2016, table 1: powers of two up to the full scale, the smallest of 2**(bits - 1) - 1.
def test_four_bits_are_seven_powers_of_either_sign_and_zero() -> None:
    values = np.array([[1.0, 0.51, 0.25, 0.12, 0.06, 0.03, 0.016, 0.007, -0.3, -1.0, 0]], np.float32)
    expected = [[1, 0.5, 0.25, 0.125, 0.0625, 2**-5, 2**-6, 0, -0.25, -1, 0]]
    np.testing.assert_array_equal(logarithmic(values, 4)(values), expected)


@pytest.mark.parametrize(
    ("shape", "axes"), [((3, 4), (1,)), ((2, 3, 4, 5), (0,)), ((2, 3, 4), (0, 1)), ((3, 4), ())]
)
def test_rows_make_the_array_they_came_from(shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    given = normal(*shape)
    channels = matrix(given, axes)
    assert len(channels) == np.prod([shape[axis] for axis in axes])
    np.testing.assert_array_equal(array(channels, shape, axes), given)
    if axes == (1,):
        np.testing.assert_array_equal(channels, given.T)


@pytest.mark.parametrize("name", [each for each in SCHEMES if "16" not in each])
def test_compensated_weights_are_on_the_grid_and_their_outputs_nearer(name: str) -> None:
    weights, mix = normal(16, 200), normal(40, 200, seed=1)
    inputs = normal(1000, 40, seed=2) @ mix + normal(1000, 200, seed=3)  # 40 directions hold most
    moments = inputs.T.astype(np.float64) @ inputs / len(inputs)
    grid = SCHEMES[name](weights)
    made = compensated(weights, moments, grid)
    np.testing.assert_array_equal(grid(made), made)
    assert made.dtype == weights.dtype
    outputs, plain, better = (each @ inputs.T for each in (weights, grid(weights), made))
    assert decibels(outputs, better) > decibels(outputs, plain) + 1


def test_inputs_that_have_nothing_in_common_make_up_for_nothing() -> None:
    weights = normal(8, 300)
    grid = ternary(weights)
    made = compensated(weights, np.diag(np.linspace(1, 2, 300)), grid)
    np.testing.assert_array_equal(made, grid(weights))
