"""Arrays that are read row by row: in memory, in an .npy file, in a member of an .npz file.

Format: ``numpy.lib.format`` of the NumPy manual. An array in a file is never read whole: rows are read one
after the other, through the decompressor where there is one. An array in Fortran order, whose rows are
scattered over the file, is mapped into memory from a temporary file. Objects (pickle) are refused.
"""

import math
import shutil
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np

from onnxcompress.errors import UsageError

_HEADER_LIMIT = 10_000 + 16  # bytes: the longest header numpy reads, and what comes before it
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_DECLARED = (ValueError, TypeError, KeyError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError)


@dataclass(frozen=True)
class Array:
    """An array whose rows (along the first axis) can be read one by one, any number of times.

    `where` names it in messages. ``read(True)`` yields the whole array, once, ``read(False)`` each row.
    """

    where: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[bool], Iterator[np.ndarray]]

    @property
    def size(self) -> int:
        """How many elements there are."""
        return math.prod(self.shape)

    def whole(self) -> np.ndarray:
        """Return all of it [shape]; for arrays known to be small."""
        return next(self.read(True))


def in_memory(where: str, array: np.ndarray) -> Array:
    """Return `array`, which is already in memory (or mapped), as an Array."""
    return Array(where, array.shape, array.dtype, lambda whole: _parts(array, whole))


def _parts(array: np.ndarray, whole: bool) -> Iterator[np.ndarray]:
    return iter((array,)) if whole else (array[place, ...] for place in range(len(array)))


def open_npy(path: Path) -> Array:
    """Return the array in an .npy file; only its header is read. UsageError where it isn't one."""
    return _stored(path.name, lambda: path.open("rb"), path.stat().st_size)


def open_npz(path: Path) -> dict[str, Array]:
    """Return the arrays in an .npz file by name, their headers read. UsageError where it isn't one."""
    with _readable(path.name), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    arrays = {}
    for member in members:
        name = member.filename.removesuffix(".npy")
        where = f"{path.name}: {name}"
        if not name.isprintable():
            raise UsageError(f"{path.name}: an array is called {name!r}, expected a name that can be printed")
        if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UsageError(f"{where} is encrypted or compressed in a way numpy does not write")
        arrays[name] = _stored(where, partial(_open_member, path, member), member.file_size)
    return arrays


def _open_member(path: Path, member: zipfile.ZipInfo) -> IO[bytes]:
    with zipfile.ZipFile(path) as archive:
        return archive.open(member)  # the archive's file stays open until the member is closed


@contextmanager
def _readable(where: str) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError(f"{where} can't be read: {error}") from error


def _stored(where: str, opened: Callable[[], IO[bytes]], length: int) -> Array:
    """Return the array in the .npy stream of `length` bytes that `opened` opens."""
    with _readable(where), opened() as stream:
        head = BytesIO(stream.read(_HEADER_LIMIT))
    try:
        shape, fortran, dtype = _HEADERS[np.lib.format.read_magic(head)](head)
    except _DECLARED as error:
        raise UsageError(f"{where} is not an array in numpy's format") from error
    if dtype.hasobject or dtype.names or dtype.subdtype:
        raise UsageError(f"{where} holds {dtype}, expected numbers; pickled objects are not read")
    offset = head.tell()
    needed = math.prod(shape) * dtype.itemsize
    if any(size < 0 for size in shape) or needed > length - offset:
        raise UsageError(f"{where} declares shape {list(shape)}, {needed} bytes, but holds {length - offset}")

    def read(whole: bool) -> Iterator[np.ndarray]:
        with _readable(where), opened() as stream:
            stream.read(offset)
            if fortran and needed:
                yield from _parts(_map(stream, shape, dtype), whole)
                return
            part = shape if whole else shape[1:]
            size = math.prod(part) * dtype.itemsize
            for _ in range(1 if whole else shape[0]):
                data = stream.read(size)
                if len(data) != size:
                    raise EOFError("it ends too early")
                yield np.ndarray(part, dtype, data)

    return Array(where, shape, dtype, read)


def _map(stream: IO[bytes], shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return the rest of `stream`, an array in Fortran order, mapped into memory from a temporary file."""
    with tempfile.TemporaryFile() as spilled:
        shutil.copyfileobj(stream, spilled)
        if spilled.tell() < math.prod(shape) * dtype.itemsize:
            raise EOFError("it ends too early")
        return np.asarray(np.memmap(spilled, dtype, "r", shape=shape, order="F"))
