"""Saving: all or nothing, wherever weights are kept."""

import resource
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from files import TWO_LAYERS, everywhere, left, proto, run, sparse_model, weights

from onnxcompress.errors import CompressError, UsageError
from onnxcompress.model import (
    ComputedTensor,
    lazy,
    load,
    save,
    to_proto,
)
from onnxcompress.model.writing import evaluated


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond `size` bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("external", [False, True])
def test_a_full_disk_is_said_in_one_line_and_leaves_nothing(tmp_path: Path, external: bool) -> None:
    model = load(proto(TWO_LAYERS))
    (tmp_path / "out.onnx").write_bytes(b"old")
    with (
        files_limited_to(8000),
        pytest.raises(CompressError, match=r"out\.onnx: can't be written: File too large"),
    ):
        save(model, tmp_path / "out.onnx", external_data=external)
    assert left(tmp_path) == {"out.onnx"}
    assert (tmp_path / "out.onnx").read_bytes() == b"old"


@pytest.mark.parametrize("error", [CompressError("no"), KeyboardInterrupt()])
@pytest.mark.parametrize("external", [False, True])
def test_a_check_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: BaseException, external: bool
) -> None:
    (tmp_path / "out.onnx").write_bytes(b"old")

    def refuse(path: Path) -> None:
        assert run(path, x=np.ones((1, 64), np.float32))
        assert path.name == "out.onnx"
        raise error

    with pytest.raises(type(error)):
        save(load(proto(TWO_LAYERS)), tmp_path / "out.onnx", external_data=external, check=refuse)
    assert left(tmp_path) == {"out.onnx"}
    assert (tmp_path / "out.onnx").read_bytes() == b"old"


