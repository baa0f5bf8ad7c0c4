"""Weights on ReRAM crossbars: how many arrays of cells they take, and how much of these they use.

A crossbar of R x C cells multiplies a vector on its rows with the matrix in its cells. A layer is a matrix of
one row for each weight that an output sums and one column for each output (for each group of a convolution),
as im2col lays it out; one weight takes ceil(bits of a weight / bits of a cell) cells beside one another.
Arrays hold rows and columns that are entirely zero only if nothing takes them out first, which is what
feature-map pruning is for. Sources: Shafiee et al., ISAAC, ISCA 2016, for arrays of 128 x 128 cells of two
bits; Yu et al., Antidote, DATE 2020, for area and power that fall with the arrays in use.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from onnxcompress.errors import UsageError

CELL_BITS = 2
WEIGHT_BITS = 16  # of a weight in floating point, as a crossbar stores it


class Crossbars(NamedTuple):
    """The crossbars of a layer: arrays, rows and columns of cells used, and the same without zero lines."""

    arrays: int
    rows: int
    columns: int
    kept_arrays: int
    kept_rows: int
    kept_columns: int


def array_size(text: str) -> tuple[int, int]:
    """Return the rows and columns of an array that `text` gives, such as "128x128"; UsageError for others."""
    rows, _, columns = text.partition("x")
    if not (rows.isdecimal() and columns.isdecimal() and int(rows) and int(columns)):
        raise UsageError(f"crossbar: {text!r} was given, expected rows and columns, such as 128x128")
    return int(rows), int(columns)


def crossbars(matrices: Iterable[np.ndarray], size: tuple[int, int], bits: int) -> Crossbars:
    """Return what `matrices` [sums, outputs], which lie on arrays of their own, take on crossbars of `size`.

    `bits` are those of a stored weight.
    """
    found = Crossbars(0, 0, 0, 0, 0, 0)
    cells = math.ceil(bits / CELL_BITS)
    for matrix in matrices:
        rows, columns = matrix.shape[0], matrix.shape[1] * cells
        kept = int((matrix != 0).any(axis=1).sum()), int((matrix != 0).any(axis=0).sum()) * cells
        each = Crossbars(_arrays((rows, columns), size), rows, columns, _arrays(kept, size), *kept)
        found = Crossbars(*(one + two for one, two in zip(found, each, strict=True)))
    return found


def _arrays(lines: tuple[int, int], size: tuple[int, int]) -> int:
    return math.prod(math.ceil(line / most) for line, most in zip(lines, size, strict=True))
