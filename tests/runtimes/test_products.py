"""Products with weights as they are stored: the numbers are right, and so is what is counted."""

import math
from itertools import product as pairs

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress.formats.elements import Elements, Tables
from onnxcompress.runtimes import products
from onnxcompress.runtimes.counts import Counts
from onnxcompress.runtimes.products import Matrix, Product


def listed(shape: tuple[int, ...], found: dict[int, float], tables: Tables | None = None) -> Elements:
    """The elements of a flat array that aren't zero, or numbers of them, zero being the last one."""
    kind = np.float32 if tables is None else np.uint8
    background = np.zeros((), kind) if tables is None else np.uint8(tables.values.shape[1] - 1)
    positions = np.array(list(found), np.int32)
    return Elements(shape, np.array(list(found.values()), kind), positions, background, tables)


def one(*values: float) -> Tables:
    return Tables(np.array([values], np.float32))


def test_each_value_of_its_own_is_one_multiply_add_for_each_output() -> None:
    # [[2, 0, 0, 3], [0, 0, 5, 0]] times 10 columns of 4-byte activations: 3 elements of 8
    found = Product(listed((2, 4), {0: 2, 3: 3, 6: 5}), Matrix(1, 2, 4))
    assert found.counts(10, 4) == Counts(multiply_adds=30, skipped=50, activation_bytes=120)
    x = np.array([[1.0, 10], [2, 20], [3, 30], [4, 40]])
    assert found(x).tolist() == [[14, 140], [15, 150]]


def test_values_from_a_table_are_looked_up_once_whatever_the_outputs() -> None:
    # [[2, 0, 0, 3], [0, 0, 3, 0]]: no row has a value twice
    found = Product(listed((2, 4), {0: 0, 3: 1, 6: 1}, one(2, 3, 0)), Matrix(1, 2, 4))
    expected = Counts(multiply_adds=30, skipped=50, look_ups=3, activation_bytes=120)
    assert found.counts(10, 4) == expected


def test_activations_are_summed_by_value_where_that_is_less() -> None:
    # [[2, 2, 2, 3, 2], [3, 3, 3, 3, 3]]: 10 elements, 3 different ones in rows, and 10 + 2 * 3 < 2 * 10
    codes = np.array([0, 0, 0, 1, 0, 1, 1, 1, 1, 1], np.uint8)
    found = Product(Elements((2, 5), codes, tables=one(2, 3)), Matrix(1, 2, 5))
    expected = Counts(multiply_adds=30, skipped=70, adds=100, look_ups=3, activation_bytes=400)
    assert found.counts(10, 4) == expected
    assert found(np.arange(1.0, 6)[:, None]).tolist() == [[2 * 11 + 3 * 4], [45]]


def test_values_of_one_magnitude_only_add_and_subtract_and_rows_are_multiplied_once() -> None:
    # [[0.3, -0.3, 0, 0.3], [0, 0, -0.3, 0]]: 4 elements, 2 rows
    codes = np.array([1, 2, 0, 1, 0, 0, 2, 0], np.uint8)
    found = Product(Elements((2, 4), codes, tables=one(0, 0.5, -0.5)), Matrix(1, 2, 4))
    assert found.counts(10, 4) == Counts(multiply_adds=20, skipped=60, adds=40, activation_bytes=160)
    assert found(np.array([[1.0], [2], [3], [4]])).tolist() == [[1.5], [-1.5]]


def test_values_of_magnitude_one_are_not_multiplied_at_all() -> None:
    codes = np.array([0, 1, 1, 0], np.uint8)
    found = Product(Elements((2, 2), codes, tables=one(1, -1)), Matrix(1, 2, 2))
    assert found.counts(3, 8) == Counts(skipped=12, adds=12, activation_bytes=96)
    assert found(np.array([[1.0], [5]])).tolist() == [[-4], [4]]


def test_magnitudes_of_columns_multiply_the_activations_before() -> None:
    # stored column by column, a magnitude for each column: [[0.5, -3], [0.5, 3], [-0.5, 0]]
    tables = Tables(np.array([[0, 0.5, -0.5], [0, 3, -3]], np.float32), (2, 3, 1, 1))
    found = Product(
        Elements((2, 3), np.array([1, 1, 2, 2, 1, 0], np.uint8), tables=tables), Matrix(1, 3, 2, True)
    )
    assert found.counts(10, 4) == Counts(multiply_adds=20, skipped=40, adds=50, activation_bytes=200)
    assert found(np.array([[2.0], [1]])).tolist() == [[-2], [4], [-1]]


