"""Name the layer that a recipe hurts most, and the one to leave alone so that outputs get better."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir

from onnxcompress.base import Context, Pass
from onnxcompress.data import Data
from onnxcompress.errors import CompressError
from onnxcompress.layerwise import Passage, passages, worst
from onnxcompress.report import WORST, decibels
from onnxcompress.trials import applied
from onnxcompress.verify import Comparison, compare

SAME = 0.98  # share of predictions that stay the same; below, a model was hurt
LOUD = 20.0  # dB; the same for models that predict no classes
GAIN = 3.0  # dB that leaving a layer alone must bring: half of the noise


def hurt(comparison: Comparison) -> bool:
    """Return whether models that compare so differ by more than is usual for a good recipe.

    A single changed prediction may be chance.
    """
    if comparison.random or comparison.exact:
        return False
    if comparison.agreement is not None:
        return comparison.agreement < SAME and comparison.changed_predictions != 1
    return comparison.snr < LOUD


def cure(given: ir.Model, last: ir.Model, passes: Sequence[Pass], context: Context, samples: Data) -> str:
    """Return what to tell of the layers of `given` that `passes`, which made `last` of it, hurt most.

    Each of the WORST is left alone once, and the passes run again; "" where no layer can be told to add
    noise. The ratios are those on `samples`.
    """
    assert context.runtime is not None
    suspects = worst(passages(given, last, context.runtime, samples), WORST)
    if not suspects:
        return ""
    first = context.runtime.prepare(given)
    reached = compare(first, context.runtime.prepare(last), samples).snr
    found: list[tuple[float, Passage]] = []
    for place, each in enumerate(suspects):
        context.progress(place, len(suspects), f"leaving {each.layer} alone")
        spared = replace(context, exclude=(*context.exclude, re.escape(each.layer)))
        try:
            model = applied(passes, given, spared)[0]
            found.append((compare(first, context.runtime.prepare(model), samples).snr, each))
        except CompressError:  # a pass needs this layer, or outputs are broken without it, too
            continue
    best, cured = max(found, key=lambda pair: pair[0], default=(reached, suspects[0]))
    if best < reached + GAIN:
        most = f"{suspects[0].layer} adds most noise ({_signal(suspects[0])})"
        return f"{most}; leaving out no single layer brings {GAIN:g} dB, expected milder options"
    pattern = shlex.quote(re.escape(cured.layer))
    return (
        f"{cured.layer} hurts most ({_signal(cured)}):"
        f" --exclude {pattern} brings the outputs from {decibels(reached)} to {decibels(best)}"
    )


def _signal(layer: Passage) -> str:
    """Return what a layer that adds noise does to the signal."""
    assert layer.entering is not None
    assert layer.leaving is not None
    return f"SNR {decibels(layer.entering)} -> {decibels(layer.leaving)}"
