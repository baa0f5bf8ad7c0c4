"""Weight sharing: let few values stand for the weights of each layer."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxcompress.base import Context, Effect, Need, Number, Pass, Record, Result, option
from onnxcompress.errors import UsageError
from onnxcompress.geometry import rows_read
from onnxcompress.kmeans import METHODS, Codebook, codebook, shared
from onnxcompress.layers import Layer, by_weight
from onnxcompress.loss import decibels
from onnxcompress.model import clone
from onnxcompress.moments import second_moments
from onnxcompress.schemes import array, matrix


@dataclass(frozen=True, kw_only=True)
class Cluster(Pass):
    """Let at most 2**bits values stand for the weights of each layer, found by k-means.

    Before: ``y = MatMul(x, W)``
    After:  ``y = MatMul(x, W')``, W' having at most 2**bits different values, zero included.

    Zeros stay zero and k-means is of the rest: where a weight has zeros, zero is one of its 2**bits values,
    so that ``bits`` bits tell all of them apart. Convolutions, matrix products, recurrent layers and look-up
    tables share values; biases stay. With ``scope=tensor`` a weight has one codebook, with ``scope=channel``
    each output channel has its own, with ``scope=group`` every ``group`` neighbouring output channels have
    (the last group may be smaller). Shared values alone make no file smaller: they pay once a storage format
    uses them.

    ``initialise`` says where k-means begins: ``linear`` in equal steps from the lowest to the highest weight,
    as in the paper; ``density`` at equal shares of the weights; ``optimal`` at the least squared error there
    is. ``entropy`` is no k-means: it makes the sum of squared error and Huffman code length least, so that
    of files of the same size that are Huffman-coded afterwards, its own is the most accurate. ``price`` is
    what it lets a bit cost: at 1 as much as finer steps everywhere would cost for the same gain. Weights are
    read twice: for their codebook, and when they are written.

    With ``importance=inputs`` the error of a weight counts as much as the mean square of the input that it
    multiplies, on calibration data: what is made least is the error of the layer's outputs, up to what inputs
    have in common. This is for convolutions without groups and matrix products of the main graph; the weights
    of other layers count the same.
    Source: Han et al., Deep Compression, ICLR 2016; Choi et al., Towards the Limit of Network Quantization,
    ICLR 2017 (importance); the arithmetic's sources are those of kmeans.py.
    """

    name: ClassVar[str] = "cluster"
    effect: ClassVar[Effect] = Effect.LOSSY
    uses: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION, Need.RUNTIME})

    bits: int = option(
        5, "bits of a code: 2**bits values, zero included where there are zeros", within=(1, 8)
    )
    scope: str = option("tensor", "what has a codebook of its own", choices=("tensor", "channel", "group"))
    group: int = option(16, "output channels that share a codebook with scope=group", within=(1, 2**62))
    initialise: str = option("linear", "where k-means begins, or what is made least", choices=METHODS)
    price: float = option(
        1.0,
        "what a bit of a weight's code costs with initialise=entropy: more gives smaller files",
        within=(0.0, 100.0),
    )
    importance: str = option(
        "equal",
        "which errors count more: none, or those of inputs that are large",
        choices=("equal", "inputs"),
    )
    min_size: int = option(1024, "leave weights with fewer elements alone", within=(0, 2**62))
    exclude: str = option(
        "", "leave layers alone whose whole name matches this regular expression", pattern=True
    )

    def call(self, model: ir.Model, context: Context) -> Result:
        """Cluster the weights of `model` in place."""
        result = Result(model)
        groups: list[list[Layer]] = []
        for readers, reason in by_weight(model, context, self.exclude):
            if reason is None and readers[0].size < self.min_size:
                reason = "too small"
            if reason:
                result.left_all(readers, reason)
            else:
                groups.append(readers)
        held = self.held(model, [readers[0] for readers in groups], context)
        for readers in groups:
            self.cluster(readers, held.get(readers[0]), result)
        return result

    def held(self, model: ir.Model, layers: Sequence[Layer], context: Context) -> dict[Layer, np.ndarray]:
        """Return how much each weight of `layers` counts [as the weight], where that isn't the same."""
        if self.importance == "equal":
            return {}
        if context.calibration is None or context.runtime is None:
            raise UsageError(f"{self.name}: importance=inputs needs calibration data, none was given")
        seen = {
            layer: found
            for layer in layers
            if layer.node.graph is model.graph and (found := rows_read(layer))
        }
        held: dict[Layer, np.ndarray] = {}
        for moments in second_moments(clone(model), seen, context):
            for layer, each in moments.items():
                if each.inputs is not None and each.mean is not None:
                    held[layer] = spread(np.diagonal(each.inputs) + each.mean**2, layer)
        return held

    def cluster(self, readers: Sequence[Layer], held: np.ndarray | None, result: Result) -> None:
        """Cluster the weight that `readers` share, unless its values are few already."""
        layer = readers[0]
        axes = () if self.scope == "tensor" else layer.channel_axes
        group = self.group if self.scope == "group" else 1
        counts = itertools.repeat(None) if held is None else parts(held, axes, group)
        books = [
            codebook(part, 2**self.bits, self.initialise, self.price, count)
            for part, count in zip(parts(layer.value(), axes, group), counts, strict=False)
        ]
        numbers = summary(books)
        if all(book.exact for book in books):
            result.left_all(readers, "few values already", **numbers)
            return
        share(layer, axes, group, books, result.changed(layer, "clustered", **numbers))
        result.left_all(readers[1:], f"tied to {layer.name}, done there")


def spread(squares: np.ndarray, layer: Layer) -> np.ndarray:
    """Return the mean squares of inputs [inputs * kernel] for each weight of `layer` [as the weight]."""
    axis = layer.channel_axes[-1]
    kept = [size for place, size in enumerate(layer.shape) if place != axis]
    return np.broadcast_to(np.expand_dims(squares.reshape(kept), axis), layer.shape)


def share(layer: Layer, axes: Sequence[int], group: int, books: Sequence[Codebook], record: Record) -> None:
    """Give `layer` the values of `books`, one for each of its :func:`parts`, once its weight is read."""

    def replaced(weight: np.ndarray) -> np.ndarray:
        result = joined(weight, axes, group, books)
        record.numbers["snr"] = decibels(weight, result)
        return result

    layer.replace_weight(replaced)


def parts(weight: np.ndarray, axes: Sequence[int], group: int) -> Iterator[np.ndarray]:
    """Yield each `group` of channels, [channels, others], of weight [any shape].

    `axes` tell channels apart; without them the whole weight is one channel.
    """
    channels = matrix(weight, axes)
    for start in range(0, len(channels), group):
        yield channels[start : start + group]


def joined(weight: np.ndarray, axes: Sequence[int], group: int, books: Sequence[Codebook]) -> np.ndarray:
    """Return weight [any shape] with the values of `books`, one for each of its :func:`parts`."""
    result = np.empty_like(matrix(weight, axes), order="C")
    for part, book, place in zip(parts(weight, axes, group), books, parts(result, (0,), group), strict=True):
        place[...] = shared(part, book)
    return array(result, weight.shape, axes)


def summary(books: Sequence[Codebook]) -> dict[str, Number]:
    """Return what a record tells of `books`: the most values of one, and bits a weight holds."""
    size = sum(book.size for book in books)
    return {
        "values": max((book.count for book in books), default=0),
        "codebooks": len(books),
        "entropy": sum(book.entropy * book.size for book in books) / max(1, size),
        "size": size,
    }