@pytest.mark.parametrize("jobs", [1, 3])
def test_an_interrupted_weight_leaves_nothing(tmp_path: Path, jobs: int) -> None:
    model = load(proto(TWO_LAYERS))

    def interrupt(weight: np.ndarray) -> np.ndarray:
        raise KeyboardInterrupt

    value = model.graph.initializers["w"]
    value.const_value = lazy(value.const_value, interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(model, tmp_path / "out.onnx", jobs=jobs)
    assert left(tmp_path) == set()


class Tally:
    """Bytes alive, and the most there ever were."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.lock = threading.Lock()

    def add(self, size: int) -> None:
        with self.lock:
            self.now += size
            self.most = max(self.most, self.now)


class Counted(ir.LazyTensor):
    """A tensor of `size` bytes that a `Tally` counts from when it is made until it is done with."""

    def __init__(self, size: int, tally: Tally) -> None:
        super().__init__(self.make, ir.DataType.UINT8, ir.Shape([size]), name=f"of {size}")
        self.tally = tally

    def make(self) -> ir.Tensor:
        array = np.zeros(self.nbytes, np.uint8)
        self.tally.add(self.nbytes)
        weakref.finalize(array, self.tally.add, -self.nbytes)
        time.sleep(0.002)
        return ir.Tensor(array)


@pytest.mark.parametrize(("jobs", "room", "least", "most"), [(1, 5000, 900, 900), (3, 2000, 1100, 2000)])
def test_weights_that_are_computed_ahead_keep_within_their_room(
    jobs: int, room: int, least: int, most: int
) -> None:
    tally, sizes = Tally(), [300, 900, 10, 500, 400, 700, 200, 600] * 5
    found = []
    for tensor, stored in evaluated([Counted(size, tally) for size in sizes], jobs, room):
        found.append((tensor.nbytes, len(stored)))
        time.sleep(0.001)
        del stored
    assert found == [(size, size) for size in sizes]
    assert least <= tally.most <= most
    assert tally.now == 0


def test_a_weight_larger_than_the_room_is_alone() -> None:
    tally = Tally()
    for tensor, stored in evaluated([Counted(size, tally) for size in (100, 5000, 100, 100)], 2, 1000):
        assert tensor.nbytes < 5000 or tally.now == 5000
        del stored
    assert tally.most == 5000


def test_a_weight_that_comes_after_another_waits_for_it() -> None:
    found: list[str] = []

    def slow() -> np.ndarray:
        time.sleep(0.05)
        found.append("first")
        return np.zeros(1, np.int8)

    def told() -> np.ndarray:
        found.append(threading.current_thread().name)
        return np.zeros(1, np.int8)

    first = ComputedTensor(slow, ir.DataType.INT8, [1], "first")
    second = ComputedTensor(told, ir.DataType.INT8, [1], "second", after=first)
    assert [tensor.name for tensor, _ in evaluated([first, second], 2)] == ["first", "second"]
    assert found == ["first", threading.current_thread().name]


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (CompressError("w: holds no numbers"), "w: holds no numbers"),
        (MemoryError(), "w: there is too little memory to compute it"),
    ],
)
def test_what_a_worker_refuses_is_said_and_nothing_is_written(
    tmp_path: Path, jobs: int, raised: Exception, said: str
) -> None:
    def refuse(weight: np.ndarray) -> np.ndarray:
        raise raised

    model = load(proto(TWO_LAYERS))
    value = model.graph.initializers["w"]
    value.const_value = lazy(value.const_value, refuse)
    with pytest.raises(CompressError, match=f"^{said}$"):
        save(model, tmp_path / "out.onnx", jobs=jobs)
    assert left(tmp_path) == set()


@pytest.mark.parametrize("external", [False, True])
def test_tells_how_many_bytes_are_written(tmp_path: Path, external: bool) -> None:
    told: list[tuple[int, int | None, str]] = []
    save(
        load(proto(TWO_LAYERS)),
        tmp_path / "out.onnx",
        external_data=external,
        progress=lambda *step: told.append(step),
    )
    assert told == [(0, 16384, "writing"), (16384, 16384, "writing")]


def test_refuses_targets_that_are_no_files(tmp_path: Path) -> None:
    model = load(proto(TWO_LAYERS))
    with pytest.raises(UsageError, match=r"the folder .*missing does not exist"):
        save(model, tmp_path / "missing" / "out.onnx")
    with pytest.raises(UsageError, match="is not a file"):
        save(model, tmp_path)
    with pytest.raises(UsageError, match="is not a file"):
        save(model, "/dev/null")


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("jobs", [1, 4])
def test_replaces_the_file_the_model_is_read_from(tmp_path: Path, external: bool, jobs: int) -> None:
    path = tmp_path / "model.onnx"
    save(load(proto(TWO_LAYERS)), path, external_data=external)
    model = load(path)
    early = model.graph.initializers["w"].const_value.numpy()
    value = model.graph.initializers["b"]
    value.const_value = lazy(value.const_value, lambda weight: weight + 1)
    save(model, path, external_data=external, jobs=jobs)
    source = weights(proto(TWO_LAYERS))
    result = weights(onnx.load(path))
    np.testing.assert_array_equal(result["w"], source["w"])
    np.testing.assert_array_equal(result["b"], source["b"] + 1)
    for array in (early, model.graph.initializers["w"].const_value.numpy()):
        np.testing.assert_array_equal(array, source["w"])  # the model in memory reads its old file
    save(model, path, external_data=external)
    np.testing.assert_array_equal(weights(onnx.load(path))["w"], source["w"])
    assert left(tmp_path) == {"model.onnx", "model.onnx.data"} if external else {"model.onnx"}


def test_saving_changes_nothing_in_the_model(tmp_path: Path) -> None:
    model = load(sparse_model(coordinates=True))
    tensors = {name: value.const_value for name, value in model.graph.initializers.items()}
    before = to_proto(model).SerializeToString()
    save(model, tmp_path / "out.onnx", external_data=True)
    assert {name: value.const_value for name, value in model.graph.initializers.items()} == tensors
    assert to_proto(model).SerializeToString() == before


@pytest.mark.parametrize("external", [False, True])
def test_writes_the_same_bytes_each_time_and_with_any_number_of_jobs(tmp_path: Path, external: bool) -> None:
    model = load(everywhere())
    for name, jobs in (("a", 1), ("b", 1), ("c", 3), ("d", 0)):
        (tmp_path / name).mkdir()
        save(model, tmp_path / name / "out.onnx", external_data=external, jobs=jobs)
    for name in ("b", "c", "d"):
        for path in (tmp_path / "a").iterdir():
            assert (tmp_path / name / path.name).read_bytes() == path.read_bytes()


def test_names_a_tensor_in_two_places_as_each_place_does(tmp_path: Path) -> None:
    model = load(proto(TWO_LAYERS))
    shared = model.graph.initializers["w"].const_value
    model.graph.register_initializer(ir.Value(name="w2", const_value=shared))
    list(model.graph)[2].replace_input_with(1, model.graph.initializers["w2"])
    feeds = {"x": np.ones((1, 64), np.float32)}
    for external in (False, True):
        save(model, tmp_path / "out.onnx", external_data=external)
        np.testing.assert_array_equal(run(tmp_path / "out.onnx", **feeds), run(proto(TWO_LAYERS), **feeds))
    assert (tmp_path / "out.onnx.data").stat().st_size < 64 * 64 * 4 + 64
