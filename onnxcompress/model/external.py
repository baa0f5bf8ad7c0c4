"""Tensors that stay in files until they are read."""

from __future__ import annotations

import math
import mmap
import os
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxcompress.errors import CompressError


class DataFile:
    """A file that holds tensors, mapped read-only.

    A file that is `held` stays open: its bytes stay the same ones even when its name is given to another
    file. One that isn't is opened when read, and CompressError is raised if it was replaced meanwhile.
    """

    def __init__(self, path: Path, hold: bool = True) -> None:
        self.path = path
        with path.open("rb") as file:
            self._stamp = _stamp(file.fileno())
            self._map = _map(file.fileno()) if hold and self.size else None

    @property
    def size(self) -> int:
        """The file's size in bytes when it was first opened."""
        return self._stamp[1]

    def read(self, offset: int, length: int) -> np.ndarray:
        """Return `length` bytes from `offset` as a uint8 view of the file, mapped as long as it lives."""
        if not length:
            return np.zeros(0, np.uint8)
        return np.frombuffer(self._map or self._reopen(), np.uint8, length, offset)

    def forget(self, offset: int, length: int) -> None:
        """Take the bytes' pages out of this process's memory; views stay valid and read them anew."""
        if self._map is not None and hasattr(self._map, "madvise"):
            start = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
            stop = (offset + length) // mmap.PAGESIZE * mmap.PAGESIZE
            if stop > start:
                self._map.madvise(mmap.MADV_DONTNEED, start, stop - start)

    def _reopen(self) -> mmap.mmap:
        try:
            with self.path.open("rb") as file:
                if _stamp(file.fileno()) == self._stamp:
                    return _map(file.fileno())
        except OSError as error:
            raise CompressError(f"{self.path}: can't be read any more: {error.strerror}") from error
        raise CompressError(f"{self.path}: was replaced since the model was loaded, expected the same file")


class MappedTensor(ir.LazyTensor):
    """A tensor whose bytes lie in a file and are mapped, not read, when asked for."""

    def __init__(
        self,
        file: DataFile,
        offset: int,
        dtype: ir.DataType,
        *,
        shape: ir.Shape,
        name: str | None = None,
        doc_string: str | None = None,
        metadata_props: dict[str, str] | None = None,
    ) -> None:
        super().__init__(
            partial(_read, file, offset, dtype, shape),
            dtype,
            shape,
            name=name,
            doc_string=doc_string,
            metadata_props=metadata_props,
        )
        self.file = file
        self.offset = offset

    @property
    def place(self) -> tuple[DataFile, int, int]:
        """File, offset and length: the same for tensors that share their bytes."""
        return self.file, self.offset, self.nbytes

    def release(self) -> None:
        """Give the mapped pages back; arrays made from this tensor stay valid."""
        self.file.forget(self.offset, self.nbytes)


def _read(file: DataFile, offset: int, dtype: ir.DataType, shape: ir.Shape) -> ir.TensorProtocol:
    return decode(file.read(offset, stored_bytes(dtype, tuple(shape.numpy()))), dtype, shape=shape)


def decode(stored: np.ndarray, dtype: ir.DataType, *, shape: ir.Shape, **about: Any) -> ir.TensorProtocol:
    """Return the tensor whose bytes are `stored` [bytes, uint8], little-endian and packed as in a file."""
    if dtype.bitwidth < 8:
        return ir.PackedTensor(stored, dtype, shape=shape, **about)
    if stored.ctypes.data % dtype.itemsize:
        stored = stored.copy()  # numpy computes slowly on what isn't aligned
    array = stored.view(dtype.numpy().newbyteorder("<")).reshape(shape.numpy())
    return ir.Tensor(array, dtype=dtype, shape=shape, **about)


def stored_bytes(dtype: ir.DataType, dims: tuple[int, ...]) -> int:
    """Return how many bytes a tensor of `dims` takes in a file; elements of less than a byte are packed."""
    return math.ceil(dtype.bitwidth * math.prod(dims) / 8)


def locate(folder: Path, location: str, what: str) -> Path:
    """Return the file `location` (relative, with slashes) in `folder`; CompressError where it is none.

    Neither the path nor a link on it may lead out of the folder. `what` begins the message.
    """
    said = repr(location) if len(location) < 100 else repr(location[:100]) + "..."
    parts = PurePosixPath(location).parts
    if not parts or "\0" in location:
        raise CompressError(f"{what} has external data at {said}, expected the name of a file")
    if ".." in parts or PurePosixPath(location).is_absolute() or PureWindowsPath(location).anchor:
        raise CompressError(f"{what} has external data at {said}, expected a path inside the model's folder")
    path = folder / location
    try:
        real = path.resolve(strict=True)
    except RuntimeError as error:
        raise CompressError(f"{what} has external data at {said}: a link to itself") from error
    except OSError as error:
        raise CompressError(f"{what} has external data at {said}: {error.strerror}") from error
    if not real.is_relative_to(folder.resolve()):
        raise CompressError(
            f"{what} has external data at {said}, a link that leads out of the model's folder"
        )
    if not real.is_file():
        raise CompressError(f"{what} has external data at {said}, which is not a file")
    return path


def _stamp(descriptor: int) -> tuple[int, int, int]:
    stat = os.fstat(descriptor)
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _map(descriptor: int) -> mmap.mmap:
    return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
