import numpy as np
import pytest

from onnxcompress.offsets import offset


@pytest.mark.parametrize(("dtype", "zero_point"), [(np.uint8, 114), (np.uint8, 0), (np.int8, -128)])
@pytest.mark.parametrize("axis", [0, 1])
def test_sums_of_integers_differ_by_the_offset_from_those_of_what_they_stand_for(
    dtype: type, zero_point: int, axis: int
) -> None:
    draw, ends = np.random.default_rng(0), np.iinfo(dtype)
    integers = draw.integers(ends.min, ends.max, 27, endpoint=True).astype(np.int64)
    weight = draw.integers(-127, 127, (8, 27), endpoint=True).astype(np.int8)
    expected = weight.astype(np.int64) @ (integers - zero_point)
    found = weight.astype(np.int64) @ integers - offset(
        weight if axis == 0 else weight.T, axis, np.array(zero_point, dtype)
    )
    np.testing.assert_array_equal(found, expected)
