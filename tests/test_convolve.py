import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from onnxcompress.convolve import (
    Window,
    common,
    compose,
    compose_bias,
    composed,
    regroup,
    sees_outside,
    widen,
)
from onnxcompress.windows import conv

DRAW = np.random.default_rng(0)


def run(
    window: Window, weight: np.ndarray, x: np.ndarray, bias: np.ndarray | None = None, pads: bool = True
) -> np.ndarray:
    return conv(
        x,
        weight,
        bias,
        group=window.groups,
        strides=window.strides,
        dilations=window.dilations,
        pads=(*window.front, *window.back) if pads else None,
    )


@st.composite
def windows(draw: st.DrawFn, inputs: int, rank: int = 2) -> Window:
    groups = draw(st.sampled_from([each for each in (1, 2, 4) if inputs % each == 0]))
    outputs = groups * draw(st.integers(1, 4 // groups))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(rank))

    return Window(outputs, inputs, groups, each(1, 3), each(1, 2), each(1, 2), each(0, 2), each(0, 2))


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Window, Window]:
    first = draw(windows(draw(st.sampled_from([1, 2, 4]))))
    return first, draw(windows(first.outputs))


@given(pairs(), st.integers(3, 8), st.integers(3, 8))
def test_two_convolutions_are_one_where_the_second_does_not_pad(
    pair: tuple[Window, Window], height: int, width: int
) -> None:
    first, second = pair
    second = Window(**{**vars(second), "front": (0, 0), "back": (0, 0)})
    middle = first.output((height, width))
    assume(min(middle) > 0)
    assume(min(second.output(middle)) > 0)
    v, w = DRAW.normal(size=first.shape), DRAW.normal(size=second.shape)
    b, c = DRAW.normal(size=first.outputs), DRAW.normal(size=second.outputs)
    x = DRAW.normal(size=(2, first.inputs, height, width))
    expected = run(second, w, run(first, v, x, b), c)
    one = composed(first, second)
    found = run(one, compose(v, w, (first, second)), x, c + compose_bias(b, w, second.groups))
    np.testing.assert_allclose(found, expected, atol=1e-10)


@pytest.mark.parametrize(("groups", "behind", "left"), [(2, 3, 1), (6, 2, 2), (3, 6, 3)])
def test_groups_that_do_not_divide_one_another_are_widened_to_what_both_have(
    groups: int, behind: int, left: int
) -> None:
    first, second = Window(6, 6, groups), Window(6, 6, behind)
    v, w, x = DRAW.normal(size=first.shape), DRAW.normal(size=second.shape), DRAW.normal(size=(3, 6))
    expected = conv(conv(x, v, group=groups), w, group=behind)
    assert composed(first, second).groups == left
    np.testing.assert_allclose(conv(x, compose(v, w, (first, second)), group=left), expected, atol=1e-12)


@given(pairs(), st.integers(3, 8), st.integers(3, 8))
def test_borders_are_the_same_where_nothing_outside_is_seen(
    pair: tuple[Window, Window], height: int, width: int
) -> None:
    first, second = pair
    middle = first.output((height, width))
    assume(min(middle) > 0)
    assume(min(second.output(middle)) > 0)
    v, w = DRAW.normal(size=first.shape), DRAW.normal(size=second.shape)
    x = DRAW.normal(size=(1, first.inputs, height, width))
    expected = run(second, w, run(first, v, x))
    found = run(composed(first, second), compose(v, w, (first, second)), x)
    assert found.shape == expected.shape
    if not sees_outside(first, second, (height, width)):
        np.testing.assert_allclose(found, expected, atol=1e-10)
        return
    assert sees_outside(first, second, None)
    if second.strides == (1, 1):
        assert not np.allclose(found, expected)  # it would be wrong to compose them


def test_what_holds_for_all_sizes_is_asked_without_one() -> None:
    even = Window(1, 1, 1, (2,), (2,), (1,), (0,), (0,))
    padded = Window(1, 1, 1, (3,), (1,), (1,), (0,), (1,))
    assert not sees_outside(even, padded, (8,))
    assert sees_outside(even, padded, (9,))
    assert sees_outside(even, padded, None)


@given(st.data(), st.integers(1, 2), st.integers(0, 3))
def test_windows_on_one_input_fit_into_their_common_one(data: st.DataObject, stride: int, spare: int) -> None:
    given = []
    for _ in range(data.draw(st.integers(2, 3))):
        size, dilation = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))
        reach = dilation * (size - 1)
        front = data.draw(st.integers(0, reach + spare))
        groups = data.draw(st.sampled_from([1, 2, 4]))
        given.append(
            Window(4, 4, groups, (size,), (stride,), (dilation,), (front,), (reach + spare - front,))
        )
    wide = common(given, None)
    assert wide is not None
    x = DRAW.normal(size=(1, 4, 9))
    for each in given:
        weight = DRAW.normal(size=each.shape)
        target = Window(**{**vars(wide), "groups": 1})
        np.testing.assert_allclose(
            run(target, widen(weight, each, target), x), run(each, weight, x), atol=1e-10
        )


def test_windows_of_other_strides_or_output_sizes_have_none_in_common() -> None:
    one = Window(1, 1, 1, (3,), (1,), (1,), (1,), (1,))
    assert common([one, Window(**{**vars(one), "strides": (2,)})], None) is None
    assert common([one, Window(**{**vars(one), "back": (0,)})], None) is None
    assert common([one, Window(**{**vars(one), "back": (0,)})], (8,)) is None


def test_with_a_stride_other_windows_may_fit_some_sizes() -> None:
    three = Window(1, 1, 1, (3,), (2,), (1,), (0,), (1,))
    point = Window(1, 1, 1, (1,), (2,), (1,), (0,), (0,))
    assert common([three, point], None) is None
    assert common([three, point], (8,)) == three
    assert common([three, point], (9,)) is None


@pytest.mark.parametrize(("groups", "fewer"), [(4, 1), (4, 2), (6, 3), (6, 2), (2, 2)])
def test_fewer_groups_hold_the_same_weights_and_zeros(groups: int, fewer: int) -> None:
    weight, x = DRAW.normal(size=(12, 3, 2)), DRAW.normal(size=(1, 3 * groups, 5))
    grown = regroup(weight, groups, fewer)
    assert grown.shape == (12, 3 * groups // fewer, 2)
    np.testing.assert_allclose(conv(x, grown, group=fewer), conv(x, weight, group=groups), atol=1e-12)


def test_holes_of_dilated_kernels_are_not_stored() -> None:
    tall = Window(2, 2, 1, (3, 1), (1, 1), (2, 2), (2, 0), (2, 0))
    wide = Window(2, 2, 1, (1, 3), (1, 1), (2, 2), (0, 2), (0, 2))
    assert composed(tall, wide) == Window(2, 2, 1, (3, 3), (1, 1), (2, 2), (2, 2), (2, 2))


def test_depthwise_and_pointwise_make_a_full_convolution() -> None:
    deep = Window(4, 4, 4, (3, 3), (2, 2), (1, 1), (1, 1), (1, 1))
    point = Window(6, 4, 1, (1, 1), (1, 1), (1, 1), (0, 0), (0, 0))
    assert composed(deep, point).shape == (6, 4, 3, 3)
    assert composed(deep, deep).groups == 4
    assert composed(deep, deep).strides == (4, 4)
