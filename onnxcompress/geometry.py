"""The windows of layers: read from their nodes, and written to them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxcompress.convolve import Ints, Window
from onnxcompress.layers import Layer
from onnxcompress.windows import Windows

PARAMETRISED = "its attributes are those of a function's call"
_LARGE = 1 << 12  # stands for a size that isn't known: borders hardly count


def window(layer: Layer) -> Window | str:
    """Return the window of `layer`, a convolution or product of rows with a matrix, or why there is none.

    That of a ConvTranspose says how it spreads its inputs; all others are those of their weights.
    """
    node, shape = layer.node, layer.shape
    if layer.position != 1 or not layer.linear:
        return f"{layer.op} with its weight in place {layer.position} is no plain convolution or product"
    if parametrised(node):
        return PARAMETRISED
    if node.attributes.get_int("transA", 0):
        return "its input is transposed"
    if layer.op.startswith("Conv"):
        return _convolution(layer)
    if len(shape) != 2:
        return f"its weight has {len(shape)} axes, a matrix has 2"
    outputs = shape[layer.channel_axes[0]]
    return Window(outputs, layer.size // outputs if outputs else 0)


def rows_read(layer: Layer) -> Window | None:
    """Return the window in which inputs of `layer` are rows times a matrix; None if not so, or empty."""
    found = window(layer)
    if isinstance(found, str) or found.groups > 1 or layer.op == "ConvTranspose" or not layer.size:
        return None
    return found


def _convolution(layer: Layer) -> Window | str:
    """Return the window of `layer`, a Conv or ConvTranspose, or why it can't be told."""
    attributes, (outputs, inputs, *sizes) = layer.node.attributes, layer.shape
    groups, ones, none = attributes.get_int("group", 1), (1,) * len(sizes), (0,) * len(sizes)
    strides = tuple(attributes.get_ints("strides", ones))
    dilations = tuple(attributes.get_ints("dilations", ones))
    front, back, auto_pad = none, none, attributes.get_string("auto_pad", "NOTSET")
    if auto_pad.startswith("SAME") or "output_shape" in attributes:
        given = spatial(layer.node.inputs[0], len(sizes))
        if layer.op != "Conv" or (given is None and strides != ones):
            return "its padding depends on the size of its input, which isn't known"
        places = Windows(given or ones, sizes, strides, dilations, None, auto_pad)
        front, back = tuple(places.begins), tuple(places.ends)
    elif auto_pad != "VALID":
        pads = tuple(attributes.get_ints("pads", none + none))
        front, back = pads[: len(sizes)], pads[len(sizes) :]
    if min(front + back, default=0) < 0 or not all(layer.shape):
        return "its padding is negative" if all(layer.shape) else "its weight is empty"
    if layer.op == "Conv":
        inputs *= groups
    else:
        outputs, inputs = inputs * groups, outputs
    return Window(outputs, inputs, groups, tuple(sizes), strides, dilations, front, back)


def put_window(node: ir.Node, window: Window) -> None:
    """Give the convolution `node` the attributes that say `window`."""
    node.attributes.pop("auto_pad", None)
    node.attributes["group"] = ir.AttrInt64("group", window.groups)
    for name, values in (
        ("kernel_shape", window.sizes),
        ("strides", window.strides),
        ("dilations", window.dilations),
        ("pads", window.front + window.back),
    ):
        node.attributes[name] = ir.AttrInt64s(name, values)


def oriented(layer: Layer) -> np.ndarray:
    """Return the weight of `layer`, in its dtype, as [outputs, inputs / groups, *kernel]."""
    return np.moveaxis(layer.value(), layer.channel_axes[-1], 0)


def spatial(value: ir.Value | None, rank: int) -> Ints | None:
    """Return the last `rank` sizes of `value`; None where they aren't known."""
    if value is None or value.shape is None or len(value.shape) != rank + 2:
        return None
    dims = tuple(dim for dim in value.shape[2:] if isinstance(dim, int))
    return dims if len(dims) == rank else None


def known_sizes(layer: Layer) -> tuple[Ints, bool]:
    """Return the spatial sizes of what `layer` reads, large ones for unknown ones, and if they are known."""
    rank = len(layer.shape) - 2
    if layer.op != "Conv":
        return (), True
    sizes = spatial(layer.node.inputs[0], rank)
    return (_LARGE,) * rank if sizes is None else sizes, sizes is not None


def parametrised(node: ir.Node) -> bool:
    """Return whether `node`, in a function, has attributes that each call of it gives."""
    return any(attribute.is_ref() for attribute in node.attributes.values())
