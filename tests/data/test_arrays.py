import io
import tracemalloc
import zipfile
from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress.data.arrays import in_memory, open_npy, open_npz
from onnxcompress.errors import UsageError

DTYPES = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?"),
    hnp.complex_number_dtypes(),
    hnp.unicode_string_dtypes(min_len=1, max_len=5),
    hnp.byte_string_dtypes(min_len=1, max_len=5),
)
ARRAYS = DTYPES.flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
)


def assert_same(found, expected):
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.tobytes() == expected.tobytes()


@given(array=ARRAYS, fortran=st.booleans(), packed=st.booleans())
@settings(max_examples=200, deadline=None)
def test_rows_of_an_npz_are_those_of_numpy(tmp_path_factory, array, fortran, packed):
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    (np.savez_compressed if packed else np.savez)(path, x=np.array(array, order="F" if fortran else "C"))
    expected = np.load(path)["x"]
    found = open_npz(path)["x"]
    assert (found.shape, found.dtype, found.size) == (expected.shape, expected.dtype, expected.size)
    assert_same(found.whole(), expected)
    if array.ndim:
        rows = list(found.read(False))
        assert len(rows) == len(expected)
        for place, row in enumerate(rows):
            assert_same(row, expected[place, ...])


@given(array=ARRAYS, fortran=st.booleans())
@settings(deadline=None)
def test_rows_of_an_npy_are_those_of_numpy_at_every_reading(tmp_path_factory, array, fortran):
    path = tmp_path_factory.mktemp("npy") / "a.npy"
    np.save(path, np.array(array, order="F" if fortran else "C"))
    found = open_npy(path)
    for _ in range(2):
        assert_same(found.whole(), array)
        if array.ndim:
            rows = list(found.read(False))
            assert [row.tobytes() for row in rows] == [
                array[place, ...].tobytes() for place in range(len(array))
            ]


def test_an_array_in_memory_is_read_without_a_copy():
    array = np.arange(6.0).reshape(3, 2)
    found = in_memory("x", array)
    assert found.whole() is array
    assert all(np.shares_memory(row, array) for row in found.read(False))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_memory_does_not_grow_with_the_number_of_rows(tmp_path, save):
    def peak(count):
        path = tmp_path / f"{count}.npz"
        save(path, x=np.zeros((count, 3, 224, 224), np.float32))
        tracemalloc.start()
        for _ in open_npz(path)["x"].read(False):
            pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    row = 3 * 224 * 224 * 4
    assert peak(40) < 6 * row
    assert peak(40) < peak(10) + row


def test_only_the_headers_are_read_when_a_file_is_opened(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((100, 1000)))
    tracemalloc.start()
    open_npz(tmp_path / "a.npz")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 200_000


def npy(header, data=b"", version=(1, 0), length=None):
    text = header.encode().ljust(117) + b"\n"
    size = 2 if version == (1, 0) else 4
    length = len(text) if length is None else length
    return b"\x93NUMPY" + bytes(version) + length.to_bytes(size, "little") + text + data


HEADER = "{'descr': '<f4', 'fortran_order': %s, 'shape': %s}"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not an array in numpy's format"),
        (b"not numpy at all", "is not an array in numpy's format"),
        (npy("{}"), "is not an array in numpy's format"),
        (npy("(" * 90), "is not an array in numpy's format"),
        (npy("{'a': 1L"), "is not an array in numpy's format"),
        (npy(HEADER % ("False", "(2,)"), version=(9, 0)), "is not an array in numpy's format"),
        (
            npy(HEADER % ("False", "(2,)"), version=(2, 0), length=2**32 - 1),
            "is not an array in numpy's format",
        ),
        (npy("{'descr': 'O', 'fortran_order': False, 'shape': (2,)}"), "pickled objects are not read"),
        (npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,)}"), "expected numbers"),
        (npy(HEADER % ("False", "(2, 3)"), bytes(20)), r"declares shape \[2, 3\], 24 bytes, but holds 20"),
        (npy(HEADER % ("False", f"({2**62}, {2**62})"), bytes(20)), "but holds 20"),
        (npy(HEADER % ("True", f"({2**40}, 4)"), bytes(20)), "but holds 20"),
        (npy(HEADER % ("False", "(-1, -3)"), bytes(20)), r"declares shape \[-1, -3\]"),
    ],
)
@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_refuses_what_declares_more_than_it_holds_or_is_no_array(tmp_path, data, message, kind):
    path = tmp_path / f"bad.{kind}"
    if kind == "npy":
        path.write_bytes(data)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", data)
    with pytest.raises(UsageError, match=message) as error:
        open_npy(path) if kind == "npy" else open_npz(path)
    assert str(error.value).startswith(path.name)


