"""Ways to write a weight [outputs, inputs, *kernel] as a chain of smaller ones, of any rank.

Each is a :class:`Method`: what ranks it can have, what the kernels of the chain then are, and how much of the
outputs' energy they keep. What comes before the last kernel is chosen by a decomposition; the last one, where
the inputs' second moments are known, is the best there is for them.
Sources: those of lowrank.py; Jaderberg et al., Speeding up Convolutional Neural Networks with Low Rank
Expansions, BMVC 2014 (separable kernels); Guo et al., Network Decoupling, BMVC 2018 (depthwise, then
pointwise).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar, NamedTuple

import numpy as np

from onnxcompress.lowrank import (
    Components,
    components,
    eigenvectors,
    kept,
    regress,
    shifted,
    tucker,
    two_kernels,
    working,
)

Ranks = tuple[int, ...]
Shape = tuple[int, ...]


class Parts(NamedTuple):
    """A weight as ``outer @ inner`` [outputs, inputs * kernel], and the kernels that make `inner`."""

    before: list[np.ndarray]
    inner: np.ndarray
    outer: np.ndarray


class Method:
    """One way to factorise `weight` [outputs, inputs, *kernel]; `gram` are second moments of its windows.

    `gram` [inputs * kernel, inputs * kernel] is positive definite, or None: windows count as white.
    `covariance` [outputs, outputs], the second moments of what the layer makes, is all that can be had where
    windows are too wide.
    """

    name: ClassVar[str]

    def __init__(
        self, weight: np.ndarray, gram: np.ndarray | None = None, covariance: np.ndarray | None = None
    ) -> None:
        self.weight = working(weight)
        self.gram = gram
        self.covariance = covariance
        self.matrix = self.weight.reshape(len(weight), -1)
        self.kernel = weight.shape[2:]

    @classmethod
    def fits(cls, shape: Shape) -> bool:
        """Return whether a weight of `shape` can be factorised this way."""
        raise NotImplementedError

    @cached_property
    def ladder(self) -> Sequence[Ranks]:
        """The ranks there are to choose from, each dearer than the one before; the last ones are exact."""
        raise NotImplementedError

    def shapes(self, ranks: Ranks) -> list[Shape]:
        """Return the shapes [outputs, inputs / groups, *kernel] of the kernels in the order they run."""
        raise NotImplementedError

    def parts(self, ranks: Ranks) -> Parts:
        """Return what the decomposition of `ranks` yields."""
        raise NotImplementedError

    def kernels(self, ranks: Ranks) -> tuple[list[np.ndarray], np.ndarray]:
        """Return the kernels in the order they run, and the weight [outputs, inputs * kernel] they make."""
        before, inner, outer = self.parts(ranks)
        if self.gram is not None:
            outer = regress(self.matrix, inner, self.gram)
        return [*before, outer.reshape(self.shapes(ranks)[-1])], outer @ inner

    def kept(self, ranks: Ranks) -> float:
        """Return the share of the outputs' energy that kernels of `ranks` keep."""
        return kept(self.matrix, self.kernels(ranks)[1], self.gram)

    def _marginal(self, axis: int) -> np.ndarray | None:
        """Return second moments of the inputs, averaged over all axes of a window but itself and `axis`.

        Axis 0 are the channels alone: [inputs, inputs]; another is a spatial one, counted from 1.
        """
        if self.gram is None:
            return None
        window = (self.weight.shape[1], *self.kernel)
        moved = self.gram.reshape(window * 2)
        keep = {0, axis}
        letters = [chr(97 + place) for place in range(len(window))]
        second = [each.upper() if place in keep else each for place, each in enumerate(letters)]
        wanted = [each for place, each in enumerate(letters) if place in keep]
        formula = f"{''.join(letters + second)}->{''.join(wanted + [each.upper() for each in wanted])}"
        size = math.prod(window[place] for place in keep)
        mean: np.ndarray = np.einsum(formula, moved).reshape(size, size) * (size / math.prod(window))
        return mean


