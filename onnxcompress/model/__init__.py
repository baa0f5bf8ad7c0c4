"""Load and save models, and what all of them have.

With its neighbours (reading, writing, protos, wire, storage, external, computed, sparse, versions) the only
part that touches model protobufs, paths, file sizes and external data.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from onnxcompress.errors import CompressError
from onnxcompress.model import protos, versions
from onnxcompress.model.computed import ComputedTensor as ComputedTensor
from onnxcompress.model.computed import apply as apply
from onnxcompress.model.computed import lazy as lazy
from onnxcompress.model.external import MappedTensor as MappedTensor
from onnxcompress.model.reading import NOTES, check_skeleton
from onnxcompress.model.reading import load as load
from onnxcompress.model.sparse import SparseTensor as SparseTensor
from onnxcompress.model.storage import put_in_line, tensor_bytes, write_header
from onnxcompress.model.writing import IN_LINE_LIMIT as IN_LINE_LIMIT
from onnxcompress.model.writing import save as save
from onnxcompress.model.writing import write_text as write_text

_COUNTED = 2**18  # elements that stay in the processor's cache


@dataclass(frozen=True)
class Port:
    """An input or output: its name, element type (None where it isn't a tensor) and dimensions.

    A dimension is a number, a name, or None; `shape` is None where even the rank is unknown.
    """

    name: str
    dtype: ir.DataType | None
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True)
class Signature:
    """What a caller sees of a model: the inputs that must be given and the outputs, in order."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


def notes(model: ir.Model) -> list[str]:
    """Return what was changed in `model` to load or convert it, each a sentence for the user."""
    found: list[str] = model.meta.setdefault(NOTES, [])
    return found


def check(model: ir.Model) -> None:
    """Raise CompressError where `model` breaks the rules of ONNX; no weight is read."""
    check_skeleton(protos.to_skeleton(protos.copied(model))[0])


def clone(model: ir.Model) -> ir.Model:
    """Return a copy of `model` whose graph can be changed freely; tensors are shared."""
    copy = protos.copied(model)
    copy.meta.update(model.meta)
    copy.meta[NOTES] = list(notes(model))
    return copy


def graphs(model: ir.Model) -> Iterator[ir.Graph | ir.Function]:
    """Yield the main graph, the subgraphs in it, then every function and the subgraphs in it; each once."""
    return protos.bodies(model)


def signature(model: ir.Model) -> Signature:
    """Return the inputs that have no initializer, and the outputs, of `model`."""
    graph = model.graph
    inputs = (_port(value) for value in graph.inputs if value.name not in graph.initializers)
    return Signature(tuple(inputs), tuple(map(_port, graph.outputs)))


def _port(value: ir.Value) -> Port:
    shape = None
    if value.shape is not None:
        shape = tuple(dim.value if isinstance(dim, ir.SymbolicDim) else int(dim) for dim in value.shape)
    dtype = value.dtype if isinstance(value.type, ir.TensorType) else None
    return Port(value.name or "", dtype, shape)


def opset(model: ir.Model) -> int:
    """Return the version of the default operator set that `model` imports."""
    return model.opset_imports.get("", model.opset_imports.get("ai.onnx", 1))


def weight_bytes(model: ir.Model) -> int:
    """Return the bytes the tensors of `model` take in a file, without reading them; shared ones once."""
    return sum(map(tensor_bytes, {id(tensor): tensor for tensor, _ in protos.places(model)}.values()))


def materialise(model: ir.Model) -> None:
    """Evaluate every lazy tensor of `model` once and keep its value; mapped and sparse ones stay."""
    made: dict[int, ir.TensorProtocol] = {}
    for tensor, put in protos.places(model):
        if isinstance(tensor, ir.LazyTensor) and not isinstance(tensor, MappedTensor | SparseTensor):
            if id(tensor) not in made:
                made[id(tensor)] = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)
            put(made[id(tensor)])


def nonzeros(tensor: ir.TensorProtocol) -> int:
    """Return how many elements of `tensor`, numbers, aren't zero, giving back the pages of a file read."""
    array = tensor.numpy()
    if array.dtype == np.float16:  # numpy counts these slowly; without the sign, zeros are zero bits
        bits = np.ascontiguousarray(array).reshape(-1).view(np.uint16)
        parts = (bits[start : start + _COUNTED] << 1 for start in range(0, bits.size, _COUNTED))
        found = sum(int(np.count_nonzero(part)) for part in parts)
    else:
        found = int(np.count_nonzero(array))
    if isinstance(tensor, MappedTensor):
        tensor.release()
    return found


def to_proto(model: ir.Model, apart: Container[str] = ()) -> onnx.ModelProto:
    """Return `model` as a protobuf with all data in it, sparse tensors as such; for models under 2 GB.

    The data of the main graph's initializers named in `apart` are left out; they are declared as external
    data at the location "memory".
    """
    light, held = protos.to_skeleton(clone(model))
    protos.put_sparse(light, held)
    declared = {number for number, holder in protos.holders(light.graph) if holder.name in apart}
    size = sum(tensor_bytes(each) for number, each in enumerate(held) if number not in declared)
    if light.ByteSize() + size > IN_LINE_LIMIT:
        raise CompressError("the model takes over 2 GB, expected less to make one protobuf of it")
    for number, holder in list(protos.placeholders(light)):
        write_header(held[number], holder, holder.name)
        if number in declared:
            holder.data_location = onnx.TensorProto.EXTERNAL
            holder.external_data.add(key="location", value="memory")
        else:
            put_in_line(held[number], holder)
    return light


def external_files(model: ir.Model, path: str | Path) -> dict[Path, int]:
    """Return the files with external data of `model`, loaded from `path`, and the bytes used of each."""
    used: dict[Path, set[tuple[int, int]]] = {}
    own = Path(path).absolute()
    for tensor, _ in protos.places(model):
        for part in (tensor.values, tensor.indices) if isinstance(tensor, SparseTensor) else (tensor,):
            if isinstance(part, MappedTensor) and part.file.path != own:
                used.setdefault(part.file.path, set()).add((part.offset, part.offset + part.nbytes))
    return {file: _covered(ranges) for file, ranges in used.items()}


def tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Yield every tensor of `model`, initializers and attributes of all graphs; a shared one once."""
    seen = {id(tensor): tensor for tensor, _ in protos.places(model)}
    yield from seen.values()


def _covered(ranges: set[tuple[int, int]]) -> int:
    """Return how many places lie in at least one of the `ranges` (first, beyond the last)."""
    total = reached = 0
    for start, stop in sorted(ranges):
        total += max(0, stop - max(start, reached))
        reached = max(reached, stop)
    return total


def convert_up(model: ir.Model, version: int) -> bool:
    """Raise the default operator set of `model` in place to at least `version`; False where it already was.

    Names of inputs, outputs and initializers stay, what new operators need of constants is added.
    CompressError, `model` being as before, where an operator can't be converted.
    """
    old = opset(model)
    if old >= version:
        return False
    raised = clone(model)
    versions.convert(raised, version)
    lost = model.graph.initializers.keys() - raised.graph.initializers.keys()
    if lost:
        raise CompressError(f"operator set {old} can't be raised to {version}: {min(lost)} would get lost")
    check(raised)
    model.graph, model.ir_version = raised.graph, raised.ir_version
    model.functions.clear()
    model.functions.update(raised.functions)
    return True
