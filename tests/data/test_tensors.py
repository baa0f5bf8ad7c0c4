import numpy as np
import onnx
import pytest
from pixels import model

from onnxcompress.data import load_data
from onnxcompress.errors import UsageError


def save_tensor(path, array, name=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(onnx.numpy_helper.from_array(array, name).SerializeToString())


def test_test_data_sets_are_feeds_in_the_order_of_their_numbers(tmp_path):
    for number in (0, 2, 10):
        save_tensor(tmp_path / f"test_data_set_{number}" / "input_0.pb", np.full((2, 4), number, np.float32))
        save_tensor(tmp_path / f"test_data_set_{number}" / "input_1.pb", np.int64([number]))
        save_tensor(tmp_path / f"test_data_set_{number}" / "output_0.pb", np.zeros(1))
    wanted = model("float[n, 4] x, int64[1] k")
    data = load_data(tmp_path, wanted, batch=32)
    assert [(feeds["x"].shape, int(feeds["k"][0])) for feeds in data] == [
        ((2, 4), 0),
        ((2, 4), 2),
        ((2, 4), 10),
    ]
    assert len(load_data(tmp_path / "test_data_set_2", wanted)) == 1
    assert [int(feeds["k"][0]) for feeds in load_data(f"{tmp_path}[1:]", wanted)] == [2, 10]


def test_the_name_in_a_serialised_tensor_goes_before_its_place(tmp_path):
    save_tensor(tmp_path / "input_0.pb", np.int64([3]), "k")
    save_tensor(tmp_path / "input_1.pb", np.ones((1, 4), np.float32), "x")
    (feeds,) = load_data(tmp_path, model("float[n, 4] x, int64[1] k"))
    assert feeds["k"] == [3]


def test_refuses_serialised_tensors_that_do_not_fit(tmp_path):
    wanted = model("float[n, 4] x, int64[1] k")
    path = tmp_path / "test_data_set_0" / "input_0.pb"
    save_tensor(path, np.ones((1, 4), np.float32))
    with pytest.raises(UsageError, match=r"test_data_set_0: input k is missing, there are: x"):
        load_data(tmp_path, wanted)
    save_tensor(path.parent / "input_2.pb", np.int64([3]), "unknown")
    with pytest.raises(
        UsageError, match=r"test_data_set_0/input_2.pb: is for no input, expected one for each of x, k"
    ):
        load_data(tmp_path, wanted)
    save_tensor(path.parent / "input_2.pb", np.int64([3]), "k")
    save_tensor(path, np.ones((1, 5), np.float32))
    with pytest.raises(UsageError, match=r"feed 0: input x is \[1, 5\], expected \[n, 4\]"):
        load_data(tmp_path, wanted)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UsageError, match=r"test_data_set_0/input_0.pb: is not a readable tensor"):
        load_data(tmp_path, wanted)
    outside = onnx.TensorProto(
        dims=[1, 4], data_type=onnx.TensorProto.FLOAT, data_location=onnx.TensorProto.EXTERNAL
    )
    outside.external_data.add(key="location", value="../../secret")
    path.write_bytes(outside.SerializeToString())
    with pytest.raises(UsageError, match="keeps its values in another file, expected them in line"):
        load_data(tmp_path, wanted)