def test_powers_of_two_are_shifts_and_additions() -> None:
    # [[4, -0.5, 0, 0], [0, 0, 0, 1]]
    found = Product(listed((2, 4), {0: 0, 1: 1, 7: 2}, one(4, -0.5, 1, 0)), Matrix(1, 2, 4))
    assert found.counts(10, 4) == Counts(skipped=80, adds=30, shifts=30, activation_bytes=120)
    assert found(np.array([[1.0], [2], [3], [4]])).tolist() == [[3], [4]]


def test_powers_of_two_times_a_scale_are_shifts_and_a_product_a_row() -> None:
    found = Product(listed((2, 4), {0: 0, 1: 1, 7: 2}, one(6, -0.75, 1.5, 0)), Matrix(1, 2, 4))
    expected = Counts(multiply_adds=20, skipped=60, adds=30, shifts=30, activation_bytes=120)
    assert found.counts(10, 4) == expected
    assert found(np.array([[1.0], [2], [3], [4]])).tolist() == [[4.5], [6]]


def test_sums_by_value_are_shifted_where_values_are_powers_of_two() -> None:
    # [[4, 4, 4, -1, -1]]: 5 additions, 2 shifts, 2 additions
    found = Product(Elements((1, 5), np.array([0, 0, 0, 1, 1], np.uint8), tables=one(4, -1)), Matrix(1, 1, 5))
    assert found.counts(10, 4) == Counts(skipped=50, adds=70, shifts=20, activation_bytes=200)
    assert found(np.arange(1.0, 6)[:, None]).tolist() == [[15]]


def test_an_element_told_twice_counts_once_and_zeros_that_are_listed_not_at_all() -> None:
    positions = np.array([5, 1, 5, 2], np.int32)
    found = Elements((2, 3), np.array([7, 2, 4, 0], np.float32), positions, np.zeros((), np.float32))
    product = Product(found, Matrix(1, 2, 3))
    assert product.counts(1, 4) == Counts(multiply_adds=2, skipped=4, activation_bytes=8)
    np.testing.assert_array_equal(product(np.eye(3)), found.array())


def test_counts_add_up() -> None:
    first = Counts(1, 2, 3, 4, 5, 6, 7, 8)
    assert first + Counts(*range(10, 90, 10)) == Counts(11, 22, 33, 44, 55, 66, 77, 88)


MATRICES = [
    Matrix(*sizes, turned=turned)
    for sizes in (
        (1, 6, 6),
        (1, 2, 18),
        (1, 18, 2),
        (2, 3, 6),
        (2, 6, 3),
        (6, 1, 6),
        (6, 6, 1),
        (1, 4, 9),
        (3, 4, 3),
    )
    for turned in (False, True)
]
GRIDS = [(1, 36, 1, 1), (2, 18, 1, 1), (1, 2, 3, 6), (2, 3, 2, 3), (1, 12, 3, 1), (6, 6, 1, 1), (1, 9, 4, 1)]
TABLES = {
    "any": [0, 1.3, -0.4, 0.7],
    "signs": [0, 1, -1, -1],
    "powers": [0, 1, -2, 0.25],
}