class Svd(Method):
    """The whole kernel with few outputs, then 1 x 1: the truncated SVD of a matrix, weighted by the data."""

    name = "svd"

    @classmethod
    def fits(cls, shape: Shape) -> bool:
        """Return True: every weight is a matrix, too."""
        return True

    _found: Components | None = None

    def _components(self, rank: int) -> Components:
        """Return at least the first `rank` parts of the matrix."""
        if self._found is None or len(self._found.energies) < rank:
            self._found = components(self.matrix, self.gram, self.covariance, count=rank)
        return self._found

    @cached_property
    def ladder(self) -> Sequence[Ranks]:
        """Ranks from 1 to the smaller side of the matrix."""
        return [(rank,) for rank in range(1, min(self.matrix.shape) + 1)]

    def shapes(self, ranks: Ranks) -> list[Shape]:
        """Return the shapes of the two kernels."""
        outputs, *inputs = self.weight.shape
        return [(*ranks, *inputs), (outputs, *ranks, *[1] * len(self.kernel))]

    def kernels(self, ranks: Ranks) -> tuple[list[np.ndarray], np.ndarray]:
        """Return both kernels and their product; nothing is left to fit."""
        outer, inner = self._components(*ranks).pair(*ranks)
        factors = (inner, outer)
        return [each.reshape(shape) for each, shape in zip(factors, self.shapes(ranks), strict=True)], (
            outer @ inner
        )

    def kept(self, ranks: Ranks) -> float:
        """Return the share of the squared singular values."""
        found = self._components(*ranks)
        return float(found.energies[: ranks[0]].sum()) / found.whole if found.whole > 0 else 1.0


class Separable(Method):
    """k x 1, then 1 x k, `rank` maps between them."""

    name = "separable"

    @classmethod
    def fits(cls, shape: Shape) -> bool:
        """Return whether the kernel has two axes of more than one place."""
        return len(shape) == 4 and min(shape[2:]) > 1

    @cached_property
    def _components(self) -> Components:
        outputs, inputs, height, width = self.weight.shape
        turned = self.weight.transpose(0, 3, 1, 2).reshape(outputs * width, inputs * height)
        return components(turned, self._marginal(1))

    @cached_property
    def ladder(self) -> Sequence[Ranks]:
        """Ranks from 1 to the smaller side of [outputs * width, inputs * height]."""
        outputs, inputs, height, width = self.weight.shape
        return [(rank,) for rank in range(1, min(outputs * width, inputs * height) + 1)]

    def shapes(self, ranks: Ranks) -> list[Shape]:
        """Return the shapes of the vertical and the horizontal kernel."""
        outputs, inputs, height, width = self.weight.shape
        return [(*ranks, inputs, height, 1), (outputs, *ranks, 1, width)]

    def parts(self, ranks: Ranks) -> Parts:
        """Return the SVD of the weight as [outputs * width, inputs * height]."""
        (rank,), (outputs, _, _, width) = ranks, self.weight.shape
        outer, inner = self._components.pair(rank)
        first = inner.reshape(self.shapes(ranks)[0])
        seen = np.einsum("rchi,xw->rxchw", first, np.eye(width)).reshape(rank * width, -1)
        last = outer.reshape(outputs, width, rank).swapaxes(1, 2).reshape(outputs, -1)
        return Parts([first], seen, last)


class Tucker(Method):
    """1 x 1, k x k between few maps, 1 x 1; ranks are those of the inputs and of the outputs."""

    name = "tucker"

    @classmethod
    def fits(cls, shape: Shape) -> bool:
        """Return whether the kernel has more than one place."""
        return math.prod(shape[2:]) > 1

    @cached_property
    def _root(self) -> np.ndarray | None:
        marginal = self._marginal(0)
        return None if marginal is None else np.linalg.cholesky(marginal)

    @cached_property
    def _shaped(self) -> np.ndarray:
        """The weight [outputs, inputs, places], inputs made white."""
        flat = self.weight.reshape(*self.weight.shape[:2], -1)
        return flat if self._root is None else np.einsum("ocp,cd->odp", flat, self._root, optimize=True)

    @cached_property
    def ladder(self) -> Sequence[Ranks]:
        """Pairs of ranks, from (1, 1) on; of the two, the one whose next part tells more grows first."""
        inputs = eigenvectors(np.einsum("ocp,odp->cd", self._shaped, self._shaped, optimize=True))[0]
        outputs = eigenvectors(np.einsum("ocp,dcp->od", self._shaped, self._shaped, optimize=True))[0]
        gains = np.concatenate([inputs[1:], outputs[1:]])
        order = np.argsort(-gains, kind="stable") < len(inputs) - 1
        steps = np.stack([np.cumsum(order), np.cumsum(~order)], axis=1) + 1
        return [(1, 1), *map(tuple, steps.tolist())]

    def shapes(self, ranks: Ranks) -> list[Shape]:
        """Return the shapes of the three kernels."""
        (r, s), (outputs, inputs), ones = ranks, self.weight.shape[:2], [1] * len(self.kernel)
        return [(r, inputs, *ones), (s, r, *self.kernel), (outputs, s, *ones)]

    def parts(self, ranks: Ranks) -> Parts:
        """Return the Tucker-2 decomposition."""
        first, core, last = tucker(self._shaped, (ranks[0], ranks[1]))
        if self._root is not None:
            first = np.linalg.solve(self._root.T, first.T).T
        inner = np.einsum("srp,rc->scp", core, first, optimize=True).reshape(len(core), -1)
        one, middle, _ = self.shapes(ranks)
        return Parts([first.reshape(one), core.reshape(middle)], inner, last)


