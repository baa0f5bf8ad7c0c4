"""Folders of serialised tensors as the ONNX model zoo ships them: ``test_data_set_N/input_K.pb``."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.external_data_helper
import onnx.numpy_helper
from google.protobuf.message import DecodeError

from onnxcompress.data.inputs import Feeds, Input, check_names
from onnxcompress.errors import UsageError


@dataclass(frozen=True)
class TensorSets:
    """Folders of ``input_K.pb`` files as samples: each folder is one feed as it is."""

    folders: Sequence[Path]
    inputs: Mapping[str, Input]
    labels: np.ndarray | None = None
    batch: int | None = 1
    stacked: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """How many folders there are."""
        return len(self.folders)

    def read(self, wanted: Sequence[int]) -> Iterator[Feeds]:
        """Yield the feeds of the ascending numbers `wanted`."""
        for each in wanted:
            yield read_set(self.folders[each], self.inputs)


def find_sets(folder: Path) -> list[Path]:
    """Return `folder` if it holds ``input_K.pb``, else the ``test_data_set_N`` folders in it, by number."""
    if any(folder.glob("input_*.pb")):
        return [folder]
    return sorted(folder.glob("test_data_set_*"), key=lambda each: (len(each.name), each.name))


def read_set(folder: Path, inputs: Mapping[str, Input]) -> Feeds:
    """Return the tensors of ``input_K.pb`` by their own name, where it is an input's, else as the Kth input.

    UsageError where a file is no tensor, is the tensor of no input or an input has none.
    """
    feeds = {}
    names = list(inputs)
    for path in folder.glob("input_*.pb"):
        where = f"{folder.name}/{path.name}"
        name, array = _read_tensor(path, where)
        place = path.stem.removeprefix("input_")
        if name not in inputs and (not place.isdecimal() or int(place) >= len(names)):
            raise UsageError(f"{where}: is for no input, expected one for each of {', '.join(names)}")
        feeds[name if name in inputs else names[int(place)]] = array
    check_names(folder.name, feeds, inputs)
    return feeds


def _read_tensor(path: Path, where: str) -> tuple[str, np.ndarray]:
    """Return the name and the values of the tensor in `path`."""
    tensor = onnx.TensorProto()
    try:
        tensor.ParseFromString(path.read_bytes())
        if onnx.external_data_helper.uses_external_data(tensor):
            raise UsageError(f"{where}: keeps its values in another file, expected them in line")
        return tensor.name, onnx.numpy_helper.to_array(tensor)
    except (OSError, DecodeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{where}: is not a readable tensor") from error
