import tracemalloc

import numpy as np
import pytest
from pixels import images, joined, model

from onnxcompress.data import Data, load_data, random_data
from onnxcompress.errors import UsageError


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_npz_gives_feeds_of_one_sample_at_every_iteration(tmp_path, save, order):
    save(tmp_path / "a.npz", image=np.array(images(), order=order))
    data = load_data(tmp_path / "a.npz", model())
    assert (len(data), data.count, data.labels, data.random, data.notes) == (5, 5, None, False, ())
    for _ in range(2):
        found = list(data)
        assert [feeds["image"].shape for feeds in found] == [(1, 1, 8, 8)] * 5
        np.testing.assert_array_equal(np.concatenate([feeds["image"] for feeds in found]), images())


def test_feeds_of_a_dynamic_batch_are_as_large_as_asked_and_the_last_one_smaller(tmp_path):
    np.savez(tmp_path / "a.npz", image=images(), labels=np.arange(5, dtype=np.uint8))
    data = load_data(str(tmp_path / "a.npz"), model(), batch=2)
    assert [len(feeds["image"]) for feeds in data] == [2, 2, 1]
    assert (len(data), data.source) == (3, str(tmp_path / "a.npz"))
    np.testing.assert_array_equal(data.labels, range(5))


def test_take_gives_the_first_feeds_with_their_labels(tmp_path):
    np.savez(tmp_path / "a.npz", image=images(), labels=np.arange(5))
    data = load_data(tmp_path / "a.npz", model(), batch=2)
    first = data.take(2)
    assert (len(first), len(list(first)), first.source) == (2, 2, data.source)
    np.testing.assert_array_equal(first.labels, range(4))
    assert len(data.take(9)) == 3
    assert load_data(first, model()) is first


def test_an_npy_and_a_single_array_of_any_name_are_the_only_input(tmp_path):
    np.save(tmp_path / "calib.npy", images())
    np.savez(tmp_path / "any.npz", whatever=images(), labels=np.arange(5))
    np.testing.assert_array_equal(joined(load_data(tmp_path / "calib.npy", model())), images())
    np.testing.assert_array_equal(joined(load_data(tmp_path / "any.npz", model())), images())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[::2]", [0, 2, 4]),
        ("[!::2]", [1, 3]),
        ("[:2]", [0, 1]),
        ("[-2:]", [3, 4]),
        ("[1:4:2]", [1, 3]),
        ("[:]", range(5)),
    ],
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_slice_after_the_path_picks_samples_and_an_exclamation_mark_the_others(
    tmp_path, text, expected, save
):
    save(tmp_path / "a.npz", image=images(), labels=np.arange(5))
    data = load_data(f"{tmp_path}/a.npz{text}", model())
    np.testing.assert_array_equal(data.labels, expected)
    np.testing.assert_array_equal(joined(data), images()[list(expected)])


def test_a_path_that_looks_like_a_slice_is_a_path(tmp_path):
    (tmp_path / "a[:2]").mkdir()
    np.save(tmp_path / "a[:2]" / "a.npy", images())
    assert len(load_data(str(tmp_path / "a[:2]"), model())) == 5
    assert len(load_data(f"{tmp_path}/a[:2][:3]", model())) == 3


def test_memory_does_not_grow_with_the_number_of_samples(tmp_path):
    wide = model("float[n, 3, 224, 224] image")

    def peak(count):
        np.savez(tmp_path / "a.npz", image=np.ones((count, 3, 224, 224), np.float32))
        tracemalloc.start()
        for feeds in load_data(tmp_path / "a.npz", wide):
            assert feeds["image"].shape == (1, 3, 224, 224)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    sample = 3 * 224 * 224 * 4
    assert peak(50) < 8 * sample
    assert peak(50) < peak(10) + sample


def test_nan_in_a_later_feed_is_found_when_it_is_read(tmp_path):
    values = images()
    values[3, 0, 2, 2] = np.nan
    np.savez(tmp_path / "a.npz", image=values)
    data = load_data(tmp_path / "a.npz", model())
    with pytest.raises(UsageError, match=r"^a.npz: feed 3: input image holds NaN, expected numbers$"):
        list(data)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.npz", None, "no such file or folder, expected calibration or evaluation data"),
        ("a.npz", b"PK\x03\x04 cut off", "a.npz can't be read: File is not a zip file"),
        ("a.npy", b"", "a.npy is not an array in numpy's format"),
        ("a.csv", b"1,2", "a.csv: is not known as data, expected .npz, .npy or a folder"),
    ],
)
def test_refuses_files_it_can_not_read(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message) as error:
        load_data(tmp_path / name, model())
    assert "\n" not in str(error.value)


