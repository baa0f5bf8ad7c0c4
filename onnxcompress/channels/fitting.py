"""Weights fitted by ridge regression, group by group, so that outputs come near what is wanted of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# How strongly a fit holds on to the weights there are, relative to the inputs' mean square, with as many
# equations as unknowns; with more equations it does so less.
RIDGE = 0.04
ROUNDS = 2  # of a fit before a Relu
CHUNK = 1 << 20  # numbers whose products are summed up in float32


@dataclass(frozen=True)
class Weights:
    """Weights [groups, outputs of a group, inputs of a group] and biases [outputs], float64."""

    matrix: np.ndarray
    bias: np.ndarray

    def apply(self, inputs: np.ndarray) -> np.ndarray:
        """Return the outputs [m, outputs] for `inputs` [groups, m, inputs of a group], float32."""
        found = inputs @ self.matrix.astype(np.float32).swapaxes(1, 2)
        return np.moveaxis(found, 0, 1).reshape(inputs.shape[1], -1) + self.bias.astype(np.float32)

    def plus(self, other: Weights) -> Weights:
        """Return the sum of both."""
        return Weights(self.matrix + other.matrix, self.bias + other.bias)


@dataclass(frozen=True)
class Wanted:
    """What outputs are to be, [m, outputs] float32, once times `scale` [outputs] and with `shift` added.

    `shift` is [m or 1, outputs]. Where they are `rectified` afterwards, negative ones are all the same.
    """

    values: np.ndarray
    scale: np.ndarray
    shift: np.ndarray
    rectified: bool = False

    def missing(self, found: np.ndarray, rectified: bool = False) -> np.ndarray:
        """Return what to add to the outputs `found` [m, outputs]; none where the scale is zero."""
        scale = np.where(self.scale == 0, 1, self.scale).astype(np.float32)
        now = found * scale + self.shift
        values = np.where(self.values > 0, self.values, np.minimum(now, 0)) if rectified else self.values
        return np.where(self.scale == 0, np.float32(0), (values - now) / scale)


def fit(weights: Weights, inputs: np.ndarray, wanted: Wanted, biased: bool) -> Weights:
    """Return `weights` changed so that on `inputs` [groups, m, n], float32, they yield what is `wanted`.

    Of changes that do as well the smallest is taken (ridge regression); biases change where `biased`. Before
    a Relu the outputs that are to be negative are left alone where they are. Source: He et al., Channel
    Pruning, ICCV 2017; Zhang et al., Accelerating Very Deep Convolutional Networks, PAMI 2016.
    """
    solver = _Solver(inputs, biased)
    for turn in range(1 + ROUNDS * wanted.rectified):
        missing = wanted.missing(weights.apply(inputs), rectified=turn > 0)
        weights = weights.plus(solver.change(missing))
    return weights


def recentre(weights: Weights, inputs: np.ndarray, wanted: Wanted) -> Weights:
    """Return `weights` with biases that give the outputs on `inputs` [groups, m, n] the mean `wanted`."""
    missing = wanted.missing(weights.apply(inputs)).mean(axis=0, dtype=np.float64)
    return Weights(weights.matrix, weights.bias + missing)


class _Solver:
    """Ridge regression on `inputs` [groups, m, n], less their mean where a bias takes that over.

    Products are summed up in float32, those of CHUNK numbers at a time, and their sums in float64.
    """

    def __init__(self, inputs: np.ndarray, biased: bool) -> None:
        groups, m, n = inputs.shape
        self.inputs, self.biased, self.wide = inputs, biased, n > m
        self.mean = (
            inputs.mean(axis=1, keepdims=True, dtype=np.float64) if biased else np.zeros((groups, 1, n))
        )
        mean = self.mean.astype(np.float32)
        products = np.zeros((groups, min(m, n), min(m, n)))
        step = max(CHUNK // (groups * min(m, n)), 1)
        for start in range(0, max(m, n), step):
            part = slice(start, start + step)
            if self.wide:
                seen = inputs[:, :, part] - mean[:, :, part]
                products += seen @ seen.swapaxes(1, 2)
            else:
                seen = inputs[:, part] - mean
                products += seen.swapaxes(1, 2) @ seen
        places = np.arange(min(m, n))
        power = products[:, places, places].sum(axis=1) / n
        products[:, places, places] += np.maximum(RIDGE * n / m * power, 1e-12)[:, None]
        self.inverse = np.linalg.inv(products)

    def change(self, missing: np.ndarray) -> Weights:
        """Return what to add to weights so that outputs grow by about `missing` [m, outputs]."""
        bias = missing.mean(axis=0, dtype=np.float64) if self.biased else np.zeros(missing.shape[1])
        missing = missing - bias.astype(np.float32)
        parts = np.moveaxis(missing.reshape(len(missing), len(self.inputs), -1), 1, 0)
        solved = self.inverse @ (parts if self.wide else self._turned(parts))
        matrix = self._turned(solved) if self.wide else solved
        return Weights(matrix.swapaxes(1, 2), bias - (self.mean @ matrix).reshape(-1))

    def _turned(self, parts: np.ndarray) -> np.ndarray:
        """Return the inputs, less their mean, times `parts` [groups, m, outputs of a group]."""
        whole = self.inputs.swapaxes(1, 2) @ parts.astype(np.float32, copy=False)
        return np.asarray(
            whole - self.mean.swapaxes(1, 2) @ parts.sum(axis=1, keepdims=True, dtype=np.float64)
        )
