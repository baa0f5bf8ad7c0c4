"""Quantization of matrix products in blocks of 2, 4 or 8 bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxcompress import blockwise
from onnxcompress.base import Context, Effect, Need, Pass, Result, option
from onnxcompress.blocks import BITS, SIZES, Blocks
from onnxcompress.blockwise import FLOAT, INT8, PORTABLE, PORTABLE_OPSET, Form
from onnxcompress.edit import Edit
from onnxcompress.errors import UsageError
from onnxcompress.fastest import ROWS, Fastest
from onnxcompress.layers import Layer, by_weight
from onnxcompress.model import clone, convert_up


@dataclass(frozen=True, kw_only=True)
class QuantBlocks(Pass):
    """Multiply with weights of 2, 4 or 8 bits, scaled in blocks along each output.

    Before: ``y = MatMul(x, W)``, or Gemm
    After:  ``y = MatMulNBits(x, W_packed, scales)`` of onnxruntime, a Gemm's bias being added behind it

    Weights that hold one magnitude and zeros in each block, as ternary ones do, keep their values exactly.
    onnxruntime multiplies such weights as floats, or rounds activations to 8 bits, too, which is often
    several times as fast or the only fast way: both are timed against the float product on this machine, with
    the rows of the first calibration sample (else those that the model names, or one), and the fastest is
    taken whose outputs differ by no more than ``max_error`` from the exact product with the stored weight.
    Layers that get no faster stay float with ``when=faster``. Records hold that difference (``error``), the
    ratio of the times and its 95 % interval, and, once the weight is written, its signal-to-noise ratio.
    Products of one shape are timed once. A second run looks again at what stayed float.

    ``contrib=false`` writes ``MatMul(x, DequantizeLinear(W, scales))`` with blocks instead, standard ONNX
    from opset 21 on, for 4 and 8 bits; onnxruntime makes MatMulNBits of it as it loads the model, and rounds
    activations, so that ``max_error`` holds there, too. Weights are read when they are written, several at a
    time, and not held in memory; those that are measured, one of each shape, are read before, too, and up to
    4 million elements of each for the error. With ``when=always,activations=float`` there is nothing to
    measure.
    Source: onnxruntime, ContribOperators.md, MatMulNBits; Dettmers et al., ICLR 2022 (blocks).
    """

    name: ClassVar[str] = "quant-blocks"
    effect: ClassVar[Effect] = Effect.LOSSY
    uses: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION, Need.RUNTIME})

    bits: int = option(4, "bits of a number", choices=BITS)
    block: int = option(32, "numbers that share a scale", choices=SIZES)
    symmetric: bool = option(True, "zero in the middle of each block, not a zero point for each")
    scales: str = option(
        "min-max",
        "by the range of each block, or of the least squared error (slower)",
        choices=("min-max", "mse"),
    )
    activations: str = option(
        "auto",
        "multiplied as floats, or rounded to 8 bits; auto is what is measured to be faster",
        choices=("auto", "float", "int8"),
    )
    max_error: float = option(
        0.01, "relative difference that rounding activations may make to a layer", within=(0.0, 1.0)
    )
    when: str = option(
        "faster", "only where it is measured to be faster than float", choices=("faster", "always")
    )
    contrib: bool = option(True, "MatMulNBits of onnxruntime, not standard operators")
    seconds: float = option(120.0, "time to measure latencies, in all", within=(0.0, 1e9))
    min_size: int = option(1024, "leave weights with fewer elements alone", within=(0, 2**62))
    exclude: str = option(
        "", "leave layers alone whose whole name matches this regular expression", pattern=True
    )

    def call(self, model: ir.Model, context: Context) -> Result:
        """Put matrix products in blocks in place."""
        self._check(context)
        if not self.contrib and any(self._chosen(model, context, Result(model))):
            convert_up(model, PORTABLE_OPSET)
        result, edit = Result(model), Edit(model)
        fastest = Fastest(context, self._forms(), self.max_error, self.when == "faster", self.seconds)
        chosen = self._chosen(model, context, result)
        samples = self._samples(model, chosen, context)
        for readers in chosen:
            layer = readers[0]
            blocks = self._blocks(layer)
            numbers = blockwise.numbers(blocks, layer)
            found = fastest.best(layer, blocks, samples.get(layer), numbers)
            if isinstance(found, str):
                result.left_all(readers, found, **numbers)
                continue
            what = f"in blocks of {self.bits} bits, {found.what}"
            records = [result.changed(each, what, **numbers) for each in readers]
            blockwise.write(edit, readers, blocks, found, records)
        return result

    def _check(self, context: Context) -> None:
        if not self.contrib and self.bits == 2:
            raise UsageError(f"{self.name}: option bits is 2 with contrib=false, expected 4 or 8")
        if not self.contrib and self.activations == "int8":
            raise UsageError(f"{self.name}: option activations is int8 with contrib=false, expected float")
        if self.when == "faster" and context.runtime is None:
            raise UsageError(f"{self.name}: when=faster needs a runtime to measure with, none was given")

    def _forms(self) -> tuple[Form, ...]:
        if not self.contrib:
            return (PORTABLE,)
        return {"auto": (INT8, FLOAT), "float": (FLOAT,), "int8": (INT8,)}[self.activations]

    def _chosen(self, model: ir.Model, context: Context, result: Result) -> list[list[Layer]]:
        """Return the layers whose weights can be in blocks, by weight; of others the reason is recorded."""
        chosen, functions = [], {each.graph for each in model.functions.values()}
        for readers, reason in by_weight(model, context, self.exclude):
            reasons = [reason or blockwise.refusal(each, functions) for each in readers]
            if not any(reasons):
                others = len(readers[0].weight.uses()) > len(readers) or readers[0].weight.is_graph_output()
                alike = len({blockwise.sizes(each) for each in readers}) == 1
                alike &= len({each.node.attributes.get_int("transB", 0) for each in readers}) == 1
                reasons = ["its weight is also read in another way" if others or not alike else None] * len(
                    readers
                )
            if not any(reasons) and readers[0].size < self.min_size:
                reasons = [f"fewer than {self.min_size} elements"] * len(readers)
            if not any(reasons):
                chosen.append(readers)
                continue
            shared = next(each.name for each, why in zip(readers, reasons, strict=True) if why)
            for each, why in zip(readers, reasons, strict=True):
                result.left(each, why or f"{shared}, which shares its weight, must stay")
        return chosen

    def _blocks(self, layer: Layer) -> Blocks:
        dtype = np.float16 if layer.tensor.dtype == ir.DataType.FLOAT16 else np.float32
        return Blocks(self.bits, self.block, self.symmetric, self.scales == "mse", dtype)

    def _samples(
        self, model: ir.Model, chosen: Sequence[Sequence[Layer]], context: Context
    ) -> dict[Layer, np.ndarray]:
        """Return the rows [rows, inputs] that layers read for the first calibration sample."""
        data, runtime = context.calibration, context.runtime
        layers = [readers[0] for readers in chosen if readers[0].node.graph is model.graph]
        feed = next(iter(data), None) if data is not None else None
        if feed is None or runtime is None or not layers:
            return {}
        names = [each.node.inputs[0].name or "" for each in layers if each.node.inputs[0] is not None]
        found = runtime.patient().prepare(clone(model), outputs=list(dict.fromkeys(names))).run(feed)
        pairs = zip(layers, names, strict=True)
        return {each: found[name].reshape(-1, found[name].shape[-1])[:ROWS] for each, name in pairs}
