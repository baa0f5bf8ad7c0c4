"""Activations in front of depthwise convolutions, quantized with a scale for each channel at no cost.

An integer kernel takes one scale for a whole activation. But where a convolution makes an activation that
only depthwise convolutions read, channel c of it may be counted in steps of its own: the scales of the
maker's weight, one for each output channel, are divided by the ratio of its steps to the common ones, those
of the readers' weights multiplied by it (of makers and readers that compute with floats the weights
themselves). No integer of the model changes but for that, and a Relu or Clip that the range of the activation
stands for saturates each channel at its own end. Sources: Nagel et al.,
Data-Free Quantization, ICCV 2019, for ranges moved between channels; Jacob et al., CVPR 2018, for the
saturation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxcompress.layers import Layer
from onnxcompress.placement import How, Placement, activations

LEAST = 1 / 64  # of the common steps, that a channel's are at least: rarer numbers than were seen still fit


@dataclass(frozen=True, eq=False)
class Spread:
    """An activation that may have steps for each channel, the layer that makes it, and those that read it.

    `readers` compute with integers, `floats` with floats; the maker may do either.
    """

    value: ir.Value
    maker: Layer
    readers: list[Layer]
    floats: list[Layer]


def spreads(placement: Placement, layers: Iterable[Layer], floats: Iterable[Layer] = ()) -> list[Spread]:
    """Return the activations of `placement` that only depthwise convolutions of `layers` or `floats` read.

    Those of `layers` compute with integers. A Pad of zeros may lie between. `value` is what the maker leaves,
    behind its Relu or Clip.
    """
    known = {layer.node: layer for layer in layers}
    loose = {layer.node: layer for layer in floats if len(layer.weight.uses()) == 1}
    groups: dict[ir.Value, list[ir.Value]] = {}
    for value in placement.values:
        groups.setdefault(placement.group(value), []).append(value)
    found = (_spread(placement, known, loose, values) for values in groups.values())
    return [each for each in found if each is not None]


def _spread(
    placement: Placement,
    known: Mapping[ir.Node, Layer],
    loose: Mapping[ir.Node, Layer],
    values: list[ir.Value],
) -> Spread | None:
    """Return the one activation that `values`, which share a scale, are, or None."""
    readers, floats, made = [], [], []
    for value in values:
        maker = value.producer()
        if maker is None or value.is_graph_output():
            return None
        if not _moved(placement, maker):
            while maker in placement.bounded and maker.inputs[0] is not None:
                maker = maker.inputs[0].producer()
            layer = known.get(maker) if maker is not None else None
            layer = layer or _float_maker(loose, value)
            if layer is None or layer.op != "Conv":
                return None
            made.append((value, layer))
        for reader in value.consumers():
            if reader in known and _depthwise(known[reader]):
                readers.append(known[reader])
            elif reader in loose and _depthwise(loose[reader]):
                floats.append(loose[reader])
            elif not _moved(placement, reader):
                return None
    return Spread(*made[0], readers, floats) if len(made) == 1 and (readers or floats) else None


def _float_maker(loose: Mapping[ir.Node, Layer], value: ir.Value) -> Layer | None:
    """Return the layer that makes `value` and nothing else, with floats, behind Relus and Clips, or None."""
    maker = value.producer()
    while maker is not None and activations(maker)[0] is How.BOUND:
        source = maker.inputs[0]
        if source is None or len(source.uses()) > 1 or source.is_graph_output():
            return None
        maker = source.producer()
    layer = loose.get(maker) if maker is not None else None
    return layer if layer is not None and layer.bias() is not None else None


def _moved(placement: Placement, node: ir.Node) -> bool:
    """Return whether `node` is a Pad that leaves channels where they are: it pads zeros in a placement."""
    return node.op_type == "Pad" and placement.nodes.get(node) is How.TIED


def _depthwise(layer: Layer) -> bool:
    """Return whether output channel c of `layer` reads input channel c alone."""
    shape = layer.shape
    return layer.op == "Conv" and shape[1] == 1 and layer.node.attributes.get_int("group", 1) == shape[0]


def ratios(maxima: np.ndarray, high: float) -> np.ndarray:
    """Return the steps of each channel in common steps, float32 [channels], LEAST to 1.

    `maxima` [channels] are the largest numbers of the channels, `high` is the end of the common range. A
    channel that holds nothing but zeros keeps the common steps.
    """
    if high <= 0:
        return np.ones(len(maxima), np.float32)
    found = np.clip(maxima / high, LEAST, 1)
    return np.where(maxima > 0, found, 1).astype(np.float32)
