"""Whole numbers near wanted ones that solve linear equations: how many channels each group loses."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import combinations
from math import gcd, lcm

import numpy as np


def basis(equations: np.ndarray) -> np.ndarray:
    """Return integer vectors [vectors, n] that span the solutions x of ``equations @ x = 0`` [m, n, int].

    Gauss-Jordan elimination with fractions; the last unknowns are left free.
    """
    rows = [[Fraction(int(each)) for each in row] for row in np.unique(equations, axis=0)]
    count = equations.shape[1]
    pivots: list[int] = []
    for column in range(count):
        depth = len(pivots)
        found = next((row for row in range(depth, len(rows)) if rows[row][column]), None)
        if found is None:
            continue
        rows[depth], rows[found] = rows[found], rows[depth]
        lead = rows[depth][column]
        rows[depth] = [each / lead for each in rows[depth]]
        for row in range(len(rows)):
            if row != depth and rows[row][column]:
                times = rows[row][column]
                rows[row] = [a - times * b for a, b in zip(rows[row], rows[depth], strict=True)]
        pivots.append(column)
    vectors = []
    for free in (column for column in range(count) if column not in pivots):
        vector = [Fraction(0)] * count
        vector[free] = Fraction(1)
        for row, column in enumerate(pivots):
            vector[column] = -rows[row][free]
        scale = lcm(*(each.denominator for each in vector))
        whole = [int(each * scale) for each in vector]
        shared = gcd(*whole)
        vectors.append([each // shared for each in whole])
    return np.array(vectors, np.int64).reshape(-1, count)


def balancer(equations: np.ndarray, most: np.ndarray) -> Callable[[np.ndarray], np.ndarray | None]:
    """Return the function from wanted numbers [n, float] to integers x [n] near them that solve equations.

    That is ``equations @ x = 0`` and 0 <= x <= `most` [n]. It starts from the nearest combination of the
    basis and takes the steps that lessen what is out of bounds, then the distance; None where that ends out
    of bounds.
    """
    order = np.argsort(-most, kind="stable")  # the smallest groups are left free: they bear least rounding
    vectors = basis(equations[:, order])[:, np.argsort(order, kind="stable")]
    pairs = list(combinations(vectors, 2))
    steps = [*vectors, *(a + b for a, b in pairs), *(a - b for a, b in pairs)]
    moves = np.array([*steps, *(-each for each in steps)])

    def balanced(wanted: np.ndarray) -> np.ndarray | None:
        if not len(vectors):
            return np.zeros(len(most), np.int64)
        weights, *_ = np.linalg.lstsq(vectors.T.astype(np.float64), wanted, rcond=None)
        found = np.rint(weights).astype(np.int64) @ vectors
        score = _distance(found[None], wanted, most)[0]
        for _ in range(20 * len(most) + 100):
            scores = _distance(found + moves, wanted, most)
            best = int(np.argmin(scores))
            if scores[best] >= score:
                break
            found, score = found + moves[best], scores[best]
        return found if ((found >= 0) & (found <= most)).all() else None

    return balanced


def _distance(found: np.ndarray, wanted: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Return for each row of `found` how far it is off: out of bounds first, then from `wanted`."""
    out = np.maximum(-found, 0) + np.maximum(found - most, 0)
    away = (found - wanted) ** 2 / np.maximum(wanted, 1)
    return np.asarray(1e6 * out.sum(axis=1) + away.sum(axis=1))