@settings(max_examples=300)
@given(
    matrix=st.sampled_from(MATRICES),
    grid=st.sampled_from(GRIDS),
    group=st.integers(1, 3),
    kind=st.sampled_from(list(TABLES)),
    scaled=st.sampled_from(["", "all", "each"]),
    sparse=st.booleans(),
    density=st.sampled_from([0.1, 0.5, 1.0]),
    seed=st.integers(0, 9999),
    limit=st.sampled_from([1, 20, 2**18]),
)
def test_products_and_counts_are_those_of_element_by_element(
    matrix: Matrix,
    grid: tuple[int, int, int, int],
    group: int,
    kind: str,
    scaled: str,
    sparse: bool,
    density: float,
    seed: int,
    limit: int,
) -> None:
    draw = np.random.default_rng(seed)
    count = -(-grid[0] * grid[2] // group)
    scale = {"": np.ones(count), "all": np.full(count, 1.3), "each": draw.random(count) + 0.1}[scaled]
    tables = Tables(np.array(TABLES[kind]) * scale[:, None], grid, group)
    codes = (draw.integers(1, 4, 36) * (draw.random(36) < density)).astype(np.uint8)
    elements = Elements((36,), codes, tables=tables)
    if sparse:
        places = np.flatnonzero(codes)
        elements = Elements((36,), codes[places], places, np.uint8(0), tables)
    dense = dense_matrix(elements.array(), matrix)
    x = draw.standard_normal((matrix.blocks * matrix.columns, 2, 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "LIMIT", limit)
        made = Product(elements, matrix)
        np.testing.assert_allclose(made(x), np.tensordot(dense, x, 1), atol=1e-12)
    assert made.counts(6, 8) == counted(codes.tolist(), tables, matrix, 6, 8)


def place_in(matrix: Matrix, position: int) -> tuple[int, int]:
    """The row and column of an element."""
    block, inner = divmod(position, matrix.rows * matrix.columns)
    if matrix.turned:
        column, row = divmod(inner, matrix.rows)
    else:
        row, column = divmod(inner, matrix.columns)
    return block * matrix.rows + row, block * matrix.columns + column


def dense_matrix(array: np.ndarray, matrix: Matrix) -> np.ndarray:
    dense = np.zeros((matrix.blocks * matrix.rows, matrix.blocks * matrix.columns))
    for position, value in enumerate(array.reshape(-1).tolist()):
        dense[place_in(matrix, position)] = value
    return dense


def counted(codes: list[int], tables: Tables, matrix: Matrix, outputs: int, itemsize: int) -> Counts:
    """What the definitions say, element by element; code 0 is zero."""
    grid = tables.grid or (1, 1, 1, 1)
    channels = [i * grid[2] + k for i, _, k, _ in pairs(*map(range, grid))]
    owners = [channel // tables.group for channel in channels]
    places = [place_in(matrix, position) for position in range(len(codes))]
    values = tables.values.tolist()
    used = [[abs(value) for value in table if value] for table in values]
    mantissas = [{math.frexp(value)[0] for value in table} for table in used]
    signs, powers, scaled = all(len(set(table)) == 1 for table in used), False, 0
    if not signs:
        powers = all(each == {0.5} for each in mantissas)
    if signs or (not powers and all(len(each) == 1 for each in mantissas)):
        scales = [table[0] if signs else math.frexp(table[0])[0] for table in used]
        seen: list[dict[int, set[int]]] = [{}, {}]  # channels in each row, and in each column
        for place, channel in zip(places, channels, strict=True):
            for side in (0, 1):
                seen[side].setdefault(place[side], set()).add(channel)
        lines = [all(len(each) == 1 for each in side.values()) for side in seen]
        lines = [lines[0] and matrix.columns > 1, lines[1] and matrix.rows > 1]  # or products are as many
        sizes = matrix.blocks * matrix.rows, matrix.blocks * matrix.columns
        if len(set(scales)) == 1:
            scaled = 0 if scales[0] == 1 else sizes[0]
        elif any(lines):
            scaled = sizes[lines.index(True)]
        else:
            signs = powers = False
            scales = [1] * len(values)
        powers = not signs and scales != [1] * len(values)
        values = [[value / scale for value in table] for table, scale in zip(values, scales, strict=True)]
    if all(table == values[0] for table in values):
        owners = [0] * len(owners)
    found = [at for at, code in enumerate(codes) if code]
    different = {(places[at][0], owners[at], codes[at]) for at in found}
    summed = not signs and 2 * len(different) < len(found)
    applied = len(different) if summed else len(found)
    multiplied = 0 if signs or powers else applied
    shifts = applied if powers else 0
    return Counts(
        multiply_adds=outputs * (multiplied + scaled),
        skipped=outputs * (len(codes) - multiplied - scaled),
        adds=outputs * (shifts + (len(found) if signs or summed else 0)),
        look_ups=multiplied,
        shifts=outputs * shifts,
        activation_bytes=outputs * len(found) * itemsize,
    )
