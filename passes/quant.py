"""Quantization to int8: weights, and activations as far as they are known."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from onnxcompress.base import Context, Effect, Need, Pass, Result, option
from onnxcompress.calibrate import METHODS
from onnxcompress.channels.equalizing import equalize
from onnxcompress.correction import fallen, rounded_off
from onnxcompress.data import random_data
from onnxcompress.edit import Edit, same_ports
from onnxcompress.errors import UsageError
from onnxcompress.folding import fold_batch_norms
from onnxcompress.gate import Gate, batched, either, kind_of
from onnxcompress.integer import DYNAMIC_OPSET, Integers, multiplies_integers
from onnxcompress.layers import Layer, by_weight
from onnxcompress.linear import put_bias
from onnxcompress.model import convert_up
from onnxcompress.placement import STATIC_OPSET
from onnxcompress.qdq import refusal
from onnxcompress.quantize import FULL, REDUCED, Activations
from onnxcompress.static import Means, Static
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
        "leave weights with fewer elements in float, as their int8 form takes as much room; not those of "
        "layers that static quantization lets compute with integers",
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
        means: Means = {}
        if static:
            groups, means = self._static(model.graph).compute(integers, context, result, groups)
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
            equalized = self.equalize and not self.symmetric
            for name in equalize(model, context, self.exclude)[0] if equalized else ():
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

        def blocks(whole: ir.Model, floats: Collection[str]) -> list[list[ir.Node]]:
            free = [readers for readers, reason in by_weight(whole, context, self.exclude) if not reason]
            return trial(floats)._static(whole.graph).place(whole.graph, free).placement.blocks()

        data = random_data(model, count=1) if context.calibration is None else context.calibration
        given = next(iter(data))
        feeds = batched(model, given, self.batch) if self.batch else given
        return Gate(model, feeds, able, trial, blocks if static else None, context, self.seconds)

    def _refusal(self, layer: Layer, main: ir.Graph, static: bool) -> str | None:
        """Return why `layer` can't or mustn't compute with integers, or None."""
        if static:
            reason = refusal(layer, main)
        else:
            reason = None if layer.size >= self.min_size and multiplies_integers(layer) else ""
        if reason is None and self.weights_only and re.fullmatch(self.weights_only, layer.name):
            return "its weight only"
        return reason

    def _static(self, main: ir.Graph) -> Static:
        """Return how layers of the graph `main` get to compute with integers."""
        return Static(
            refusal=lambda layer: self._refusal(layer, main, True),
            per_channel=self.per_channel,
            levels=self._levels,
            clip=self._clip,
            form=Activations(self.signed, self.symmetric),
            calibrator=self.calibrator,
            percentile=self.percentile,
            correct=self.correct,
            min_size=self.min_size,
        )

    @property
    def _levels(self) -> int:
        return REDUCED if self.reduce_range == "on" else FULL

    @property
    def _clip(self) -> bool:
        return self.weights == "mse"

    def _store(
        self,
        readers: list[Layer],
        integers: Integers,
        result: Result,
        static: bool,
        dynamic: bool,
        means: Means,
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
                    fall = fallen(layer, rounded_off(weight, scale), means[layer])
                    put_bias(integers.edit, layer, bias + fall)

        products = integers.store(readers, able, self.per_channel, self._levels, self._clip, correct)
        for layer in readers:
            reason = f", {reasons[layer]}" if reasons[layer] else ""
            what = "multiplied as int8" if layer in products else f"stored as int8{reason}"
            result.changed(layer, what, size=size)
