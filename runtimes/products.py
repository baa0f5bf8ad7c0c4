"""Products of activations with weights as they are stored: what is zero is passed over, the rest never dense.

A weight is one matrix here, and its elements are taken some rows at a time. How they act on activations is
read from their values:

* **values** of their own, or looked up in a table: each multiplies an activation;
* where few values occur often in a row, activations are **summed by value**, and each sum is multiplied once.
  That is done where sums and products together are fewer, a multiply-add counting as two operations;
* **signs**: values of one magnitude add or subtract activations, and each row's sum is multiplied once; where
  the magnitude differs from column to column, the activations are, before;
* **powers of two**, or of one mantissa, which is then treated as a magnitude: exponents are shifted.

All is added up in float64. Sources: Han et al., EIE, ISCA 2016; Li and Liu, Ternary Weight Networks, 2016;
Miyashita et al., Convolutional Neural Networks using Logarithmic Data Representation, 2016.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from onnxcompress.formats.elements import Elements, Tables
from onnxcompress.runtimes.counts import Counts

LIMIT = 2**18  # activations, and elements of a weight, that are held at a time


class Matrix(NamedTuple):
    """How an operator reads a flat weight: as one matrix that is zero outside of `blocks` on its diagonal.

    Each block has `rows` and `columns` and is stored row by row or, where `turned`, column by column.
    """

    blocks: int
    rows: int
    columns: int
    turned: bool = False

    @property
    def size(self) -> int:
        """How many elements the weight has."""
        return math.prod(self[:3])

    def places(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows and columns, in the whole matrix, of elements at `positions` [any shape]."""
        block, inner = np.divmod(positions, self.rows * self.columns)
        row, column = np.divmod(inner, self.rows if self.turned else self.columns)
        row, column = (column, row) if self.turned else (row, column)
        return block * self.rows + row, block * self.columns + column

    def positions(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Return the positions of elements in `rows` and `columns` of the whole matrix."""
        block, row = np.divmod(rows, self.rows)
        column = columns % self.columns
        inner = column * self.rows + row if self.turned else row * self.columns + column
        return np.asarray(block * (self.rows * self.columns) + inner)


class _Entries(NamedTuple):
    """Elements of some whole rows, row by row: where they are, and their values or numbers in the table."""

    rows: np.ndarray
    columns: np.ndarray
    kinds: np.ndarray


class Product:
    """A weight as the `matrix` that activations are multiplied by; its `elements` are finite numbers."""

    def __init__(self, elements: Elements, matrix: Matrix) -> None:
        self.matrix = matrix
        self._tables = elements.tables
        self._values: np.ndarray | None = None  # of all tables, one after the other
        self._row_scale: np.ndarray | None = None
        self._column_scale: np.ndarray | None = None
        self._signs = self._powers = self._summed = False
        if elements.tables is not None:
            self._tables = self._scaled(elements.tables)
            self._values = self._tables.values.reshape(-1)
        self._stored = _Listed(self, elements) if elements.positions is not None else _Whole(self, elements)
        self._count = distinct = 0
        for entries in self._stored.some(LIMIT):
            self._count += entries.rows.size
            if self._values is not None and not self._signs:
                distinct += np.unique(self._key(entries)).size
        self._summed = self._values is not None and not self._signs and 2 * distinct < self._count
        self._applied = distinct if self._summed else self._count

    def __call__(self, x: np.ndarray, depth: int = 1) -> np.ndarray:
        """Return the product with `x`, float64 [the matrix's columns in `depth` axes, *outputs].

        The result is float64 [the matrix's rows, *outputs].
        """
        outputs = x.shape[depth:]
        y = np.zeros((self.matrix.blocks * self.matrix.rows, *outputs))
        if self._column_scale is not None:
            x = x * self._column_scale.reshape(*x.shape[:depth], *[1] * len(outputs))
        inner = math.prod(outputs[1:])
        step = max(1, LIMIT // max(self._stored.longest * inner, 1))
        for at in range(0, outputs[0] if inner else 0, step):
            part = x[(slice(None),) * depth + (slice(at, at + step),)]
            self._add(part, depth, y[:, at : at + step])
        return y if self._row_scale is None else y * self._row_scale.reshape(-1, *[1] * len(outputs))

    def counts(self, outputs: int, itemsize: int) -> Counts:
        """Return what it takes to apply each element to `outputs` activations, of `itemsize` bytes.

        The bytes of the weight are left out.
        """
        scaled = [each.size for each in (self._row_scale, self._column_scale) if each is not None]
        multiplied = 0 if self._signs or self._powers else self._applied
        shifts = self._applied if self._powers else 0
        adds = (self._count if self._summed or self._signs else 0) + shifts
        done = outputs * (multiplied + sum(scaled))
        return Counts(
            multiply_adds=done,
            skipped=outputs * self.matrix.size - done,
            adds=outputs * adds,
            look_ups=self._applied if self._values is not None and multiplied else 0,
            shifts=outputs * shifts,
            activation_bytes=outputs * self._count * itemsize,
        )

    def kinds(self, rows: np.ndarray, columns: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Return the places in the tables of the elements in `rows` and `columns`, numbered by `codes`."""
        if self._tables is None or len(self._tables.values) == 1:
            return codes
        owners = self._tables.channels(self.matrix.positions(rows, columns)) // self._tables.group
        return np.asarray(owners * self._tables.values.shape[1] + codes)

    def values(self, kinds: np.ndarray) -> np.ndarray:
        """Return the values of elements [as kinds, float64]."""
        found: np.ndarray = kinds.astype(np.float64) if self._values is None else self._values[kinds]
        return found

    def _scaled(self, tables: Tables) -> Tables:
        """Return `tables` as float64, or what is left of them where rows or columns are scaled."""
        tables = _merged(tables.values.astype(np.float64), tables)
        values = tables.values
        used = values != 0
        mantissas, exponents = np.frexp(np.abs(values))
        mantissa = mantissas.max(1, initial=0)
        if (used & (mantissas != mantissa[:, None])).any():
            return tables
        least = exponents.min(1, where=used, initial=np.iinfo(np.int32).max)
        most = exponents.max(1, where=used, initial=np.iinfo(np.int32).min)
        signs = bool((least >= most).all())
        if not signs and (mantissas[used] == 0.5).all():
            self._powers = True
            return tables
        scale = np.abs(values).max(1, initial=0) if signs else mantissa
        scale = np.where(scale, scale, 1)
        if not self._scale(scale, tables):
            return tables
        self._signs, self._powers = signs, not signs
        return _merged(values / scale[:, None], tables)

    def _scale(self, scale: np.ndarray, tables: Tables) -> bool:
        """Scale rows or columns by the `scale` of their tables; False where tables are no rows or columns."""
        blocks, height, width, _ = self.matrix
        rows, columns = np.arange(blocks * height), np.arange(blocks * width)
        if (scale == scale[0]).all():
            self._row_scale = None if scale[0] == 1 else np.full(rows.size, scale[0])
            return True
        if not self._nested(tables):
            return False
        positions = self.matrix.positions(rows, rows // height * width)
        if width > 1 and not np.ptp(tables.channels(self.matrix.positions(rows[:1], columns[:width]))):
            self._row_scale = scale[tables.channels(positions) // tables.group]
            return True
        if height > 1 and not np.ptp(tables.channels(positions[:height])):
            positions = self.matrix.positions(columns // width * height, columns)
            self._column_scale = scale[tables.channels(positions) // tables.group]
            return True
        return False

    def _nested(self, tables: Tables) -> bool:
        """Return whether the axes of the matrix, and those of channels, are axes of one array, or several."""
        line = self.matrix.rows if self.matrix.turned else self.matrix.columns
        _, b, c, d = tables.grid or (1, 1, 1, 1)
        steps = sorted({line, self.matrix.rows * self.matrix.columns, d, c * d, b * c * d})
        return all(large % small == 0 for small, large in pairwise(steps))

    def _key(self, entries: _Entries) -> np.ndarray:
        """Return a number for each row and value of `entries` that orders them by row."""
        assert self._values is not None
        return np.asarray(entries.rows.astype(np.int64) * self._values.size + entries.kinds)

    def _add(self, x: np.ndarray, depth: int, y: np.ndarray) -> None:
        """Add to `y` the products with `x`, but for the scale of rows."""
        for entries in self._stored.some(max(1, LIMIT // max(math.prod(x.shape[depth:]), 1))):
            firsts = None
            if self._summed:
                key = self._key(entries)
                order = np.argsort(key, kind="stable")
                entries = _Entries(*(each[order] for each in entries))
                firsts = _firsts(key[order])
            picked = x[np.unravel_index(entries.columns, x.shape[:depth])].reshape(entries.columns.size, -1)
            rows, kinds = entries.rows, entries.kinds
            if firsts is not None:
                picked, rows, kinds = np.add.reduceat(picked, firsts), rows[firsts], kinds[firsts]
            firsts = _firsts(rows)
            y[rows[firsts]] += np.add.reduceat(self._apply(picked, kinds), firsts).reshape(-1, *y.shape[1:])

    def _apply(self, picked: np.ndarray, kinds: np.ndarray) -> np.ndarray:
        """Return activations or sums of them [n, outputs], multiplied by their values, shifted or signed."""
        values = self.values(kinds)
        if not self._signs and not self._powers:
            picked *= values[:, None]
            return picked
        negative = values < 0
        picked[negative] = -picked[negative]
        if self._powers:
            np.ldexp(picked, np.frexp(values)[1][:, None] - 1, out=picked)
        return picked


class _Listed:
    """Elements told by their positions; rows and columns are made of these when they are needed."""

    def __init__(self, product: Product, elements: Elements) -> None:
        assert elements.positions is not None
        self._product = product
        positions, codes = elements.positions.astype(np.int32, copy=False), elements.values
        if (positions[1:] <= positions[:-1]).any():  # of an element that is told twice, the last one counts
            positions, order = np.unique(positions[::-1], return_index=True)
            codes = codes[::-1][order]
        kept = np.empty(positions.size, bool)
        rows = np.empty(positions.size, np.int32)
        for start in range(0, positions.size, LIMIT):
            part = slice(start, start + LIMIT)
            entries = self._at(positions[part], codes[part])
            kept[part], rows[part] = product.values(entries.kinds) != 0, entries.rows
        if not kept.all():
            positions, codes, rows = positions[kept], codes[kept], rows[kept]
        lengths = np.bincount(rows)
        self._ends = np.cumsum(lengths[lengths > 0])  # of rows that have elements
        self.longest = int(lengths.max(initial=0))
        if product.matrix.turned:
            order = np.argsort(rows, kind="stable")
            positions, codes = positions[order], codes[order]
        self._positions, self._codes = positions, codes

    def some(self, most: int) -> Iterator[_Entries]:
        """Yield the elements, whole rows and about `most` at a time."""
        start = row = 0
        while start < self._positions.size:
            row = max(row, int(np.searchsorted(self._ends, start + most, side="right")) - 1)
            end = int(self._ends[row])
            yield self._at(self._positions[start:end], self._codes[start:end])
            start, row = end, row + 1

    def _at(self, positions: np.ndarray, codes: np.ndarray) -> _Entries:
        """Return elements by row and column."""
        rows, columns = self._product.matrix.places(positions)
        return _Entries(rows, columns, self._product.kinds(rows, columns, codes))


class _Whole:
    """Elements of which all are told, in order."""

    def __init__(self, product: Product, elements: Elements) -> None:
        self._product = product
        blocks, rows, columns, turned = product.matrix
        codes = elements.values.reshape(-1)
        if turned:
            codes = np.ascontiguousarray(codes.reshape(blocks, columns, rows).swapaxes(1, 2)).reshape(-1)
        self._codes = codes.reshape(blocks * rows, columns)
        self.longest = columns

    def some(self, most: int) -> Iterator[_Entries]:
        """Yield the elements that aren't zero, whole rows and about `most` at a time."""
        _, height, width, _ = self._product.matrix
        many = max(1, most // width)
        for start in range(0, len(self._codes), many):
            codes = self._codes[start : start + many]
            rows = np.broadcast_to(np.arange(start, start + len(codes))[:, None], codes.shape)
            columns = rows // height * width + np.arange(width)
            kinds = self._product.kinds(rows, columns, codes)
            kept = self._product.values(kinds) != 0
            if kept.any():
                yield _Entries(rows[kept], columns[kept], kinds[kept])


def _merged(values: np.ndarray, tables: Tables) -> Tables:
    """Return `tables` with other `values`; one, where all are the same."""
    return Tables(values[:1]) if (values == values[0]).all() else Tables(values, tables.grid, tables.group)


def _firsts(sorted_: np.ndarray) -> np.ndarray:
    """Return where a new number begins in `sorted_` [n]."""
    return np.flatnonzero(np.append(True, sorted_[1:] != sorted_[:-1])[: sorted_.size])
