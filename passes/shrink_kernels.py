"""Shrinking kernels: the outer ring of a convolution's kernel cut off where it hardly weighs anything."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from onnxcompress.base import Context, Effect, Pass, Result, option
from onnxcompress.convolve import Window
from onnxcompress.edit import same_ports
from onnxcompress.geometry import put_window, window
from onnxcompress.layers import Layer, by_weight, put_constant
from onnxcompress.model import lazy


@dataclass(frozen=True, kw_only=True)
class ShrinkKernels(Pass):
    """Cut the outer ring of a convolution's kernel off where it holds next to none of the weight.

    Before: ``y = Conv<pads = [2, 2, 2, 2]>(x, W)``, W being 5 x 5
    After:  ``y = Conv<pads = [1, 1, 1, 1]>(x, W')``, W' being 3 x 3

    A ring goes where it has less than ``threshold`` of the sum of squares of the layer's weight, and then
    the next one. Along an axis of one or two places nothing is cut: 1 x 5 becomes 1 x 3. Pads shrink by the
    dilation on each side; where they are smaller than that, the kernel stays. Grouped and depthwise
    convolutions and ConvTranspose shrink too, of any number of axes.
    Source: Stamoulis et al., Single-Path NAS, ECML PKDD 2019 (the superkernel decision).
    """

    name: ClassVar[str] = "shrink-kernels"
    effect: ClassVar[Effect] = Effect.LOSSY

    threshold: float = option(
        0.05, "share of a layer's squared weights under which its outer ring goes", within=(0.0, 1.0)
    )
    exclude: str = option(
        "", "leave layers alone whose whole name matches this regular expression", pattern=True
    )

    def call(self, model: ir.Model, context: Context) -> Result:
        """Shrink the kernels of `model` in place."""
        result = Result(model)
        with same_ports(model):
            ShapeInferencePass()(model)  # automatic pads depend on sizes
        for readers, reason in list(by_weight(model, context, self.exclude)):
            if reason := reason or refusal(readers):
                result.left_all(readers, reason)
            else:
                self.shrink(readers, result)
        return result

    def shrink(self, readers: list[Layer], result: Result) -> None:
        """Shrink the kernel that `readers` share as far as its values and all of them let it."""
        layer = readers[0]
        shares = ring_shares(layer.value())
        wanted = next((n for n, share in enumerate(shares) if share >= self.threshold), len(shares))
        if not wanted:
            result.left_all(readers, "its outer ring matters", ring=shares[0])
            return
        chains = [smaller(each, wanted) for each in readers]
        count = min(map(len, chains))
        if not count:
            result.left_all(readers, "its pads are smaller than its dilation, or unknown", ring=shares[0])
            return
        kernel = chains[0][count - 1].sizes
        kept = float(np.prod([1 - share for share in shares[:count]]))
        before = "x".join(map(str, layer.shape[2:]))
        result.changed(layer, "shrunk", before=before, kernel="x".join(map(str, kernel)), energy=kept)
        result.left_all(readers[1:], f"tied to {layer.name}, done there")
        dims = (*layer.shape[:2], *kernel)
        put_constant(layer.weight, lazy(layer.tensor, partial(middle, rings=count), shape=dims))
        for each, chain in zip(readers, chains, strict=True):
            put_window(each.node, chain[count - 1])


def refusal(readers: list[Layer]) -> str | None:
    """Return why the weight that `readers` share must stay, or None."""
    weight = readers[0].weight
    if any(layer.op not in ("Conv", "ConvTranspose") for layer in readers):
        return "not a convolution"
    if max(readers[0].shape[2:], default=0) < 3:
        return "no ring in its kernel"
    if len(weight.uses()) > len(readers) or weight.is_graph_output():
        return "its weight is read elsewhere too"
    return None


def smaller(layer: Layer, rings: int) -> list[Window]:
    """Return the windows of `layer` with one ring fewer, two, up to `rings`, as many as its pads allow."""
    whole = window(layer)
    found: list[Window] = []
    while isinstance(whole, Window) and len(found) < rings:
        cut = [int(size > 2) for size in whole.sizes]
        less = [each * gap for each, gap in zip(cut, whole.dilations, strict=True)]
        whole = replace(
            whole,
            sizes=tuple(size - 2 * each for size, each in zip(whole.sizes, cut, strict=True)),
            front=tuple(pad - each for pad, each in zip(whole.front, less, strict=True)),
            back=tuple(pad - each for pad, each in zip(whole.back, less, strict=True)),
        )
        if min(whole.front + whole.back) < 0:
            break
        found.append(whole)
    return found


def ring_shares(weight: np.ndarray) -> list[float]:
    """Return, for each ring of weight [outputs, inputs, *kernel], its share of what is left of the squares.

    The outermost comes first; of a weight that is all zero, shares are zero.
    """
    squares = np.sum(weight.astype(np.float64) ** 2, axis=(0, 1))
    shares = []
    while max(squares.shape, default=0) > 2:
        inner = cut(squares)
        whole = float(squares.sum())
        shares.append(1 - float(inner.sum()) / whole if whole > 0 else 0.0)
        squares = inner
    return shares


def middle(weight: np.ndarray, rings: int) -> np.ndarray:
    """Return weight [outputs, inputs, *kernel] without its outer `rings`."""
    for _ in range(rings):
        weight = cut(weight, 2)
    return np.ascontiguousarray(weight)


def cut(array: np.ndarray, first: int = 0) -> np.ndarray:
    """Return `array` without the ends of each axis, from `first` on, that has more than two places."""
    ends = tuple(slice(1, -1) if size > 2 else slice(None) for size in array.shape[first:])
    inner: np.ndarray = array[(slice(None),) * first + ends]
    return inner
