"""Loading: what must survive, what must be refused, what must not be touched."""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from files import EVERYWHERE, TWO_LAYERS, everywhere, proto, run, weights, written
from hostile import CASES
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress.errors import CompressError, UsageError
from onnxcompress.model import (
    MappedTensor,
    convert_up,
    load,
    notes,
    save,
    signature,
    to_proto,
)


def test_loads_the_same_from_a_path_a_text_path_a_proto_and_an_ir_model(tmp_path: Path) -> None:
    source = proto(TWO_LAYERS)
    path = written(tmp_path, source)
    for each in (path, str(path), source, ir.from_proto(source)):
        assert weights(to_proto(load(each))).keys() == {"w", "b"}
        np.testing.assert_array_equal(weights(to_proto(load(each)))["w"], weights(source)["w"])


def test_leaves_a_proto_it_was_given_as_it_was(tmp_path: Path) -> None:
    source = proto(TWO_LAYERS)
    before = source.SerializeToString()
    model = load(source)
    model.graph.initializers["w"].name = "renamed"
    model.graph.initializers["b"].const_value = ir.tensor(np.zeros(64, np.float32))
    save(model, tmp_path / "out.onnx")
    assert source.SerializeToString() == before
    assert weights(onnx.load(tmp_path / "out.onnx")).keys() == {"renamed", "b"}


def test_leaves_an_ir_model_it_was_given_as_it_was(tmp_path: Path) -> None:
    source = ir.from_proto(everywhere())
    before = ir.to_proto(source).SerializeToString()
    model = load(source)
    convert_up(model, 21)
    model.graph.remove(list(model.graph)[-1], safe=False)
    save(load(source), tmp_path / "out.onnx", external_data=True)
    assert ir.to_proto(source).SerializeToString() == before


def test_keeps_large_weights_in_the_files_they_are_in(tmp_path: Path) -> None:
    for external in (False, True):
        path = written(tmp_path, proto(TWO_LAYERS), f"{external}.onnx", external)
        tensor = load(path).graph.initializers["w"].const_value
        assert isinstance(tensor, MappedTensor)
        assert tensor.file.path == (tmp_path / "True.onnx.bin" if external else path)
        np.testing.assert_array_equal(tensor.numpy(), weights(proto(TWO_LAYERS))["w"])


def test_maps_what_other_tools_left_external_in_an_ir_model(tmp_path: Path) -> None:
    path = written(tmp_path, proto(TWO_LAYERS), external=True)
    model = load(ir.load(path))
    assert isinstance(model.graph.initializers["w"].const_value, MappedTensor)
    save(model, tmp_path / "out.onnx")
    np.testing.assert_array_equal(
        weights(onnx.load(tmp_path / "out.onnx"))["w"], weights(proto(TWO_LAYERS))["w"]
    )


def test_refuses_a_proto_whose_weights_lie_elsewhere(tmp_path: Path) -> None:
    path = written(tmp_path, proto(TWO_LAYERS), external=True)
    with pytest.raises(CompressError, match="tensor 'w' has external data, expected the path"):
        load(onnx.load(path, load_external_data=False))


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("out_external", [False, True])
def test_keeps_weights_wherever_they_are(tmp_path: Path, external: bool, out_external: bool) -> None:
    source = everywhere()
    feeds = {"x": np.ones((2, 64), np.float32), "c": np.array(True)}
    expected = run(source, **feeds)
    (tmp_path / "elsewhere").mkdir()
    save(
        load(written(tmp_path, source, external=external)),
        tmp_path / "elsewhere" / "out.onnx",
        external_data=out_external,
    )
    for path in tmp_path.glob("in.onnx*"):
        path.unlink()
    np.testing.assert_array_equal(run(tmp_path / "elsewhere" / "out.onnx", **feeds), expected)
    assert (tmp_path / "elsewhere" / "out.onnx.data").exists() == out_external


def test_makes_constants_of_initializers_that_are_all_listed_as_inputs_and_says_so() -> None:
    source = proto(TWO_LAYERS)
    for name, dims in (("w", [64, 64]), ("b", [64])):
        source.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, dims))
    model = load(source)
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert notes(model) == ["2 initializers that were listed as inputs are constants now"]


def test_keeps_a_few_initializers_listed_as_inputs_for_callers_to_override() -> None:
    source = proto(TWO_LAYERS)
    source.graph.input.append(onnx.helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, [64]))
    model = load(source)
    assert [value.name for value in model.graph.inputs] == ["x", "b"]
    assert [port.name for port in signature(model).inputs] == ["x"]
    assert notes(model) == []
    feeds = {"x": np.ones((1, 64), np.float32), "b": np.full(64, 7, np.float32)}
    np.testing.assert_array_equal(run(to_proto(model), **feeds), run(source, **feeds))


def test_keeps_the_only_initializer_overridable_where_listing_it_was_a_choice() -> None:
    source = proto(TWO_LAYERS)
    source.graph.initializer.pop(0)
    source.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [64, 64]))
    (kept,) = (each.name for each in source.graph.initializer)
    dims = list(source.graph.initializer[0].dims)
    source.graph.input.append(onnx.helper.make_tensor_value_info(kept, onnx.TensorProto.FLOAT, dims))
    model = load(source)
    assert [value.name for value in model.graph.inputs] == ["x", "w", kept]
    assert notes(model) == []
    source.ir_version = 3
    assert notes(load(source)) == ["1 initializers that were listed as inputs are constants now"]


def test_raises_an_old_ir_version_whose_initializers_had_to_be_inputs() -> None:
    source = proto(TWO_LAYERS)
    source.ir_version = 3
    source.graph.input.append(onnx.helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, [64]))
    model = load(source)
    assert model.ir_version == 4
    assert len(notes(model)) == 1
    onnx.checker.check_model(to_proto(model))


def test_leaves_training_information_out_and_says_so() -> None:
    source = proto(TWO_LAYERS)
    source.training_info.add()
    assert notes(load(source)) == ["the training information was left out"]


@pytest.mark.parametrize("case", CASES)
def test_refuses_a_hostile_file_in_one_line(tmp_path: Path, case: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = CASES[case](folder)
    before = {each: each.lstat().st_size for each in folder.iterdir()}
    with pytest.raises(CompressError) as raised:
        load(path)
    message = str(raised.value)
    assert raised.value.exit_code == 1
    assert message.startswith(f"{path.name}: ")
    assert message.isprintable()
    assert len(message) < 500
    assert {each: each.lstat().st_size for each in folder.iterdir()} == before


def test_refuses_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        load(tmp_path / "missing.onnx")
    with pytest.raises(UsageError, match="is not a file"):
        load(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="Not a directory"):
        load(tmp_path / "file" / "model.onnx")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), min_size=1, max_size=3))
def test_any_damage_is_read_or_refused_in_one_line(damage: list[tuple[int, int]]) -> None:
    data = bytearray(proto(EVERYWHERE).SerializeToString())
    for place, value in damage:
        data[place % len(data)] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "damaged.onnx"
        path.write_bytes(data)
        try:
            load(path)
        except CompressError as error:
            assert str(error).isprintable()  # noqa: PT017
