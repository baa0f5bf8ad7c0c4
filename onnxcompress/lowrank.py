"""Weights as products of smaller ones, on arrays: truncated SVD, Tucker-2 and two kernels in place of one.

An error is measured where it is felt, in the outputs: ``trace(D G D.T)`` for the difference D of two weights
[outputs, inputs] and the second moments G [inputs, inputs] of what the layer reads. Without G the inputs
count as white, and the error is the sum of squares of D.
Sources: Denton et al., Exploiting Linear Structure Within Convolutional Networks, NIPS 2014 (truncated SVD,
weighted errors); Zhang et al., Accelerating Very Deep Convolutional Networks, TPAMI 2016 (the subspace of the
outputs on data); De Lathauwer et al., On the Best Rank-1 and Rank-(R1, ..., RN) Approximation, SIAM J. Matrix
Analysis 21(4), 2000 (orthogonal iteration for Tucker); Kim et al., Compression of Deep Convolutional Neural
Networks, ICLR 2016 (Tucker-2 of a convolution); Halko, Martinsson and Tropp, Finding Structure with
Randomness, SIAM Review 53(2), 2011 (leading eigenvectors from random ones).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

_DOUBLE = 1 << 24  # weights of more elements are multiplied in float32: half the memory and the time
_RIDGE = 1e-12  # added to a singular system, relative to its mean eigenvalue
_LARGE = 1024  # of so large a matrix the leading eigenvectors alone are found, where they are few
_POWERS = 8  # how often it is applied to them
_ROUNDS = 4  # of orthogonal iteration; it starts near its end
_ALTERNATIONS = 8  # least-squares steps for either of two kernels


class Pair(NamedTuple):
    """A matrix [outputs, inputs] as ``outer @ inner``."""

    outer: np.ndarray
    inner: np.ndarray


@dataclass(frozen=True)
class Components:
    """The parts of rank one that a matrix [outputs, inputs] is the sum of, the one that tells most first.

    `energies` [parts, float64] are their squared singular values, as far as they were asked for; `whole` is
    the sum of all. `basis` [outputs or inputs, parts] holds singular vectors of the smaller side. `shaped` is
    the matrix, times `root` where inputs have second moments ``root @ root.T``.
    """

    energies: np.ndarray
    whole: float
    basis: np.ndarray
    shaped: np.ndarray
    root: np.ndarray | None
    by_inputs: bool

    def pair(self, rank: int) -> Pair:
        """Return the matrix of `rank` that is nearest, both factors of like size: [.., rank], [rank, ..]."""
        basis = self.basis[:, :rank].astype(self.shaped.dtype, copy=False)
        if not self.by_inputs:
            return balanced(basis, basis.T @ self.shaped)
        inner = basis.T if self.root is None else np.linalg.solve(self.root.T, basis).T
        return balanced(self.shaped @ basis, inner)


def components(
    matrix: np.ndarray,
    gram: np.ndarray | None = None,
    covariance: np.ndarray | None = None,
    *,
    count: int | None = None,
) -> Components:
    """Return the parts of `matrix` [outputs, inputs], by which the error in the outputs is least.

    `gram` [inputs, inputs] are the inputs' second moments, positive definite; `covariance`
    [outputs, outputs], the outputs', does instead of them. `count` parts are needed, or all. The eigenvectors
    come from the smaller of the two Gram matrices: singular values under 1e-8 of the largest (3e-4 for
    matrices of more than 2**24 elements) are noise.
    """
    matrix = working(matrix)
    by_inputs = covariance is None and matrix.shape[0] > matrix.shape[1]
    root = shaped = None
    if by_inputs and gram is not None:
        root = np.linalg.cholesky(gram).astype(matrix.dtype)
        shaped = matrix @ root
    shaped = matrix if shaped is None else shaped
    if by_inputs:
        covariance = shaped.T @ shaped
    elif covariance is None:
        covariance = (shaped if gram is None else shaped @ gram.astype(matrix.dtype, copy=False)) @ shaped.T
    whole = float(np.trace(covariance, dtype=np.float64))
    if count is not None and len(covariance) >= _LARGE and 4 * count <= len(covariance):
        energies, basis = leading(covariance, count)
    else:
        energies, basis = eigenvectors(covariance)
    return Components(energies, whole, basis, shaped, root, by_inputs)


def eigenvectors(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return eigenvalues [n, never negative] and vectors [.., n, n] of `covariance`, largest first."""
    values, vectors = np.linalg.eigh(covariance.astype(np.float64, copy=False))
    return np.maximum(values[..., ::-1], 0), vectors[..., ::-1]


