"""Model files written tensor by tensor, so that few are in memory at once."""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import onnx
import onnx_ir as ir

from onnxcompress.base import silent
from onnxcompress.errors import CompressError, UsageError
from onnxcompress.model import protos
from onnxcompress.model.computed import ComputedTensor
from onnxcompress.model.external import MappedTensor
from onnxcompress.model.sparse import SparseTensor
from onnxcompress.model.storage import put_in_line, raw, tensor_bytes, write_header
from onnxcompress.model.wire import tag

IN_LINE_LIMIT = 2**31 - 2**20  # bytes of a protobuf, with room for what surrounds the data
SMALL = 1024  # bytes up to which a tensor stays in the model file
IN_FLIGHT = 2**29  # bytes of tensors that may wait to be written
Progress = Callable[[int, int | None, str], None]
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9  # field numbers


def save(
    model: ir.Model,
    path: str | Path,
    *,
    external_data: bool = False,
    jobs: int = 1,
    check: Callable[[Path], None] | None = None,
    limit: int = IN_LINE_LIMIT,
    progress: Progress = silent,
) -> int:
    """Write `model` to the file `path`, replacing it only when all is written and `check` has not raised.

    Returns the bytes written, external data included.

    Above `limit` bytes, or when asked, the data of larger tensors go to ``<name>.data`` beside it. `check` is
    given the path of the finished file before it gets its name. `jobs` tensors are evaluated at a time, one
    for each core if 0; the file is the same for any number. `progress(done, total, what)` is told the bytes.
    `model` is not changed, and stays valid when its own files are replaced. Raises UsageError where `path`
    can't be a file, CompressError where the disk is full.
    """
    path = Path(path)
    _check_target(path)
    jobs = jobs or os.cpu_count() or 1
    light, held = protos.to_skeleton(protos.copied(model))
    small = sum(tensor_bytes(tensor) for tensor in held if not _is_large(tensor))
    if small > IN_LINE_LIMIT:
        raise CompressError(f"{path.name}: over 2 GB of sparse tensors and texts, expected less in one file")
    protos.put_sparse(light, held)
    external = external_data or light.ByteSize() + sum(tensor_bytes(each) + 64 for each in held) > limit
    with _folder_beside(path) as folder:
        written, data = folder / path.name, folder / f"{path.name}.data"
        with _said(path):
            if external:
                write_external(light, held, written, data, jobs, progress)
            else:
                write_in_line(light, held, written, jobs, progress)
        if check is not None:
            check(written)
        parts = [each for each in (data, written) if each.exists()]
        total = sum(each.stat().st_size for each in parts)
        with _said(path):
            for each in parts:
                os.replace(each, path.with_name(each.name))
    return total


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to the file `path`, replacing it whole; CompressError where the disk is full."""
    path = Path(path)
    _check_target(path)
    with _folder_beside(path) as folder, _said(path):
        (folder / path.name).write_text(text, encoding="utf-8")
        os.replace(folder / path.name, path)


def _check_target(path: Path) -> None:
    if not path.parent.is_dir():
        raise UsageError(f"{path}: the folder {path.parent} does not exist")
    if not path.name or (path.exists() and not path.is_file()):
        raise UsageError(f"{path}: is not a file, expected the name of a file to write")


@contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    """Make a folder on the file system of `path`, and remove it with all that is in it."""
    with _said(path):
        folder = tempfile.TemporaryDirectory(prefix=".onnxcompress-", dir=path.parent)
    with folder as name:
        yield Path(name)


@contextmanager
def _said(path: Path) -> Iterator[None]:
    """Raise what the operating system refuses as a one-line CompressError."""
    try:
        yield
    except OSError as error:
        raise CompressError(f"{path}: can't be written: {error.strerror or error}") from error


def write_external(
    light: onnx.ModelProto,
    held: Sequence[ir.TensorProtocol],
    path: Path,
    data: Path,
    jobs: int,
    progress: Progress,
) -> None:
    """Write the skeleton `light` of the tensors `held` to `path`, larger tensors to `data` beside it."""
    offsets: dict[object, int] = {}
    queue: list[ir.TensorProtocol] = []
    end = 0
    for number, holder in list(protos.placeholders(light)):
        tensor = held[number]
        write_header(tensor, holder, holder.name)
        if not _is_large(tensor):
            put_in_line(tensor, holder)
            continue
        key = tensor.place if isinstance(tensor, MappedTensor) else id(tensor)
        if key not in offsets:
            offsets[key] = _aligned(end, tensor.nbytes)
            end = offsets[key] + tensor.nbytes
            queue.append(tensor)
        holder.data_location = onnx.TensorProto.EXTERNAL
        for entry, value in (("location", data.name), ("offset", offsets[key]), ("length", tensor.nbytes)):
            holder.external_data.add(key=entry, value=str(value))
    if queue:
        with data.open("wb") as file:
            for tensor, stored in _watched(queue, jobs, progress):
                file.write(bytes(_aligned(file.tell(), tensor.nbytes) - file.tell()))
                file.write(stored)
                del stored  # before the next one is made
            _sync(file)
    with path.open("wb") as file:
        file.write(light.SerializeToString())
        _sync(file)


def write_in_line(
    light: onnx.ModelProto, held: Sequence[ir.TensorProtocol], path: Path, jobs: int, progress: Progress
) -> None:
    """Write the skeleton `light` of the tensors `held` to `path`, all data in it.

    The main graph's larger initializers are written one by one behind the rest of the graph. Source: Protocol
    Buffers encoding; fields may come in any order.
    """
    small, headers, queue = [], [], []
    for number, holder in protos.holders(light.graph):
        if _is_large(held[number]):
            header = onnx.TensorProto()
            write_header(held[number], header, holder.name)
            headers.append(header.SerializeToString())
            queue.append(held[number])
        else:
            small.append(holder)
    del light.graph.initializer[:]
    light.graph.initializer.extend(small)
    for number, holder in list(protos.placeholders(light)):
        write_header(held[number], holder, holder.name)
        put_in_line(held[number], holder)

    rest = light.graph.SerializeToString()
    light.ClearField("graph")
    heads = []
    for tensor, head in zip(queue, headers, strict=True):
        head += tag(_RAW_DATA, tensor.nbytes)
        heads.append(tag(_INITIALIZER, len(head) + tensor.nbytes) + head)
    total = len(rest) + sum(map(len, heads)) + sum(tensor.nbytes for tensor in queue)
    with path.open("wb") as file:
        file.write(light.SerializeToString() + tag(_GRAPH, total))
        file.write(rest)
        remaining = iter(heads)
        for _, stored in _watched(queue, jobs, progress):
            file.write(next(remaining))
            file.write(stored)
            del stored  # before the next one is made
        _sync(file)


def _watched(
    tensors: Sequence[ir.TensorProtocol], jobs: int, progress: Progress
) -> Iterator[tuple[ir.TensorProtocol, memoryview]]:
    """Yield what :func:`evaluated` does, telling how many bytes are done."""
    done, total = 0, sum(each.nbytes for each in tensors)
    for tensor, stored in evaluated(tensors, jobs):
        progress(done, total, "writing")
        yield tensor, stored
        del stored  # before the next one is made
        done += tensor.nbytes
    progress(done, total, "writing")


def evaluated(
    tensors: Sequence[ir.TensorProtocol], jobs: int, room: int = IN_FLIGHT
) -> Iterator[tuple[ir.TensorProtocol, memoryview]]:
    """Yield tensors with their bytes in order, `jobs` evaluated at a time; give back the pages read.

    With several jobs, those ahead of the one that is yielded are evaluated meanwhile, as long as all that
    aren't done with take at most `room` bytes; a larger one is alone. A tensor that comes after another one
    waits for it. CompressError where the memory doesn't suffice for one.
    """
    if jobs == 1:
        for tensor in tensors:
            yield tensor, _stored(tensor)
            _release(tensor)
        return
    with ThreadPoolExecutor(jobs, "onnxcompress") as pool:
        ahead: deque[tuple[ir.TensorProtocol, Future[memoryview] | None]] = deque()
        remaining, begun, taken = deque(tensors), set[int](), 0
        try:
            while ahead or remaining:
                while remaining and (not taken or taken + remaining[0].nbytes <= room):
                    tensor = remaining.popleft()
                    waits = isinstance(tensor, ComputedTensor) and id(tensor.after) in begun
                    ahead.append((tensor, None if waits else pool.submit(_stored, tensor)))
                    begun.add(id(tensor))
                    taken += tensor.nbytes
                tensor, future = ahead.popleft()
                yield tensor, _stored(tensor) if future is None else future.result()
                del future  # and what it holds
                _release(tensor)
                taken -= tensor.nbytes
        finally:
            pool.shutdown(cancel_futures=True)


def _stored(tensor: ir.TensorProtocol) -> memoryview:
    try:
        return raw(tensor)
    except MemoryError as error:
        raise CompressError(f"{tensor.name}: there is too little memory to compute it") from error


def _release(tensor: ir.TensorProtocol) -> None:
    if isinstance(tensor, MappedTensor):
        tensor.release()


def _is_large(tensor: ir.TensorProtocol) -> bool:
    plain = not isinstance(tensor, SparseTensor) and tensor.dtype != ir.DataType.STRING
    return plain and tensor.nbytes > SMALL


def _aligned(offset: int, size: int) -> int:
    """Return the first place from `offset` on for a tensor of `size` bytes."""
    step = 4096 if size >= 2**20 else 64  # a page, for engines that map
    return -(-offset // step) * step


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