@given(place=st.integers(0, 127), value=st.integers(0, 255), cut=st.integers(0, 200))
@settings(max_examples=300, deadline=None)
def test_a_damaged_header_is_refused_or_read_but_never_a_crash(tmp_path_factory, place, value, cut):
    data = bytearray(npy(HEADER % ("False", "(3, 4)"), bytes(48)))
    data[place] = value
    path = tmp_path_factory.mktemp("npy") / "a.npy"
    path.write_bytes(data[: len(data) - cut])
    try:
        for _ in open_npy(path).read(False):
            pass
    except UsageError:
        pass


def test_refuses_pickled_objects_that_numpy_wrote(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([{}, None], dtype=object))
    with pytest.raises(UsageError, match=r"a.npz: x holds object, expected numbers; pickled objects"):
        open_npz(tmp_path / "a.npz")


def test_refuses_a_truncated_npz(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=np.zeros((10, 10)))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UsageError, match=r"a.npz can't be read: File is not a zip file"):
        open_npz(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_says_when_the_data_of_a_member_is_damaged(tmp_path, save):
    path = tmp_path / "a.npz"
    save(path, x=np.random.default_rng(0).random((10, 100)))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    with pytest.raises(UsageError, match=r"a.npz: x can't be read: .*"):
        list(open_npz(path)["x"].read(False))


def test_says_when_a_member_holds_less_than_the_archive_declares(tmp_path):
    whole = io.BytesIO()
    np.save(whole, np.zeros((10, 100)))
    for packing in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path = tmp_path / f"{packing}.npz"
        with zipfile.ZipFile(path, "w", packing) as archive:
            archive.writestr("x.npy", whole.getvalue()[:-80])
        data = path.read_bytes()
        short, full = (
            (len(whole.getvalue()) - 80).to_bytes(4, "little"),
            len(whole.getvalue()).to_bytes(4, "little"),
        )
        path.write_bytes(data.replace(short, full))
        with pytest.raises(UsageError, match="can't be read"):
            list(open_npz(path)["x"].read(False))


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_damaged_npz_is_refused_or_read_but_never_a_crash(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    (np.savez if data.draw(st.booleans()) else np.savez_compressed)(path, x=np.arange(60.0).reshape(3, 20))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        for array in open_npz(path).values():
            if array.shape:
                assert len(list(array.read(False))) == array.shape[0]
    except UsageError:
        pass


def test_refuses_a_name_that_would_break_a_message(tmp_path):
    np.savez(tmp_path / "a.npz", **{"two\nlines": np.ones(3)})
    with pytest.raises(
        UsageError, match=r"a.npz: an array is called 'two\\nlines', expected a name that can be printed"
    ):
        open_npz(tmp_path / "a.npz")


@pytest.mark.parametrize("packing", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_refuses_packing_that_numpy_does_not_write(tmp_path, packing):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", packing) as archive:
        archive.writestr("x.npy", npy(HEADER % ("False", "(2,)"), bytes(8)))
    with pytest.raises(UsageError, match="x is encrypted or compressed in a way numpy does not write"):
        open_npz(tmp_path / "a.npz")


def test_leaves_no_file_open_when_reading_stops_early(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((10, 100)))
    rows = open_npz(tmp_path / "a.npz")["x"].read(False)
    next(rows)
    rows.close()
    Path(tmp_path / "a.npz").unlink()
