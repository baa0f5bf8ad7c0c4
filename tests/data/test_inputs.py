import numpy as np
import pytest
from pixels import images, model

from onnxcompress.data import load_data
from onnxcompress.errors import CompressError, UsageError


@pytest.mark.parametrize(
    ("given", "declared"),
    [
        (np.float64([[0.5]]), "float"),
        (np.float32([[0.5]]), "float16"),
        (np.float32([[0.5]]), "bfloat16"),
        (np.uint8([[200]]), "float"),
        (np.uint8([[200]]), "int64"),
        (np.int64([[-7]]), "int32"),
        (np.array([[True]]), "float"),
        (np.array([[7]], ">i4"), "int32"),
        (np.float32([[np.inf]]), "float"),
        (np.array([["word"]]), "string"),
    ],
)
def test_values_become_the_type_of_the_input_where_they_keep_their_meaning(given, declared):
    wanted = model(f"{declared}[n, 1] x")
    (feeds,) = load_data({"x": given}, wanted)
    assert feeds["x"].dtype == wanted.graph.inputs[0].dtype.numpy()
    assert feeds["x"].tolist() == given.tolist()


@pytest.mark.parametrize(
    ("given", "declared", "message"),
    [
        (np.float32([[1]]), "int64", "data: input x is float32, expected int64"),
        (np.float32([[1]]), "bool", "data: input x is float32, expected bool"),
        (np.complex64([[1]]), "float", "data: input x is complex64, expected float"),
        (np.array([["1"]]), "float", "data: input x is <U1, expected float"),
        (np.float32([[1]]), "string", "data: input x is float32, expected string"),
        (np.array([[None]]), "float", "data: input x is object, expected float"),
        (np.int64([[300]]), "uint8", "data: feed 0: input x holds values that do not fit into uint8"),
        (np.int64([[-1]]), "uint64", "do not fit into uint64"),
        (np.float64([[1e300]]), "float", "data: feed 0: input x holds values that do not fit into float"),
        (np.float32([[np.nan]]), "float", "data: feed 0: input x holds NaN, expected numbers"),
        (np.float16([[np.nan]]), "double", "input x holds NaN"),
    ],
)
def test_values_that_would_lose_their_meaning_are_refused(given, declared, message):
    with pytest.raises(UsageError, match=message):
        load_data({"x": given}, model(f"{declared}[n, 1] x"))


def test_given_shapes_fix_what_the_model_leaves_open(tmp_path):
    data = load_data({"x": np.ones((4, 6))}, model("float[n, m] x"), shapes={"x": (2, 6)})
    assert [feeds["x"].shape for feeds in data] == [(2, 6), (2, 6)]
    with pytest.raises(UsageError, match=r"input x is \[4, 6\], expected \[2, 5\]"):
        load_data({"x": np.ones((4, 6))}, model("float[n, m] x"), shapes={"x": (2, 5)})
    with pytest.raises(UsageError, match="imgae: no such input; did you mean image"):
        load_data(images(), model(), shapes={"imgae": (1, 1, 8, 8)})
    with pytest.raises(
        UsageError, match=r"image: shape \[1, 1, 9, 9\] was given, the model's is \[batch, 1, 8, 8\]"
    ):
        load_data(images(), model(), shapes={"image": (1, 1, 9, 9)})


def test_a_model_without_inputs_or_with_a_sequence_takes_no_data():
    with pytest.raises(UsageError, match="the model has no inputs"):
        load_data(images(), model(""))
    with pytest.raises(CompressError, match="s: the input is not a tensor"):
        load_data(images(), model("seq(float[n]) s"))


def unranked():
    wanted = model()
    wanted.graph.inputs[0].shape = None
    wanted.graph.inputs[0].name = "x"
    return wanted


def test_an_input_of_unknown_rank_takes_rows_of_any_rank():
    (feeds,) = load_data({"x": np.ones((2, 3, 4))}, unranked(), batch=2)
    assert feeds["x"].shape == (2, 3, 4)
