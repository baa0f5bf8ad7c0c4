"""Factorising: layers written as chains of cheaper ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from onnxcompress.base import Context, Effect, Need, Number, Pass, Result, option
from onnxcompress.chains import is_factor, write_chain
from onnxcompress.choice import Choice, timer
from onnxcompress.convolve import Window
from onnxcompress.cost import chain_cost
from onnxcompress.edit import Edit, same_ports
from onnxcompress.errors import CompressError, UsageError
from onnxcompress.factors import METHODS, Method, Svd
from onnxcompress.geometry import known_sizes, oriented, window
from onnxcompress.layers import Layer, by_weight
from onnxcompress.linear import Linear, give_bias, linear
from onnxcompress.loss import decibels
from onnxcompress.model import clone
from onnxcompress.moments import Moments, second_moments
from onnxcompress.parts import Stopwatch


@dataclass(frozen=True, kw_only=True)
class Factorise(Pass):
    """Write convolutions and matrix products as chains of smaller ones.

    Before: ``y = Conv(x, W, b)``
    After:  ``y = Conv(Conv(x, W1), W2, b)``

    ``svd`` is the whole kernel with few outputs, then 1 x 1 (for Gemm and MatMul two matrices); ``separable``
    k x 1, then 1 x k; ``tucker`` 1 x 1, k x k, 1 x 1; ``depthwise`` k x k on each channel by itself, then
    1 x 1; ``two-3x3`` two kernels of 3 for one of 5. Each gets the lowest rank that keeps ``energy`` of the
    layer's outputs; or the rank given; or the highest one within the budgets of parameters and
    multiplications. ``auto`` takes, of all that fit, the cheapest (by the sum of both shares), with a rank or
    budget the one that keeps most energy.

    With ``when=faster`` a chain must also be faster on this machine: it and the layer are run in turns, on
    one sample, and it is taken where the whole 95 % interval of the ratio is below 0.99; of all, the fastest.
    Ranks that are multiples of 16 are tried beside those that the energy asks for. ``latency`` is a budget:
    the highest rank whose measured ratio, at the upper end of the interval, isn't above it. Records hold the
    ratio. Layers and chains that are alike are timed once.

    Energy is the variance of the outputs on calibration data, where there are some: inputs that hardly vary
    cost no rank, the last kernel makes the error of the others least, and the bias takes up what they lose on
    average (where there is no place for one, energy is the mean square). Layers in the bodies of If and Loop,
    and all layers without such data, count their inputs as white: energy then is the sum of squares of the
    weight. Of layers with more than 4,608 inputs (channels times kernel) only ``svd`` uses the data. Grouped,
    tied and quantized layers stay, and those that others follow without a non-linearity between: they are
    factors already, so a second run is idle (with data, but for layers that just missed the energy: their
    inputs have changed).
    Source: Denton et al., NIPS 2014 (svd); Jaderberg et al., BMVC 2014 (separable); Kim et al., ICLR 2016
    (tucker); Guo et al., BMVC 2018 (depthwise); Zhang et al., TPAMI 2016 (data).
    """

    name: ClassVar[str] = "factorise"
    effect: ClassVar[Effect] = Effect.LOSSY
    uses: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION, Need.RUNTIME})

    method: str = option("auto", "which chain", choices=("auto", *(each.name for each in METHODS)))
    energy: float = option(0.99, "share of the energy of each layer's outputs to keep", within=(0.0, 1.0))
    rank: int = option(
        0, "no rank above this, whatever the energy (0: by energy or budget)", within=(0, 2**62)
    )
    params: float = option(
        1.0, "share of each layer's parameters to keep, whatever the energy (1: by energy)", within=(0.0, 1.0)
    )
    macs: float = option(
        1.0, "share of each layer's multiplications to keep, whatever the energy", within=(0.0, 1.0)
    )
    latency: float = option(
        1.0, "share of each layer's measured latency to keep, whatever the energy", within=(0.0, 1.0)
    )
    when: str = option(
        "cheaper",
        "only where parameters and multiplications get fewer, or where that is measured to be faster, too",
        choices=("cheaper", "always", "faster"),
    )
    seconds: float = option(120.0, "time to measure latencies, in all", within=(0.0, 1e9))
    min_size: int = option(1024, "leave weights with fewer elements alone", within=(0, 2**62))
    exclude: str = option(
        "", "leave layers alone whose whole name matches this regular expression", pattern=True
    )

    def call(self, model: ir.Model, context: Context) -> Result:
        """Factorise the layers of `model` in place."""
        result, edit, watch = Result(model), Edit(model), self.watch(context)
        with same_ports(model):
            ShapeInferencePass()(model)  # sizes tell what a chain costs
        chosen: dict[Layer, Window] = {}
        for readers, reason in list(by_weight(model, context, self.exclude)):
            found = reason or self.refusal(readers) or window(readers[0])
            if isinstance(found, str):
                result.left_all(readers, found)
            else:
                chosen[readers[0]] = found
        seen: Mapping[Layer, Window] = {}
        if context.calibration is not None and context.runtime is not None:
            seen = {layer: each for layer, each in chosen.items() if layer.node.graph is model.graph}
        for batch in second_moments(clone(model), seen, context):
            for layer, moments in batch.items():
                self.factorise(edit, layer, chosen.pop(layer), moments, watch, result)
        for layer, whole in chosen.items():
            self.factorise(edit, layer, whole, Moments(), watch, result)
        return result

    @property
    def choice(self) -> Choice:
        """What a chain must keep and may cost."""
        return Choice(**{each.name: getattr(self, each.name) for each in fields(Choice)})

    def watch(self, context: Context) -> Stopwatch | None:
        """Return what times chains, where they are chosen by time."""
        if not self.choice.by_time:
            return None
        if context.runtime is None:
            raise UsageError(f"{self.name}: measured latency needs a runtime to measure with, none was given")
        return Stopwatch(context, self.seconds)

    def refusal(self, readers: list[Layer]) -> str | None:
        """Return why the weight that `readers` share must stay, or None."""
        layer = readers[0]
        node, weight = layer.node, layer.weight
        if layer.op not in ("Conv", "Gemm", "MatMul"):
            return f"{layer.op} is not factorised"
        if len(weight.uses()) > 1 or weight.is_graph_output():
            return "its weight is read more than once"
        if layer.size < self.min_size:
            return "too small"
        if node.attributes.get_int("group", 1) != 1:
            return "a grouped convolution"
        return "a factor already" if is_factor(node) else None

    def factorise(
        self,
        edit: Edit,
        layer: Layer,
        whole: Window,
        moments: Moments,
        watch: Stopwatch | None,
        result: Result,
    ) -> None:
        """Put the best chain in the place of `layer`, where there is one."""
        weight, view = oriented(layer), linear(layer)
        if isinstance(view, str) or not view.takes_bias():
            moments = moments.about_zero(weight)
        if not weight.any():
            result.left(layer, "all its weights are zero")
            return
        kinds: list[type[Method]] = [
            each for each in METHODS if self.method in ("auto", each.name) and each.fits(weight.shape)
        ]
        if moments.outputs is not None and self.method == "auto":
            kinds = [Svd]  # the only one that these moments serve
        if not kinds:
            result.left(
                layer, f"no {self.method} form of this kernel", kernel="x".join(map(str, layer.shape))
            )
            return
        sizes, known = known_sizes(layer)
        before = chain_cost([whole], sizes)
        numbers: dict[str, Number] = {"parameters": before.parameters}
        methods = [kind(weight, moments.inputs, moments.outputs) for kind in kinds]
        try:
            timed = None if watch is None else timer(watch, edit.model, layer.node)
            best = self.choice.best(methods, whole, sizes, timed, numbers)
        except CompressError as error:  # it can't be timed
            best = str(error)
        if isinstance(best, str):
            result.left(layer, best, **numbers)
            return
        kernels, product = best.method.kernels(best.ranks)
        if known:
            numbers |= {"macs": before.macs, "macs_after": best.cost.macs}
        result.changed(
            layer,
            f"factorised by {best.method.name}",
            rank="x".join(map(str, best.ranks)),
            energy=best.kept,
            parameters_after=best.cost.parameters,
            macs_share=best.cost.macs / before.macs,
            snr=decibels(best.method.matrix, product),
            **numbers,
        )
        if isinstance(view, Linear) and moments.mean is not None:
            lost = (best.method.matrix - product) @ moments.mean
            give_bias(edit, view, view.bias() + lost * layer.node.attributes.get_float("alpha", 1.0))
        write_chain(edit, layer, kernels, best.windows)
