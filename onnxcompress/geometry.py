"""Where the windows of a convolution lie, and how many multiplications it takes."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import onnx_ir as ir

from onnxcompress.layers import Layer
from onnxcompress.windows import Windows

Ints = tuple[int, ...]
_LARGE = 1 << 12  # stands for a size that isn't known: borders hardly count


@dataclass(frozen=True)
class Geometry:
    """The windows of a Conv or ConvTranspose, one number for each spatial axis in every field.

    `begins` and `ends` are the pads. A matrix product has no axes.
    """

    kernel: Ints
    strides: Ints
    dilations: Ints
    begins: Ints
    ends: Ints

    @classmethod
    def of(cls, layer: Layer) -> Geometry | None:
        """Return the geometry of `layer`; None where it depends on a size or a function's attribute."""
        if not layer.op.startswith("Conv"):
            return cls((), (), (), (), ())
        if any(each.is_ref() for each in layer.node.attributes.values()):
            return None
        kernel, attributes = layer.shape[2:], layer.node.attributes
        rank = len(kernel)
        auto_pad = attributes.get_string("auto_pad", "NOTSET")
        strides, dilations = (
            tuple(attributes.get_ints(name, [1] * rank)) for name in ("strides", "dilations")
        )
        if not auto_pad.startswith("SAME") and "output_shape" not in attributes:
            none = [0] * (2 * rank)
            pads = none if auto_pad == "VALID" else attributes.get_ints("pads", none)
            return cls(kernel, strides, dilations, tuple(pads[:rank]), tuple(pads[rank:]))
        sizes = spatial_sizes(layer)
        if layer.op != "Conv" or (None in sizes and max(strides, default=1) > 1):
            return None
        windows = Windows([size or _LARGE for size in sizes], kernel, strides, dilations, None, auto_pad)
        return cls(kernel, strides, dilations, tuple(windows.begins), tuple(windows.ends))

    def along(self, axes: Collection[int], kernel: Sequence[int]) -> Geometry:
        """Return the geometry of a `kernel` that moves as this one along `axes`, and not along others."""
        ones, none = [1] * len(kernel), [0] * len(kernel)

        def taken(own: Sequence[int], other: Sequence[int]) -> Ints:
            return tuple(own[axis] if axis in axes else other[axis] for axis in range(len(kernel)))

        return Geometry(
            tuple(kernel),
            taken(self.strides, ones),
            taken(self.dilations, ones),
            taken(self.begins, none),
            taken(self.ends, none),
        )

    def output(self, sizes: Iterable[int]) -> Ints:
        """Return the size of the output of a Conv for an input of `sizes`."""
        lines = zip(sizes, self.kernel, self.strides, self.dilations, self.begins, self.ends, strict=True)
        return tuple(
            (n + begin + end - (k - 1) * gap - 1) // step + 1 for n, k, step, gap, begin, end in lines
        )

    def write(self, node: ir.Node) -> None:
        """Make this the geometry of `node`."""
        node.attributes.pop("auto_pad", None)
        for name, values in (
            ("kernel_shape", self.kernel),
            ("strides", self.strides),
            ("dilations", self.dilations),
            ("pads", self.begins + self.ends),
        ):
            node.attributes[name] = ir.AttrInt64s(name, values)


def spatial_sizes(layer: Layer) -> list[int | None]:
    """Return the sizes of the spatial axes of what `layer`, a convolution, reads; None for unknown ones."""
    value = layer.node.inputs[0]
    if value is None or value.shape is None:
        return [None] * (len(layer.shape) - 2)
    return [size if isinstance(size, int) else None for size in value.shape[2:]]


def known_sizes(layer: Layer) -> tuple[Ints, bool]:
    """Return the spatial sizes of what `layer` reads, large ones for unknown ones, and if all are known."""
    if layer.op != "Conv":
        return (), True
    sizes = spatial_sizes(layer)
    return tuple(size or _LARGE for size in sizes), None not in sizes


class Stage(NamedTuple):
    """One of several convolutions in a row: the shape [outputs, inputs / groups, *kernel] of its weight."""

    shape: Ints
    geometry: Geometry


@dataclass(frozen=True)
class Cost:
    """How many weights layers have, and how many multiplications they take for one sample (or row)."""

    parameters: int
    macs: int

    def share(self, whole: Cost) -> float:
        """Return the share of `whole` in parameters plus that in multiplications."""
        return self.parameters / whole.parameters + self.macs / max(1, whole.macs)


def cost(stages: Iterable[Stage], sizes: Ints) -> Cost:
    """Return what `stages` one after the other cost for a first input of the spatial `sizes`."""
    parameters = macs = 0
    for shape, geometry in stages:
        sizes = geometry.output(sizes)
        parameters += math.prod(shape)
        macs += math.prod(shape) * math.prod(sizes)
    return Cost(parameters, macs)