def test_refuses_an_empty_folder_an_empty_slice_and_a_backward_slice(tmp_path):
    with pytest.raises(UsageError, match=r"holds no data, expected .npz, .npy, images or test_data_set"):
        load_data(tmp_path, model())
    np.save(tmp_path / "a.npy", images())
    with pytest.raises(UsageError, match="0 of 5 samples, expected at least 1"):
        load_data(f"{tmp_path}[7:]", model())
    with pytest.raises(UsageError, match="the step is -1, expected 1 or more"):
        load_data(f"{tmp_path}[::-1]", model())


def test_refuses_a_folder_whose_files_do_not_go_together(tmp_path):
    np.savez(tmp_path / "a.npz", image=images(), labels=np.arange(5))
    np.savez(tmp_path / "b.npz", image=images())
    with pytest.raises(UsageError, match="some files have labels and some have none"):
        load_data(tmp_path, model())
    np.savez(tmp_path / "b.npz", image=images()[:, None], labels=np.arange(5))
    with pytest.raises(UsageError, match="arrays of different rank for the same input"):
        load_data(tmp_path, model())
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(UsageError, match="holds arrays and images"):
        load_data(tmp_path, model())


def test_a_preprocessing_that_is_not_used_is_told(tmp_path):
    np.save(tmp_path / "a.npy", images())
    (note,) = load_data(tmp_path / "a.npy", model(), preprocess="imagenet").notes
    assert note.endswith("a.npy: the preprocessing is for images and was not used")


def test_random_data_has_the_shapes_of_the_model_and_is_the_same_for_the_same_seed():
    wanted = model("float[n, 3, 4] a, int64[n, 5] b, bool[2] c, uint8[1, 64] d, float16[n] e, double s")
    data = random_data(wanted, seed=3)
    found = list(data)
    assert (data.random, len(data), len(found), data.labels, data.source) == (True, 4, 4, None, "random")
    for first, second in zip(found, random_data(wanted, seed=3), strict=True):
        assert all(np.array_equal(first[name], second[name]) for name in first)
    assert not np.array_equal(found[0]["a"], found[1]["a"])
    assert not np.array_equal(found[0]["a"], next(iter(random_data(wanted, seed=4)))["a"])
    shapes = {name: (each.shape, each.dtype.name) for name, each in found[0].items()}
    assert shapes == {
        "a": ((1, 3, 4), "float32"),
        "b": ((1, 5), "int64"),
        "c": ((2,), "bool"),
        "d": ((1, 64), "uint8"),
        "e": ((1,), "float16"),
        "s": ((), "float64"),
    }
    assert 0 <= found[0]["a"].min() < found[0]["a"].max() < 1
    assert found[0]["b"].max() <= 1 < 100 < found[0]["d"].max()


def test_random_data_takes_open_dims_from_the_shapes_also_of_other_inputs():
    wanted = model("float[n, time] a, float[n, time, 2] b, float[n, ?] c")
    data = random_data(wanted, shapes={"a": (2, 7)}, count=1)
    (feeds,) = data
    assert {name: each.shape for name, each in feeds.items()} == {"a": (2, 7), "b": (2, 7, 2), "c": (2, 1)}
    assert data.notes == ("random data: input c is [n, ?], dims that are not given are taken as 1",)


def test_random_data_has_zero_elements_where_the_model_says_so():
    (feeds,) = random_data(model("float[n, 0] x"), count=1)
    assert feeds["x"].shape == (1, 0)


def test_random_data_refuses_what_it_can_not_make_up():
    with pytest.raises(UsageError, match="random data: input x is string, expected numbers"):
        random_data(model("string[n] x"))
    with pytest.raises(UsageError, match="random data: the rank of input x is not known"):
        random_data(unranked())


def unranked():
    wanted = model()
    wanted.graph.inputs[0].shape = None
    wanted.graph.inputs[0].name = "x"
    return wanted


def test_how_many_feeds_there_are_is_an_error_where_it_is_not_known():
    data = load_data(lambda: iter([images()]), model())
    assert data.count is None
    with pytest.raises(TypeError, match="known after reading"):
        len(data)
    assert isinstance(data, Data)
