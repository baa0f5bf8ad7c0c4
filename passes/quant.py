"""Quantization to int8: weights, and activations as far as they are known."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from onnxcompress.base import Context, Effect, Need, Pass, Result, option, silent
from onnxcompress.calibrate import METHODS, Statistics, calibrate
from onnxcompress.channels.equalizing import equalize
from onnxcompress.correction import fallen, takes_bias
from onnxcompress.data import load_data, random_data
from onnxcompress.edit import Edit, same_ports
from onnxcompress.errors import UsageError
from onnxcompress.folding import fold_batch_norms
from onnxcompress.gate import Feeds, Gate, Trial, batched, either, kind_of
from onnxcompress.integer import DYNAMIC_OPSET, Integers, multiplies_integers
from onnxcompress.layers import Layer, by_weight, constant
from onnxcompress.linear import put_bias
from onnxcompress.model import clone, convert_up
from onnxcompress.placement import STATIC_OPSET, Placement, activations, place
from onnxcompress.qdq import refusal, write
from onnxcompress.quantize import FULL, REDUCED, Activations
from onnxcompress.spreading import Spread, spreads
from onnxcompress.target import find_target


@dataclass(frozen=True, kw_only=True)
class Quant(Pass):
    """Store weights as int8, and compute with 8-bit integers where that pays.

    Before: ``y = Conv(x, W, b)``
    After, static: ``y = DQ(Q(Conv(DQ(Q(x)), DQ(W_int8), DQ(b_int32))))``, which the engine runs on integers
    After, otherwise: ``y = Conv(x, Cast(W_int8) * scale, b)``, which it expands when it loads the model

    Weights are symmetric, with one scale for each output channel; activations are uint8 with a zero point
    (``signed`` and ``symmetric`` are for other engines), their ranges found on the calibration data. Static
    quantization first folds BatchNormalization into the layer before it, lets the range of a Relu's or Clip's
    output do its work, and gives one scale to all values that are only moved about. Without calibration data,
    MatMul and Gemm quantize their input as they run (DynamicQuantizeLinear), and the numbers of a batch then
    depend on one another a little. Other weights, also those in the bodies of If and Loop, are stored as int8
    and computed with as floats.
    Weights are read twice: for their scale, and when they are written.

    With ``gate=on``, where there is an engine to time with and the target is this machine, layers compute
    with integers where that is faster here, with the threads and the batch in use: layers are timed one by
    one, then the blocks they form, then the whole model, float and int8 in turns. Where the upper end of the
    95 % interval of the whole is above 1.0, all of them compute with floats. Their weights are stored as int8
    all the same. Parts that are alike are timed once. Timing parts ends after ``seconds``, timing the whole
    after as many (of a slow model, after six runs of each choice). Times vary: the file's metadata hold the
    recipe with the choice spelt out, which repeats it anywhere.
    Source: Jacob et al., Quantization and Training of Neural Networks, CVPR 2018.
    """

    name: ClassVar[str] = "quant"
    effect: ClassVar[Effect] = Effect.LOSSY
    uses: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION, Need.RUNTIME})

    activations: str = option(
        "auto",
        "none, dynamic (MatMul, Gemm) or static; auto is static with calibration data, else dynamic",
        choices=("auto", "none", "dynamic", "static"),
    )
    per_channel: bool = option(True, "one weight scale for each output channel, not for each tensor")
    min_size: int = option(
        256,
        "leave weights with fewer elements in float: their int8 form takes as much room",
        within=(0, 2**62),
    )
    exclude: str = option(
        "", "leave the layers whose whole name matches this regular expression", pattern=True
    )
    gate: str = option(
        "on",
        "compute with integers only where that is measured to be faster here, or wherever it is possible",
        choices=("on", "off"),
    )
    seconds: float = option(
        60.0, "time to measure parts of the model in all, and the whole", within=(0.0, 1e9)
    )
    batch: int = option(
        0, "samples of a run of the whole that is timed; 0: as in the calibration data", within=(0, 2**20)
    )
    weights_only: str = option(
        "",
        "compute with floats in the layers whose whole name matches this regular expression",
        pattern=True,
    )
    signed: bool = option(
        False, "static: activations as int8, not uint8, for engines that want these; onnxruntime gets slow"
    )
    symmetric: bool = option(
        False, "static: ranges around zero, for engines that know no zero point; Relu is computed then"
    )
    reduce_range: str = option(
        "auto",
        "weights of 7 bits where they are multiplied, so that sums don't saturate; auto: where the target "
        "adds these up in 16 bits (x86 without VNNI)",
        choices=("auto", "on", "off"),
    )
    weights: str = option(
        "min-max",
        "what the scale of a weight reaches: the largest, or less, for the least squared error",
        choices=("min-max", "mse"),
    )
    calibrator: str = option(
        "mse",
        "how a range is found: all numbers, the mean of each run's ends, most of the numbers, or the range "
        "that tells most or rounds best",
        choices=METHODS,
    )
    percentile: float = option(
        99.999, "percent of the numbers inside the range of calibrator=percentile", within=(50.0, 100.0)
    )
    equalize: bool = option(
        True, "static: first equalize the ranges of channels, as equalize does; not with symmetric=true"
    )
    correct: bool = option(
        True,
        "static: take off biases what rounded weights add to the mean of an output on the calibration data",
    )

    def call(self, model: ir.Model, context: Context) -> Result:
        """Quantize `model` in place: by calibration where wanted, then what is left of the weights."""
        calibrated = self.activations == "auto" and context.calibration is not None
        static = self.activations == "static" or calibrated
        dynamic = not static and self.activations in ("auto", "dynamic")
        result = Result(model)
        if static:
            self._check(context)
        self._prepare(model, context, result, static, dynamic)
        if not static and not dynamic:
            self._quantize(model, context, result, static, dynamic)
            return result
        chosen = replace(self, gate="off")
        if self.reduce_range == "auto":
            chosen = replace(chosen, reduce_range="off" if find_target(context.target).vnni else "on")
        gate = chosen._gate(model, context, result, static) if self.gate == "on" else None
        slow = gate.floats() if gate else {}
        if gate:
            every = len(slow) == len(gate.classes)
            chosen = replace(chosen, weights_only=".*" if every else either(self.weights_only, slow))
        chosen._quantize(model, context, result, static, dynamic)
        if gate:
            gate.tell(result, slow)
            result.numbers["repeat"] = str(chosen)
        result.replay = chosen
        return result

    def _quantize(
        self, model: ir.Model, context: Context, result: Result, static: bool, dynamic: bool
    ) -> None:
        """Quantize `model`, which is prepared, without timing anything."""
        groups = []
        for readers, reason in by_weight(model, context, self.exclude):
            if reason is None:
                groups.append(readers)
            for layer in readers if reason else ():
                result.left(layer, reason or "")
        integers = Integers(Edit(model))
        means: dict[Layer, np.ndarray] = {}
        if static:
            groups, means = self._compute(model, context, result, integers, groups)
        for readers in groups:
            self._store(readers, integers, result, static, dynamic, means)

    def _check(self, context: Context) -> None:
        if context.calibration is None or context.runtime is None:
            missing = "calibration data" if context.calibration is None else "a runtime"
            raise UsageError(f"{self.name}: activations=static needs {missing}, none was given")

    def _prepare(
        self, model: ir.Model, context: Context, result: Result, static: bool, dynamic: bool
    ) -> None:
        """Raise the opset to what the integer operators need, and fold what follows layers into them."""
        groups = by_weight(model, context, self.exclude)
        candidates = [layer for readers, reason in groups if reason is None for layer in readers]
        needed = STATIC_OPSET if static else 0
        if dynamic and any(multiplies_integers(each) and each.size >= self.min_size for each in candidates):
            needed = DYNAMIC_OPSET
        if not candidates:
            return
        for layer in candidates:
            if not layer.node.name and layer.position != 2:
                layer.node.name = layer.name  # which folding could change
        convert_up(model, needed)
        if static:
            with same_ports(model):
                ShapeInferencePass()(model)  # what MatMuls become depends on the shape of their input
            for name in fold_batch_norms(model, context, self.exclude):
                result.changed(name, "what follows folded in")
            # with symmetric ranges what a Relu takes off counts as well, which equalizing does not look at
            for name in (
                equalize(model, context, self.exclude)[0] if self.equalize and not self.symmetric else ()
            ):
                result.changed(name, "ranges equalized")

    def _gate(self, model: ir.Model, context: Context, result: Result, static: bool) -> Gate | None:
        """Return what finds out for which layers of `model` integers pay here; None where nothing can."""
        able = {
            layer.name: kind_of(layer)
            for readers, reason in by_weight(model, context, self.exclude)
            for layer in readers
            if not reason and self._refusal(layer, model.graph, static) is None
        }
        if context.runtime is None or not able:
            return None
        if (target := find_target(context.target)) != find_target("host"):
            result.numbers["gate"] = f"nothing timed, the target {target.name} isn't this machine"
            return None
        fixed = replace(
            self,
            activations="static" if static else "dynamic",
            calibrator="min-max",
            equalize=False,
            correct=False,
        )

        def trial(floats: Collection[str]) -> Quant:
            return replace(fixed, weights_only=either(self.weights_only, floats))

        def quantize(part: ir.Model, floats: Collection[str], feeds: Feeds | None) -> ir.Model:
            data = random_data(part, count=1) if feeds is None else load_data([feeds], part)
            copy = clone(part)
            trial(floats).call(copy, replace(context, calibration=data, progress=silent))
            return copy

        def blocks(whole: ir.Model, floats: Collection[str]) -> list[list[ir.Node]]:
            free = [readers for readers, reason in by_weight(whole, context, self.exclude) if not reason]
            return trial(floats)._place(whole, free)[0].blocks()

        data = random_data(model, count=1) if context.calibration is None else context.calibration
        way = Trial(quantize, blocks if static else None)
        feeds: Feeds = next(iter(data))
        if self.batch:
            feeds = batched(model, feeds, self.batch)
        return Gate(model, feeds, able, way, context, self.seconds)

    def _refusal(self, layer: Layer, main: ir.Graph, static: bool) -> str | None:
        """Return why `layer` can't or mustn't compute with integers, or None."""
        if static:
            reason = refusal(layer, main)
        else:
            reason = None if layer.size >= self.min_size and multiplies_integers(layer) else ""
        if reason is None and self.weights_only and re.fullmatch(self.weights_only, layer.name):
            return "its weight only"
        return reason

    def _place(
        self, model: ir.Model, groups: list[list[Layer]]
    ) -> tuple[Placement, list[list[Layer]], dict[Layer, str | None]]:
        """Return where integers go, the layers that compute with them, by weight, and why others don't."""
        able, reasons = [], dict[Layer, str | None]()
        for readers in groups:
            reasons |= {layer: self._refusal(layer, model.graph, True) for layer in readers}
            fit = [layer for layer in readers if reasons[layer] is None]
            for layer in fit:
                if layer.channel_axes != fit[0].channel_axes:
                    reasons[layer] = f"{fit[0].name} has the channels of their weight along another axis"
            if fit:
                able.append([layer for layer in fit if reasons[layer] is None])
        weighted = {layer.node: layer for fit in able for layer in fit}
        return place(model.graph, weighted, absorb=not self.symmetric), able, reasons

    @property
    def _levels(self) -> int:
        return REDUCED if self.reduce_range == "on" else FULL

    def _compute(
        self, model: ir.Model, context: Context, result: Result, integers: Integers, groups: list[list[Layer]]
    ) -> tuple[list[list[Layer]], dict[Layer, np.ndarray]]:
        """Make what can compute with integers do so; return the layers that are left, by weight.

        With them the means of their input channels, as far as they are known.
        """
        placement, able, reasons = self._place(model, groups)
        weights = {fit[0].weight for fit in able}
        rest = [readers for readers in groups if readers[0].weight not in weights]
        done = [
            (layer, reasons[layer], layer.size)
            for readers in groups
            if readers[0].weight in weights
            for layer in readers
        ]
        gaps = list(placement.gaps())
        layers = [layer for fit in able for layer in fit]
        left = [layer for readers in rest for layer in readers]
        spread = spreads(placement, layers, left) if self.per_channel and not self.symmetric else []
        reads = {
            layer: value.name or ""
            for layer in [*layers, *(layer for layer in left if layer.size >= self.min_size)]
            if self._corrects(layer, model.graph) and (value := layer.node.inputs[0]) and not constant(value)
        }
        found = self._observe(model, context, placement, set(reads.values()), spread)
        form = Activations(self.signed, self.symmetric)
        clip = self.weights == "mse"
        steps = write(integers, placement, able, found, self.per_channel, form, self._levels, clip, spread)
        for layer, reason, size in done:
            result.changed(layer, f"stored as int8, {reason}" if reason else "computes with int8", size=size)
        for node in gaps:
            joins = activations(node)[0] is not None
            reason = "it also reads what stays float" if joins else f"no 8-bit {node.op_type}"
            result.left(node.name or node.op_type, reason)
        means = {
            layer: found.means[name] / steps.get(layer, 1) for layer, name in reads.items() if found.means
        }
        return rest, means

    def _observe(
        self,
        model: ir.Model,
        context: Context,
        placement: Placement,
        means: Collection[str],
        spread: list[Spread],
    ) -> Statistics:
        """Return what is found of activations on the calibration data, and the means of those in `means`."""
        names = [value.name or "" for value in placement.observed() if constant(value) is None]
        if not (names or means) or context.calibration is None or context.runtime is None:
            return Statistics({}, {}, {})
        return calibrate(
            model,
            names,
            context.calibration,
            context.runtime.patient(),
            self.calibrator,
            percentile=self.percentile,
            maxima=[each.value.name or "" for each in spread],
            means=sorted(means),
            progress=context.progress,
        )

    def _corrects(self, layer: Layer, main: ir.Graph) -> bool:
        """Return whether the bias of `layer` is to make up for what rounding its weight does to means."""
        able = self.correct and takes_bias(layer) and layer.node.graph is main and layer.position == 1
        return able and layer.bias() is not None

    def _store(
        self,
        readers: list[Layer],
        integers: Integers,
        result: Result,
        static: bool,
        dynamic: bool,
        means: Mapping[Layer, np.ndarray],
    ) -> None:
        """Store the weight that `readers` share as int8; what they read has the `means`, where known."""
        size, main = readers[0].size, integers.edit.model.graph
        if size < self.min_size:
            for layer in readers:
                result.left(layer, f"fewer than {self.min_size} elements", size=size)
            return
        reasons = {layer: self._refusal(layer, main, static) for layer in readers}
        able = [layer for layer in readers if dynamic and reasons[layer] is None]

        def correct(weight: np.ndarray, scale: np.ndarray) -> None:
            for layer in readers:
                bias = layer.bias()
                if layer in means and bias is not None:
                    put_bias(integers.edit, layer, bias + fallen(layer, weight, scale, means[layer]))

        clip = self.weights == "mse"
        products = integers.store(readers, able, self.per_channel, self._levels, clip, correct)
        for layer in readers:
            reason = f", {reasons[layer]}" if reasons[layer] else ""
            what = "multiplied as int8" if layer in products else f"stored as int8{reason}"
            result.changed(layer, what, size=size)
