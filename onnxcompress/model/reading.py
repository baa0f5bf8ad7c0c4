"""Models made from files, from protobufs and from other people's models."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx.checker
import onnx.shape_inference
import onnx_ir as ir
from google.protobuf.message import DecodeError

from onnxcompress.errors import CompressError, UsageError
from onnxcompress.model import protos, wire
from onnxcompress.model.external import DataFile, locate
from onnxcompress.model.storage import read_tensor

OLDEST = 7  # operator set that onnxruntime promises to run
NOTES = "onnxcompress.notes"  # key in the model's meta


class Files:
    """The files of external data beside a model, each opened once.

    At most `HELD` of them are held. A model with more has a file for each tensor, and none has the name that
    :func:`onnxcompress.model.save` would give to another.
    """

    HELD = 64

    def __init__(self, folder: Path | None = None, here: DataFile | None = None) -> None:
        self.folder = folder
        self.here = here
        self._found: dict[Path, DataFile] = {}

    def __call__(self, location: str, what: str) -> DataFile:
        """Return the file at `location` in the folder; CompressError beginning with `what` for none."""
        if self.here is not None and location == wire.HERE:
            return self.here
        if self.folder is None:
            raise CompressError(
                f"{what} has external data, expected the path of the model, which they lie beside"
            )
        path = locate(self.folder, location, what)
        if path not in self._found:
            try:
                self._found[path] = DataFile(path, hold=len(self._found) < self.HELD)
            except OSError as error:
                raise CompressError(
                    f"{what} has external data that can't be read: {error.strerror}"
                ) from error
        return self._found[path]


def load(source: str | Path | onnx.ModelProto | ir.Model) -> ir.Model:
    """Return the model in the file `source`, or a copy of a `source` in memory, which isn't changed.

    Large tensors stay in their files, mapped. Raises UsageError where there is no such file, CompressError
    where it holds no valid model. What was changed to read it is said by :func:`onnxcompress.model.notes`.
    """
    if isinstance(source, ir.Model):
        return _from_model(source)
    if isinstance(source, onnx.ModelProto):
        return _from_proto(source, Files(), "model")
    if not isinstance(source, str | Path) or not str(source):
        raise UsageError(f"model: {source!r} is none, expected a path, a ModelProto or an onnx_ir model")
    path = Path(source)
    proto, file = parse(path)
    return _from_proto(proto, Files(file.path.parent, file), path.name)


def parse(path: Path) -> tuple[onnx.ModelProto, DataFile]:
    """Return the model in the file `path`, its large tensors external data in that file, and the file."""
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"{path}: is not a file, expected an ONNX file")
        file = DataFile(path.absolute())
    except OSError as error:
        raise UsageError(f"{path}: can't be read: {error.strerror}") from error
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(wire.without_weights(file.read(0, file.size)))
    except DecodeError as error:
        raise CompressError(f"{path.name}: is no ONNX model, or is cut short") from error
    if not file.size:
        raise CompressError(f"{path.name}: is empty, expected an ONNX model")
    return proto, file


def _from_proto(proto: onnx.ModelProto, files: Files, label: str) -> ir.Model:
    try:
        light, sources = protos.skeleton(proto)
        for message in (light, *sources):
            _check_texts(message)
    except UnicodeDecodeError as error:
        raise CompressError(f"{label}: {error.object[:100]!r} is no text, expected UTF-8") from error
    return _build(light, [read_tensor(each, files, label) for each in sources], label)


def _check_texts(message: Any) -> None:
    """Raise UnicodeDecodeError for a text in `message` that isn't UTF-8: protobuf hands it over as bytes."""
    for field, value in message.ListFields():
        if field.message_type is not None:
            for each in (value,) if hasattr(value, "CopyFrom") else value:
                _check_texts(each)
        elif field.type == field.TYPE_STRING:
            for each in (value,) if isinstance(value, str | bytes) else value:
                if isinstance(each, bytes):
                    each.decode()


def _from_model(model: ir.Model) -> ir.Model:
    light, held = protos.to_skeleton(protos.copied(model))
    found: dict[Path, Files] = {}
    for number, tensor in enumerate(held):
        if isinstance(tensor, ir.ExternalTensor):
            folder, location = Path(tensor.base_dir).absolute(), str(tensor.location)
            if not tensor.base_dir:
                folder, location = Path(tensor.path).absolute().parent, Path(tensor.path).name
            files = found.setdefault(folder, Files(folder))
            source = ir.to_proto(tensor)
            source.external_data[0].value = location
            held[number] = read_tensor(source, files, "model")
    return _build(light, held, "model")


def _build(light: onnx.ModelProto, tensors: Sequence[ir.TensorProtocol], label: str) -> ir.Model:
    """Return the model of the skeleton `light` of `tensors`."""
    if not light.HasField("graph"):
        raise CompressError(f"{label}: holds no graph, expected an ONNX model")
    notes = _repair(light)
    try:
        _check_versions(light)
        check_skeleton(light)
        model = ir.from_proto(light)
        for tensor, put in protos.places(model):
            number = protos.number(tensor)
            if number is not None:
                put(tensors[number])
    except CompressError as error:
        raise CompressError(f"{label}: {error}") from error
    except ir.serde.SerdeError as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise CompressError(f"{label}: {_one_line(cause)}") from error
    model.meta[NOTES] = notes
    return model


def _repair(light: onnx.ModelProto) -> list[str]:
    """Put right in `light` what old exporters wrote; return what a user should know of it.

    Up to IR version 3, initializers had to be listed as inputs. Exporters kept the habit for a while: from
    IR version 4 on, two or more initializers of which all are listed are constants. One alone, or some of
    them, are listed on purpose, for callers to override.
    """
    notes = []
    graph = light.graph
    graph.name = graph.name or "graph"
    initializers = {each.name for each in graph.initializer}
    listed = {each.name for each in graph.input} & initializers
    if listed and (light.ir_version < 4 or (listed == initializers and len(listed) > 1)):
        notes.append(f"{len(listed)} initializers that were listed as inputs are constants now")
        kept = [each for each in graph.input if each.name not in listed]
        del graph.input[:]
        graph.input.extend(kept)
    if light.training_info:
        notes.append("the training information was left out")
        light.ClearField("training_info")
    light.ir_version = max(light.ir_version, 4)
    return notes


def _check_versions(light: onnx.ModelProto) -> None:
    newest = onnx.defs.onnx_opset_version()
    for each in light.opset_import:
        if each.domain in ("", "ai.onnx") and not OLDEST <= each.version <= newest:
            raise CompressError(f"has operator set {each.version}, expected {OLDEST} to {newest}")


def check_skeleton(light: onnx.ModelProto) -> None:
    """Raise CompressError where the skeleton `light` breaks the rules of ONNX."""
    held = [(holder, list(holder.dims)) for _, holder in protos.placeholders(light)]
    raised = (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, RuntimeError)
    try:
        for holder, _ in held:
            holder.dims[:] = [0]  # a tensor without data must be empty
        onnx.checker.check_model(light)
        for holder, dims in held:
            holder.dims[:] = dims
        onnx.shape_inference.infer_shapes(light, check_type=True)
    except raised as error:
        raise CompressError(_one_line(error)) from error


def _one_line(error: BaseException) -> str:
    """Return the message of `error` in one line that a terminal can be given."""
    text = textwrap.shorten(str(error), 400, placeholder=" ...")
    return "".join(each if each.isprintable() else "?" for each in text)
