"""Rounding a layer's weights so that its outputs, not its weights, stay near what they were."""

from __future__ import annotations

import numpy as np

from onnxcompress.schemes import Grid

_BLOCK = 128  # inputs whose error is carried on at once


def compensated(rows: np.ndarray, moments: np.ndarray, grid: Grid) -> np.ndarray:
    """Return `rows` [outputs, inputs, float] on `grid`, each input's error made up for by later inputs.

    `moments` [inputs, inputs] are the second moments of the inputs, positive definite. Inputs are rounded one
    after the other, those of most energy first; what that changes in the outputs is taken off as far as the
    inputs still to come are like it. Source: Frantar et al., GPTQ, ICLR 2023; Hassibi and Stork, Optimal
    Brain Surgeon, NIPS 1992.
    """
    order = np.argsort(-np.diagonal(moments), kind="stable")
    left = rows[:, order].astype(np.float64)
    inverse = np.linalg.inv(moments[np.ix_(order, order)])
    factor = np.linalg.cholesky((inverse + inverse.T) / 2).T  # upper; inverse = factor.T @ factor
    made = np.empty(left.shape, rows.dtype)
    for start in range(0, left.shape[1], _BLOCK):
        stop = min(start + _BLOCK, left.shape[1])
        errors = np.empty((len(left), stop - start))
        for place in range(start, stop):
            column = slice(place, place + 1)
            made[:, column] = grid(left[:, column].astype(rows.dtype))
            error = (left[:, column] - made[:, column]) / factor[place, place]
            errors[:, place - start] = error[:, 0]
            left[:, place + 1 : stop] -= error * factor[place, place + 1 : stop]
        left[:, stop:] -= errors @ factor[start:stop, stop:]
    result = np.empty_like(made)
    result[:, order] = made
    return result
