"""Arrays as formats list them: elements by position, by the number of their value, or both."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Tables:
    """Values by number: `values` [tables, kinds], of which channels of the array have one each, or share one.

    The array is seen as `grid` [a, b, c, d]: element (i, j, k, l) is in channel i * c + k, and the first
    `group` channels have the first table, the next ones the second. Without a grid, there is one table.
    """

    values: np.ndarray
    grid: tuple[int, int, int, int] | None = None
    group: int = 1

    def channels(self, positions: np.ndarray) -> np.ndarray:
        """Return the channels of the elements at `positions` [any shape] of the flat array."""
        _, b, c, d = self.grid or (1, 1, 1, 1)
        return np.asarray(positions // (b * c * d) * c + positions // d % c)

    def array(self, codes: np.ndarray) -> np.ndarray:
        """Return the values that `codes` [size] stand for."""
        if self.grid is None:
            return np.asarray(self.values[0][codes])
        a, _, c, _ = self.grid
        owners = (np.arange(a * c) // self.group).reshape(a, 1, c, 1)
        return np.asarray(self.values[owners, codes.reshape(self.grid)])


@dataclass(frozen=True, eq=False)
class Elements:
    """What is told of an array of `shape` before it is made.

    `values` [n] are the elements of the flat array at `positions` [n, integers], all others being the scalar
    `background`; or all elements in order, where there are no positions. Where there are `tables`, values and
    background are numbers in them.
    """

    shape: tuple[int, ...]
    values: np.ndarray
    positions: np.ndarray | None = None
    background: np.ndarray | None = None
    tables: Tables | None = None

    def looked_up(self) -> Elements | None:
        """Return listed elements by value; None where all are told, or values are those of channels."""
        if self.background is None or (self.tables is not None and self.tables.grid is not None):
            return None
        if self.tables is None:
            return self
        table = self.tables.values[0]
        return Elements(self.shape, table[self.values], self.positions, table[self.background])

    @property
    def listing(self) -> Elements:
        """The elements such that those that aren't listed are zero: all by number, where need be."""
        if self.tables is None or self.background is None or not self.tables.values[:, self.background].any():
            return self
        return Elements(self.shape, self._every(), tables=self.tables)

    def array(self) -> np.ndarray:
        """Return the array itself."""
        result = self._every()
        if self.tables is not None:
            result = self.tables.array(result)
        return result.reshape(self.shape)

    def _every(self) -> np.ndarray:
        """Return all elements in order, or their numbers [size]."""
        if self.positions is None:
            return self.values
        result = np.full(math.prod(self.shape), self.background)
        result[self.positions] = self.values
        return result
