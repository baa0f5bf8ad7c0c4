"""Magnitude pruning: zero the weights that matter least by size alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxcompress.base import Context, Effect, Pass, Record, Result, option
from onnxcompress.layers import Layer, by_weight


@dataclass(frozen=True, kw_only=True)
class Prune(Pass):
    """Zero the smallest weights of convolutions, matrix products and recurrent layers.

    Before: ``y = MatMul(x, W)``
    After:  ``y = MatMul(x, W')``, at least ``sparsity`` of W' being zero.

    With ``scope=layer`` each weight loses that share; with ``scope=global`` one threshold serves all weights,
    so that layers with many small weights lose more. Look-up tables and biases stay. Zeros alone make no
    dense file smaller and no dense engine faster: they pay once a storage format or a sparse engine uses
    them. Source: Han et al., Learning both Weights and Connections, NIPS 2015.
    """

    name: ClassVar[str] = "prune"
    effect: ClassVar[Effect] = Effect.LOSSY

    sparsity: float = option(0.5, "share of the weights to zero", within=(0.0, 1.0))
    scope: str = option("layer", "one threshold a layer, or one for all", choices=("layer", "global"))
    min_size: int = option(1024, "leave weights with fewer elements alone", within=(0, 2**62))
    exclude: str = option(
        "", "leave layers alone whose whole name matches this regular expression", pattern=True
    )

    def call(self, model: ir.Model, context: Context) -> Result:
        """Prune `model` in place."""
        result = Result(model)
        chosen = []
        for readers, reason in by_weight(model, context, self.exclude):
            if reason := reason or self.refusal(readers):
                result.left_all(readers, reason)
            else:
                chosen.append(readers)
        if self.scope == "global" and chosen:
            self.prune_together(chosen, result)
        else:
            self.prune_apart(chosen, result)
        return result

    def refusal(self, readers: list[Layer]) -> str | None:
        """Return why the weight that `readers` share must stay, or None."""
        if any(layer.op == "Gather" for layer in readers):
            return "a look-up table, not a linear layer"
        return "too small" if readers[0].size < self.min_size else None

    def prune_apart(self, chosen: Iterable[list[Layer]], result: Result) -> None:
        """Zero the same share of every weight."""
        for readers in chosen:
            layer = readers[0]
            weight = layer.value()
            count, zeros = int(self.sparsity * layer.size), layer.size - int(np.count_nonzero(weight))
            if zeros >= count:
                result.left_all(readers, "sparse enough already", zeros=zeros, size=layer.size)
                continue
            cut = smallest(weight, count)
            record = result.changed(layer, "pruned", sparsity=self.sparsity, size=layer.size)
            layer.replace_weight(partial(zero_up_to, cut=cut), count_zeros(record))
            result.left_all(readers[1:], f"tied to {layer.name}, done there")

    def prune_together(self, chosen: list[list[Layer]], result: Result) -> None:
        """Zero what lies at or under one threshold in all weights."""
        threshold = shared_threshold([readers[0] for readers in chosen], self.sparsity)
        for readers in chosen:
            layer = readers[0]
            weight = layer.value()
            if np.count_nonzero(zero_up_to(weight, Cut(threshold))) == np.count_nonzero(weight):
                numbers = {"threshold": threshold, "size": layer.size}
                result.left_all(readers, "nothing under the global threshold", **numbers)
                continue
            record = result.changed(layer, "pruned", threshold=threshold, size=layer.size)
            layer.replace_weight(partial(zero_up_to, cut=Cut(threshold)), count_zeros(record))
            result.left_all(readers[1:], f"tied to {layer.name}, done there")


@dataclass(frozen=True)
class Cut:
    """The magnitude at which pruning stops, and how many weights of just that magnitude go (None: all)."""

    threshold: float
    ties: int | None = None


def smallest(weight: np.ndarray, count: int) -> Cut:
    """Return the cut that zeroes the `count` (at least 1) smallest entries of weight [any shape, float]."""
    magnitude = np.abs(weight).reshape(-1)
    threshold = np.partition(magnitude, count - 1)[count - 1]
    if np.count_nonzero(magnitude <= threshold) == count:
        return Cut(float(threshold))
    return Cut(float(threshold), count - int(np.count_nonzero(magnitude < threshold)))


def zero_up_to(weight: np.ndarray, cut: Cut) -> np.ndarray:
    """Return weight [any shape, float] with entries up to `cut` set to zero; of ties, the first ones go."""
    magnitude = np.abs(weight)
    gone = magnitude <= cut.threshold
    if cut.ties is not None:
        kept = np.flatnonzero(magnitude == cut.threshold)[cut.ties :]
        gone.reshape(-1)[kept] = False
    pruned = weight.copy()
    np.copyto(pruned, 0, where=gone)
    return pruned


def shared_threshold(chosen: list[Layer], share: float) -> float:
    """Return the magnitude at or under which at least `share` of all the layers' weights, rounded down, lie.

    The weights are read twice and never held together: magnitudes of float32 order like their bit patterns,
    so one histogram of the upper 16 bits and one of the lower 16 find the threshold exactly.
    """
    count = int(share * sum(layer.size for layer in chosen))
    if count == 0:
        return -1.0
    upper, lower = np.zeros(65536, np.int64), np.zeros(65536, np.int64)
    for layer in chosen:
        upper += np.bincount(bits(layer) >> 16, minlength=65536)
    high = int(np.searchsorted(np.cumsum(upper), count))
    below = int(np.sum(upper[:high]))
    for layer in chosen:
        pattern = bits(layer)
        lower += np.bincount(pattern[pattern >> 16 == high] & 0xFFFF, minlength=65536)
    low = int(np.searchsorted(np.cumsum(lower), count - below))
    return float(np.array([high << 16 | low], np.uint32).view(np.float32)[0])


def bits(layer: Layer) -> np.ndarray:
    """Return the magnitudes of the layer's weight as float32 bit patterns [size, uint32]."""
    return np.abs(layer.value().astype(np.float32, copy=False)).reshape(-1).view(np.uint32)


def count_zeros(record: Record) -> Callable[[np.ndarray], None]:
    """Return a function of a weight that writes its number of zeros into `record`."""

    def count(weight: np.ndarray) -> None:
        record.numbers["zeros"] = weight.size - int(np.count_nonzero(weight))

    return count
