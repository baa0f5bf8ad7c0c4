import numpy as np
import pytest
from pixels import images, joined, model

from onnxcompress.data import load_data
from onnxcompress.errors import UsageError


def test_samples_that_do_not_fill_a_fixed_batch_are_left_out_and_told(tmp_path):
    np.savez(tmp_path / "a.npz", image=images(), labels=np.arange(5))
    data = load_data(tmp_path / "a.npz", model("float[2, 1, 8, 8] image"), batch=4)
    assert [len(feeds["image"]) for feeds in data] == [2, 2]
    np.testing.assert_array_equal(data.labels, range(4))
    (note,) = data.notes
    assert note.endswith("a.npz: 1 samples left out, every feed takes 2")
    with pytest.raises(UsageError, match=r"5 of 5 samples, expected at least 8"):
        load_data(tmp_path / "a.npz", model("float[8, 1, 8, 8] image"))


def test_labels_are_an_input_where_the_model_has_such_an_input(tmp_path):
    np.savez(tmp_path / "a.npz", image=images(), labels=np.arange(5))
    data = load_data(tmp_path / "a.npz", model("float[n, 1, 8, 8] image, int64[n] labels"), batch=5)
    assert data.labels is None
    np.testing.assert_array_equal(joined(data, "labels"), range(5))


def test_arrays_that_are_no_inputs_are_told(tmp_path):
    np.savez(tmp_path / "a.npz", image=images(), label=np.arange(5))
    assert load_data(tmp_path / "a.npz", model()).notes == (
        "a.npz: not inputs of the model and not used: label",
    )


def test_inputs_without_a_batch_axis_have_their_samples_before_their_own_axes(tmp_path):
    np.savez(
        tmp_path / "a.npz",
        input=np.ones((3, 512), np.float32),
        state=np.ones((3, 2, 1, 128), np.float32),
        rate=np.array([8000, 16000, 8000], np.int32),
    )
    recurrent = model("float[n, m] input, float[2, n, 128] state, int64 rate")
    found = list(load_data(tmp_path / "a.npz", recurrent, batch=2))
    assert [feeds["input"].shape for feeds in found] == [(1, 512)] * 3
    assert [feeds["state"].shape for feeds in found] == [(2, 1, 128)] * 3
    assert [int(feeds["rate"]) for feeds in found] == [8000, 16000, 8000]
    assert {feeds["rate"].dtype for feeds in found} == {np.dtype(np.int64)}


@pytest.mark.parametrize(
    ("declared", "shape"), [("int64", ()), ("int64", (1,)), ("int64[1]", (1,)), ("int64[1]", ())]
)
def test_a_single_value_stands_for_every_sample(declared, shape):
    data = load_data(
        {"x": np.ones((3, 4)), "rate": np.full(shape, 16000)},
        model(f"float[n, 4] x, {declared} rate"),
        batch=2,
    )
    found = list(data)
    assert [feeds["x"].shape for feeds in found] == [(2, 4), (1, 4)]
    assert [feeds["rate"].shape for feeds in found] == [(1,) if "[" in declared else ()] * 2
    assert all(feeds["rate"] == 16000 for feeds in found)


def test_a_single_sample_may_lack_the_batch_axis(tmp_path):
    np.save(tmp_path / "a.npy", images()[0])
    np.testing.assert_array_equal(joined(load_data(tmp_path / "a.npy", model())), images()[:1])


def test_a_folder_of_arrays_is_read_in_the_order_of_names(tmp_path):
    np.savez(tmp_path / "b.npz", image=images(3, seed=1), labels=[1, 2, 3])
    np.savez(tmp_path / "a.npz", image=images(2), labels=[0, 9])
    (tmp_path / "README.md").write_text("not data")
    data = load_data(tmp_path, model(), batch=4)
    np.testing.assert_array_equal(joined(data), np.concatenate([images(2), images(3, seed=1)]))
    assert [len(feeds["image"]) for feeds in data] == [4, 1]
    np.testing.assert_array_equal(data.labels, [0, 9, 1, 2, 3])
    part = load_data(f"{tmp_path}[1::2]", model())
    np.testing.assert_array_equal(part.labels, [9, 2])
    np.testing.assert_array_equal(joined(part)[1], images(3, seed=1)[1])


def test_files_of_different_shapes_give_feeds_of_one_sample(tmp_path):
    for length in (4, 7):
        np.save(tmp_path / f"{length}.npy", np.ones((2, length), np.int64))
    data = load_data(tmp_path, model("int64[n, m] tokens"), batch=8)
    assert [feeds["tokens"].shape for feeds in data] == [(1, 4), (1, 4), (1, 7), (1, 7)]
    with pytest.raises(UsageError, match="samples differ in shape, expected 2 alike for each feed"):
        load_data(tmp_path, model("int64[2, m] tokens"))


def test_files_with_different_values_for_all_samples_do_not_share_a_feed(tmp_path):
    for rate in (8, 16):
        np.savez(tmp_path / f"{rate}.npz", x=np.ones((3, 4)), rate=rate)
    data = load_data(tmp_path, model("float[n, 4] x, int64 rate"), batch=8)
    assert [int(feeds["rate"]) for feeds in data] == [16, 16, 16, 8, 8, 8]


def test_files_of_one_number_each_are_a_sample_each(tmp_path):
    for place in range(3):
        np.save(tmp_path / f"{place}.npy", np.full((1, 1), place, np.float32))
    data = load_data(tmp_path, model("float[1, 1] x"), batch=8)
    assert [float(feeds["x"][0, 0]) for feeds in data] == [0, 1, 2]


@pytest.mark.parametrize(
    ("arrays", "inputs", "message"),
    [
        ({"image": np.ones((1, 3, 224, 224))}, "float[batch, 1, 8, 8] image",
         r"^data: input image is \[1, 3, 224, 224\], expected \[batch, 1, 8, 8\]$"),
        ({"image": np.ones(3)}, "float[batch, 1, 8, 8] image", r"is \[3\], expected \[batch, 1, 8, 8\]"),
        ({"image": np.ones((2, 8))}, "float[?, 4] image", r"input image is \[2, 8\], expected \[\?, 4\]"),
        ({"image": np.ones((0, 4))}, "float[n, 4] image", "data: holds no samples"),
        ({"imgae": np.ones((2, 4)), "b": np.ones(2)}, "float[n, 4] image, float[n] b",
         "data: imgae: no such input; did you mean image"),
        ({"b": np.ones(2)}, "float[n, 4] image, float[n] b", "data: input image is missing, there are: b"),
        ({"a": np.ones((2, 4)), "b": np.ones(3)}, "float[n, 4] a, float[n] b",
         "there are 2 of a and 3 of b, expected as many samples of each input"),
        ({"a": np.ones((8, 4)), "b": np.ones((8, 1))}, "float[8, 4] a, float[2, 1] b",
         r"a feed takes 8 of a and 2 of b, expected arrays of shape \[samples, \*shape of the input\]"),
        ({"x": np.ones((2, 4)), "labels": [1, 2, 3]}, "float[n, 4] x",
         r"labels are int64 \[3\], expected 2 integers, one a sample"),
        ({"x": np.ones((2, 4)), "labels": [0.5, 2]}, "float[n, 4] x", r"labels are float64 \[2\]"),
        ({"x": np.ones((2, 4)), "labels": [[1, 0]]}, "float[n, 4] x", r"labels are int64 \[1, 2\]"),
    ],
)  # fmt: skip
def test_says_which_array_does_not_fit_and_what_was_expected(arrays, inputs, message):
    with pytest.raises(UsageError, match=message):
        load_data(arrays, model(inputs))