class Depthwise(Method):
    """k x k on every input channel by itself, `rank` times, then 1 x 1."""

    name = "depthwise"

    @classmethod
    def fits(cls, shape: Shape) -> bool:
        """Return whether the kernel has more than one place."""
        return math.prod(shape[2:]) > 1

    @cached_property
    def ladder(self) -> Sequence[Ranks]:
        """From one filter a channel to as many as tell its part of the weight exactly."""
        return [(rank,) for rank in range(1, min(len(self.weight), math.prod(self.kernel)) + 1)]

    def shapes(self, ranks: Ranks) -> list[Shape]:
        """Return the shapes of both kernels."""
        (rank,), (outputs, inputs) = ranks, self.weight.shape[:2]
        return [(inputs * rank, 1, *self.kernel), (outputs, inputs * rank, *[1] * len(self.kernel))]

    def parts(self, ranks: Ranks) -> Parts:
        """Return the truncated SVD of what each channel is multiplied by."""
        (rank,), (outputs, inputs) = ranks, self.weight.shape[:2]
        slices = self.matrix.reshape(outputs, inputs, -1).swapaxes(0, 1)  # [inputs, outputs, places]
        places = slices.shape[2]
        root = np.broadcast_to(np.eye(places), (inputs, places, places))
        if self.gram is not None:
            blocks = np.einsum("cpcq->cpq", self.gram.reshape(inputs, places, inputs, places))
            root = np.linalg.cholesky(blocks)
        shaped = slices @ root
        basis = eigenvectors(shaped.swapaxes(1, 2) @ shaped)[1][:, :, :rank]
        filters = np.linalg.solve(root.swapaxes(1, 2), basis).swapaxes(1, 2)  # [inputs, rank, places]
        inner = np.einsum("crp,cd->crdp", filters, np.eye(inputs)).reshape(inputs * rank, -1)
        outer = (shaped @ basis).swapaxes(0, 1).reshape(outputs, -1)
        return Parts([filters.reshape(self.shapes(ranks)[0])], inner, outer)


class TwoKernels(Method):
    """Two kernels of 3 in place of one of 5, `rank` maps between them."""

    name = "two-3x3"

    @classmethod
    def fits(cls, shape: Shape) -> bool:
        """Return whether the kernel has five places along each axis."""
        return len(shape) > 2 and set(shape[2:]) == {5}

    @cached_property
    def ladder(self) -> Sequence[Ranks]:
        """From one map to as many as make the two kernels exact."""
        places = 3 ** len(self.kernel)
        return [(rank,) for rank in range(1, places * min(self.weight.shape[:2]) + 1)]

    def shapes(self, ranks: Ranks) -> list[Shape]:
        """Return the shapes of both kernels."""
        (outputs, inputs), three = self.weight.shape[:2], [3] * len(self.kernel)
        return [(*ranks, inputs, *three), (outputs, *ranks, *three)]

    def parts(self, ranks: Ranks) -> Parts:
        """Return the kernels found by least squares."""
        first, last = two_kernels(self.weight, *ranks)
        inner = shifted(first.reshape(*first.shape[:2], -1))
        return Parts([first], inner, last.reshape(len(last), -1))


METHODS: tuple[type[Method], ...] = (Svd, Separable, Tucker, Depthwise, TwoKernels)
