"""Where a layer is compared with the whole one: behind a normalization and the sum with a shortcut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from onnxcompress.channels.fitting import Wanted, Weights
from onnxcompress.channels.sampling import at, places, read
from onnxcompress.channels.stages import Feeds
from onnxcompress.edit import Edit, drop
from onnxcompress.errors import CompressError
from onnxcompress.layers import constant
from onnxcompress.linear import Linear, follower, stored, write


class Normalization(NamedTuple):
    """A BatchNormalization with constant statistics: its mean, what it multiplies by and adds, [channels]."""

    node: ir.Node
    mean: np.ndarray
    scale: np.ndarray
    shift: np.ndarray


@dataclass(frozen=True)
class Comparison:
    """A layer, the outputs `kept` of the whole one (None: all), and what its outputs run through up to `end`.

    That is perhaps a `normalization` and a sum with `other`. `rectified` says that only a Relu reads `end`.
    """

    line: Linear
    kept: np.ndarray | None
    end: ir.Value
    normalization: Normalization | None
    other: ir.Value | None
    rectified: bool

    @property
    def reads(self) -> list[str]:
        """The names of the values that must be known before it is repaired."""
        return [value.name or "" for value in (self.line.input, self.other) if value is not None]

    @property
    def biased(self) -> bool:
        """Whether there is a place for a bias."""
        return self.line.takes_bias() or self.normalization is not None

    def weights(self) -> Weights:
        """Return the weights and biases there are."""
        window = self.line.window
        return Weights(
            self.line.weight().reshape(window.groups, window.outputs // window.groups, -1), self.line.bias()
        )

    def sample(
        self, whole: Sequence[Feeds], now: Sequence[Feeds], draw: np.random.Generator
    ) -> tuple[np.ndarray, Wanted]:
        """Return at some places what the layer reads, [groups, m, n], and what it is to compute.

        `whole` has `end` of the whole model for each run, `now` the values it `reads`. CompressError where
        they aren't finite.
        """
        window, name = self.line.window, self.end.name or ""
        ends = [each[name] for each in whole]
        axis = 1 if self.line.convolution else ends[0].ndim - 1
        where = places(ends, axis, window, draw)
        values = at(ends, axis, where)
        values = values if self.kept is None else values[:, self.kept]
        scale, shift = np.ones(window.outputs), np.zeros((1, window.outputs), np.float32)
        if self.normalization is not None:
            scale, shift = self.normalization.scale, self.normalization.shift.astype(np.float32)[None]
        if self.other is not None:
            shift = shift + at([each[self.other.name or ""] for each in now], axis, where)
        inputs = read(window, [each[self.line.input.name or ""] for each in now], where)
        if not all(np.isfinite(array).all() for array in (values, shift, inputs)):
            raise CompressError(
                f"{self.line.layer.name}: what it reads or computes on the calibration data holds NaN or "
                "infinity, expected finite numbers"
            )
        return inputs, Wanted(values, scale, shift, self.rectified)

    def put(self, edit: Edit, weights: Weights) -> bool:
        """Give the layer `weights`; False, and nothing is done, where its dtype can't hold them.

        What they add to the bias goes to the mean of the normalization where there is one.
        """
        bias, own = weights.bias, self.line.bias()
        if self.normalization is not None:
            bias = own
        found = stored(self.line.layer, weights.matrix.reshape(self.line.window.shape), bias)
        if found is None:
            return False
        write(edit, self.line, self.line.window, *found)
        if self.normalization is not None and (weights.bias != own).any():
            self._put(edit, 3, lambda mean: mean - (weights.bias - own))
        return True

    def renormalise(self, edit: Edit, found: np.ndarray) -> None:
        """Make mean and variance of the normalization those of what it reads now, `found` [m, channels]."""
        self._put(edit, 3, lambda _: found.mean(axis=0, dtype=np.float64))
        self._put(edit, 4, lambda _: found.var(axis=0, dtype=np.float64))

    def _put(self, edit: Edit, place: int, change: Callable[[np.ndarray], np.ndarray]) -> None:
        assert self.normalization is not None
        node = self.normalization.node
        old, tensor = node.inputs[place], constant(node.inputs[place])
        assert old is not None
        assert tensor is not None
        made = change(tensor.numpy().astype(np.float64)).astype(tensor.dtype.numpy())
        node.replace_input_with(place, edit.constant(edit.model.graph, f"{old.name}_repaired", made))
        drop(old)


def comparison(
    line: Linear, kept: np.ndarray | None, added: Callable[[ir.Value, ir.Value], bool]
) -> Comparison:
    """Return where to compare the layer `line`.

    ``added(end, other)`` says whether `other`, which is added to `end`, is of its shape and needs no repair.
    """
    end, other = line.output, None
    normalization = _normalization(line.nodes[-1])
    if normalization is not None:
        end = normalization.node.outputs[0]
    adder = follower(end.producer() or line.node)
    if adder is not None and adder.op_type == "Add":
        beside = adder.inputs[1] if adder.inputs[0] is end else adder.inputs[0]
        if beside is not None and beside is not end and added(end, beside):
            end, other = adder.outputs[0], beside
    rectified = {use.node.op_type for use in end.uses()} == {"Relu"} and not end.is_graph_output()
    return Comparison(line, kept, end, normalization, other, rectified)


def _normalization(node: ir.Node) -> Normalization | None:
    """Return the BatchNormalization that alone reads what `node` makes, where all its inputs are constant."""
    reader = follower(node)
    if reader is None or reader.op_type != "BatchNormalization":
        return None
    tensors = [constant(value) for value in reader.inputs[1:]]
    if any(tensor is None for tensor in tensors):
        return None
    gamma, beta, mean, variance = (t.numpy().astype(np.float64) for t in tensors if t is not None)
    scale = gamma / np.sqrt(variance + reader.attributes.get_float("epsilon", 1e-5))
    return Normalization(reader, mean, scale, beta - mean * scale)
