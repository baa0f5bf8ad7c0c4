"""Putting the weights of a model on grids of few values, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxcompress.base import Context, Effect, Need, Pass, Result, option
from onnxcompress.compensation import compensated
from onnxcompress.convolve import Window
from onnxcompress.ends import ends
from onnxcompress.errors import UsageError
from onnxcompress.geometry import rows_read
from onnxcompress.layers import Layer, by_weight, put_constant
from onnxcompress.loss import decibels
from onnxcompress.model import clone
from onnxcompress.moments import second_moments
from onnxcompress.schemes import Grid, array, matrix

IMPORTANCE = ("equal", "inputs")


@dataclass(frozen=True)
class Rounding:
    """How the weights of a model get on grids.

    `grid` makes the grids of rows [channels, elements]; `what` says in records what was done, a participle.
    Where `per_channel` is false a weight is one row. `importance` is which errors count: of the weights, or
    (inputs) of what the layer makes on calibration data.
    """

    what: str
    grid: Callable[[np.ndarray], Grid]
    per_channel: bool = True
    importance: str = "equal"

    def apply(self, groups: Sequence[list[Layer]], model: ir.Model, context: Context, result: Result) -> None:
        """Round the weights of `groups`, layers that share one each; record in `result` what was done."""
        for readers, moments in self._moments(groups, model, context):
            self._round(readers, moments, result)

    def _moments(
        self, groups: Sequence[list[Layer]], model: ir.Model, context: Context
    ) -> Iterator[tuple[list[Layer], np.ndarray | None]]:
        """Yield `groups` with the second moments of what their first layer reads; None for none."""
        by_layer = {readers[0]: readers for readers in groups}
        if self.importance == "inputs":
            if context.calibration is None or context.runtime is None:
                raise UsageError("importance=inputs needs calibration data, none was given")
            seen: dict[Layer, Window] = {
                layer: found
                for layer in by_layer
                if layer.node.graph is model.graph and (found := rows_read(layer))
            }
            for batch in second_moments(clone(model), seen, context):
                for layer, each in batch.items():
                    yield by_layer.pop(layer), each.about_zero(layer.value()).inputs
        for readers in by_layer.values():
            yield readers, None

    def _round(self, readers: list[Layer], moments: np.ndarray | None, result: Result) -> None:
        """Round the weight that `readers` share, unless it is on its grid already."""
        layer = readers[0]
        weight, axes = layer.value(), layer.channel_axes
        grid_axes = axes if self.per_channel else ()
        grid = self.grid(matrix(weight, grid_axes))

        def rounded(given: np.ndarray) -> np.ndarray:
            return array(grid(matrix(given, grid_axes)), given.shape, grid_axes)

        made = rounded(weight)
        if np.array_equal(made, weight):
            result.left_all(readers, f"{self.what} already", size=layer.size)
            return
        if moments is None:
            layer.replace_weight(rounded)
        else:
            made = array(compensated(matrix(weight, axes), moments, grid), weight.shape, axes)
            put_constant(layer.weight, ir.tensor(made, name=layer.weight.name))
        result.changed(layer, self.what, size=layer.size, snr=decibels(weight, made))
        result.left_all(readers[1:], f"tied to {layer.name}, done there")


def chosen(
    model: ir.Model,
    context: Context,
    result: Result,
    *,
    min_size: int,
    exclude: str,
    keep_ends: bool,
) -> list[list[Layer]]:
    """Return the layers of `model` to round, those that share a weight together; record why others are left.

    Weights of fewer than `min_size` elements stay, layers whose whole name matches `exclude`, and where
    `keep_ends` the first and the last layers.
    """
    groups = list(by_weight(model, context, exclude))
    kept = ends(model.graph, (layer for readers, _ in groups for layer in readers)) if keep_ends else set()
    found = []
    for readers, reason in groups:
        if reason is None and readers[0].size < min_size:
            reason = "too small"
        if reason is None and not kept.isdisjoint(readers):
            reason = "a first or last layer"
        if reason is None:
            found.append(readers)
        else:
            result.left_all(readers, reason)
    return found


@dataclass(frozen=True, kw_only=True)
class RoundingPass(Pass):
    """What passes that put weights on grids have in common: which weights, and which errors count."""

    effect: ClassVar[Effect] = Effect.LOSSY
    uses: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION, Need.RUNTIME})

    importance: str = option(
        "equal",
        "which errors are made least: of the weights, or (inputs) of what layers make on calibration data",
        choices=IMPORTANCE,
    )
    keep_ends: bool = option(False, "leave the first and the last layers alone")
    min_size: int = option(1024, "leave weights with fewer elements alone", within=(0, 2**62))
    exclude: str = option(
        "", "leave layers alone whose whole name matches this regular expression", pattern=True
    )

    def round(
        self,
        model: ir.Model,
        context: Context,
        result: Result,
        what: str,
        grid: Callable[[np.ndarray], Grid],
        per_channel: bool,
    ) -> list[list[Layer]]:
        """Put weights of `model` on grids, as :class:`Rounding` says; return the layers of each weight."""
        groups = chosen(
            model, context, result, min_size=self.min_size, exclude=self.exclude, keep_ends=self.keep_ends
        )
        Rounding(what, grid, per_channel, self.importance).apply(groups, model, context, result)
        return groups
