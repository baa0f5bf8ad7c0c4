import numpy as np
import onnx_ir as ir
import pytest

from onnxcompress.data import load_data
from onnxcompress.errors import UsageError


def model(inputs="float[batch, 1, 8, 8] image"):
    body = "y = Constant <value_float: float = 1.0> ()"
    return ir.from_onnx_text(
        f'<ir_version: 8, opset_import: ["" : 17]> g ({inputs}) => (float y) {{ {body} }}'
    )


IMAGES = np.random.default_rng(0).random((4, 1, 8, 8), np.float32)


class Tensor:
    """Like a tensor of torch: numpy can take it, and it can be gone through."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.array, dtype)

    def __iter__(self):
        return (Tensor(row) for row in self.array)


class Loader:
    """Like a DataLoader: goes through its batches anew each time, in another order where it shuffles."""

    def __init__(self, shuffle=False):
        self.shuffle = shuffle
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        places = [0, 2, 1, 3] if self.shuffle and self.passes % 2 else [0, 1, 2, 3]
        for place in places:
            yield [Tensor(IMAGES[place : place + 1]), Tensor(np.array([place]))]


class Dataset:
    """Like a Dataset of torch: has items and a length, and does not say where it ends."""

    def __len__(self):
        return 4

    def __getitem__(self, place):
        return IMAGES[place], place


class Reader:
    """Like a CalibrationDataReader."""

    def __init__(self):
        self.rest = iter(())

    def rewind(self):
        self.rest = iter(IMAGES)

    def get_next(self):
        image = next(self.rest, None)
        return None if image is None else {"image": image[None]}


def generate():
    yield from ({"image": image[None]} for image in IMAGES)


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ({"image": IMAGES}, 4),
        (IMAGES, 4),
        (Tensor(IMAGES), 4),
        ([{"image": image[None]} for image in IMAGES], 4),
        ([image[None].tolist() for image in IMAGES], 4),
        (tuple(IMAGES), 4),
        (Loader(), None),
        (Dataset(), 4),
        (Reader(), None),
        (generate, None),
        ((Loader(), lambda item: {"image": item[0]}), None),
        ((Dataset(), lambda item: item[0]), 4),
        ((list(IMAGES * 2), lambda item: item / 2), 4),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_form_gives_the_same_feeds_at_every_iteration(source, count):
    data = load_data(source, model())
    assert (data.count, data.source, data.random) == (count, "data", False)
    for _ in range(2):
        found = list(data)
        assert [feeds["image"].shape for feeds in found] == [(1, 1, 8, 8)] * 4
        assert {feeds["image"].dtype for feeds in found} == {np.dtype(np.float32)}
        np.testing.assert_array_equal(np.concatenate([feeds["image"] for feeds in found]), IMAGES)


@pytest.mark.parametrize(
    "source",
    [
        Loader(),
        Dataset(),
        (Dataset(), lambda item: ({"image": item[0]}, item[1])),
        [{"image": IMAGES[:3], "labels": [0, 1, 2]}, {"image": IMAGES[3:], "labels": np.int8([3])}],
        [(IMAGES, range(4))],
    ],
)
def test_labels_come_with_the_items(source):
    data = load_data(source, model())
    np.testing.assert_array_equal(data.labels, [0, 1, 2, 3])
    np.testing.assert_array_equal(np.concatenate([feeds["image"] for feeds in data]), IMAGES)


def test_take_keeps_the_labels_of_the_first_feeds():
    first = load_data(Dataset(), model()).take(3)
    np.testing.assert_array_equal(first.labels, [0, 1, 2])
    assert (len(first), len(list(first))) == (3, 3)


def test_a_loader_that_shuffles_may_calibrate_but_not_evaluate():
    data = load_data(Loader(shuffle=True), model())
    assert len(list(data)) == 4
    assert len(list(data)) == len(data.labels) == 4
    with pytest.raises(UsageError, match="feed 1 has other labels than before, expected an order that stays"):
        list(data)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (generate(), "data: generator can be read only once, expected a list, a loader"),
        (iter([]), "data: list_iterator can be read only once"),
        ((generate(), lambda item: item), "data: generator can be read only once"),
        ([], "data: holds no feeds"),
        (lambda: iter(()), "data: holds no feeds"),
        (7, "data: is int, expected a list, a loader"),
        ([{"imgae": IMAGES}], "data: feed 0: imgae: no such input; did you mean image"),
        ([{}], "data: feed 0: input image is missing, there are: none"),
        ([{"image": IMAGES, "extra": 1}], "data: feed 0: extra: no such input"),
        (
            [np.ones((1, 3, 8, 8))],
            r"data: feed 0: input image is \[1, 3, 8, 8\], expected \[batch, 1, 8, 8\]",
        ),
        ([IMAGES[0, 0, 0]], r"data: feed 0: input image is \[8\], expected \[batch, 1, 8, 8\]"),
        ([IMAGES * np.nan], "data: feed 0: input image holds NaN"),
        ([(IMAGES, [1, 2, 3])], r"data: feed 0: labels are int64 \[3\], expected an integer for each sample"),
        ([(IMAGES, [0.5] * 4)], "labels are float64"),
    ],
)
def test_says_what_of_the_data_is_wrong(source, message):
    with pytest.raises(UsageError, match=message):
        load_data(source, model())


def test_labels_in_some_feeds_only_are_refused():
    data = load_data([(IMAGES, range(4)), IMAGES], model())
    with pytest.raises(UsageError, match="some feeds have labels and some have none"):
        _ = data.labels


def test_a_reader_that_can_not_be_rewound_is_refused():
    once = type("Once", (), {"get_next": lambda self: None})()
    with pytest.raises(UsageError, match="has get_next and no rewind, expected both"):
        load_data(once, model())


def test_arrays_without_names_are_refused_where_the_model_has_several_inputs():
    two = model("float[n, 4] a, float[n, 4] b")
    with pytest.raises(UsageError, match="data: feed 0 is ndarray, expected arrays by name: a, b"):
        load_data([np.ones((1, 4))], two)
    with pytest.raises(UsageError, match="data: array: no such input; there are: a, b"):
        load_data(np.ones((1, 4)), two)