def leading(covariance: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the `count` largest eigenvalues of `covariance` [n, n] and their vectors [n, count], or nearly.

    They span nearly the best subspace. Of white noise, whose spectrum is the flattest, it holds a fortieth
    less than the best would, of a matrix with eigenvalues as 1 / i 4e-5 less, with 1 / i**2 1e-8.
    """
    draw = np.random.default_rng(0)
    span = draw.standard_normal((len(covariance), count + count // 4 + 16)).astype(covariance.dtype)
    for _ in range(_POWERS):
        span = np.linalg.qr(covariance @ span)[0]
    values, turn = eigenvectors(span.T @ (covariance @ span))
    return values[:count], (span @ turn.astype(span.dtype))[:, :count]


def working(weight: np.ndarray) -> np.ndarray:
    """Return `weight` [any shape, float] in the precision to calculate in."""
    return weight.astype(np.float64 if weight.size <= _DOUBLE else np.float32, copy=False)


def balanced(outer: np.ndarray, inner: np.ndarray) -> Pair:
    """Return factors of the same product in which each column of `outer` is as long as its row of `inner`."""
    lengths = np.linalg.norm(outer, axis=0), np.linalg.norm(inner, axis=1)
    fit = (lengths[0] > 0) & (lengths[1] > 0)
    scale = np.sqrt(np.divide(lengths[1], lengths[0], out=np.ones_like(lengths[0]), where=fit))
    return Pair(outer * scale, inner / scale[:, None])


def kept(weight: np.ndarray, other: np.ndarray, gram: np.ndarray | None = None) -> float:
    """Return the share of the outputs' energy that `other` keeps in place of `weight` [outputs, inputs]."""
    whole = energy(weight, gram)
    return 1 - energy(weight - other, gram) / whole if whole > 0 else 1.0


def energy(weight: np.ndarray, gram: np.ndarray | None = None) -> float:
    """Return the mean square of what `weight` [outputs, inputs] makes of its inputs, summed over outputs."""
    return float(np.vdot(weight, weight if gram is None else weight @ gram))


def regress(weight: np.ndarray, inner: np.ndarray, gram: np.ndarray | None = None) -> np.ndarray:
    """Return `outer` [outputs, parts] with which ``outer @ inner`` comes nearest to `weight`.

    `inner` is [parts, inputs]; it may be singular.
    """
    felt = inner if gram is None else inner @ gram
    system = felt @ inner.T
    system += _RIDGE * np.trace(system) / len(system) * np.eye(len(system))
    if not system.any():
        return np.zeros((len(weight), len(inner)))
    return np.linalg.solve(system, felt @ weight.T).T


def tucker(weight: np.ndarray, ranks: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return first [r, inputs], core [s, r, places] and last [outputs, s] of `weight`.

    It is [outputs, inputs, places], and nearly ``last @ core @ first``; `ranks` are r and s. The rows of
    `first` and the columns of `last` are orthonormal.
    """
    first = eigenvectors(np.einsum("ocp,odp->cd", weight, weight, optimize=True))[1][:, : ranks[0]]
    for _ in range(_ROUNDS):
        seen = np.einsum("ocp,cr->orp", weight, first, optimize=True).reshape(len(weight), -1)
        last = eigenvectors(seen @ seen.T)[1][:, : ranks[1]]
        seen = np.einsum("ocp,os->csp", weight, last, optimize=True).reshape(weight.shape[1], -1)
        first = eigenvectors(seen @ seen.T)[1][:, : ranks[0]]
    core = np.einsum("ocp,os,cr->srp", weight, last, first, optimize=True)
    return first.T, core, last


def two_kernels(weight: np.ndarray, middle: int) -> tuple[np.ndarray, np.ndarray]:
    """Return two kernels that, one after the other, come near to one of 5 in each of its axes.

    Weight is [outputs, inputs, 5, ...]; the kernels [middle, inputs, 3, ...] and [outputs, middle, 3, ...].
    They start at the truncated SVD of the weight spread evenly over all pairs of places that lead to one of
    its places, which is exact where `middle` is large enough; then either is fitted by least squares in turn.
    """
    outputs, inputs, spatial = *weight.shape[:2], weight.shape[2:]
    places = _sums(len(spatial))
    flat = weight.reshape(outputs, inputs, -1)
    spread = (flat / np.bincount(places.reshape(-1)))[:, :, places]  # [outputs, inputs, second, first]
    width = len(places)
    pairs = spread.transpose(0, 2, 1, 3).reshape(outputs * width, inputs * width)
    outer, inner = components(pairs).pair(middle)
    first = inner.reshape(-1, inputs, width)
    last = outer.reshape(outputs, width, -1).transpose(0, 2, 1)
    forth, back = flat.reshape(outputs, -1), flat.swapaxes(0, 1).reshape(inputs, -1)
    for _ in range(_ALTERNATIONS):
        last = regress(forth, shifted(first)).reshape(last.shape)
        first = regress(back, shifted(last.swapaxes(0, 1))).reshape(inputs, -1, width).swapaxes(0, 1)
    kernel = (3,) * len(spatial)
    return first.reshape(-1, inputs, *kernel), last.reshape(outputs, -1, *kernel)


def shifted(kernels: np.ndarray) -> np.ndarray:
    """Return `kernels` [middle, channels, 3 ** axes] at all places in a window of 5, as a matrix.

    It is [middle * 3 ** axes, channels * 5 ** axes]: what a second kernel of 3 combines linearly.
    """
    middle, channels, width = kernels.shape
    places = _sums(round(np.log(width) / np.log(3)))
    result = np.zeros((middle, width, channels, int(places.max()) + 1))
    for second, reached in enumerate(places):
        result[:, second, :, reached] = np.moveaxis(kernels, 2, 0)
    return result.reshape(middle * width, -1)


def _sums(axes: int) -> np.ndarray:
    """Return [second, first]: the place in a window of 5 that places in two windows of 3 lead to."""
    places = np.indices((3,) * axes).reshape(axes, -1)
    sums: np.ndarray = np.ravel_multi_index(tuple(places[:, :, None] + places[:, None, :]), (5,) * axes)
    return sums
