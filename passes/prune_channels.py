"""Channel pruning: whole channels go, wherever they are coupled, and the model stays dense."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxcompress.base import Context, Effect, Need, Number, Pass, Result, Runtime, option
from onnxcompress.budget import Budget, PrunedLatency
from onnxcompress.channels import Channels, Plan, find, record
from onnxcompress.channels.mask import mask
from onnxcompress.channels.repair import REPAIRS, aims, repair
from onnxcompress.channels.score import REDUCTIONS, SCORES, score_activations, score_weights
from onnxcompress.channels.units import Units
from onnxcompress.errors import UsageError
from onnxcompress.model import clone
from onnxcompress.target import find_target

if TYPE_CHECKING:
    from onnxcompress.data import Data


@dataclass(frozen=True, kw_only=True)
class PruneChannels(Pass):
    """Remove the channels that matter least, in every layer they are coupled to.

    Before: ``y = Conv(Relu(Conv(x, A [64, 3, 3, 3])), B [32, 64, 3, 3])``
    After:  ``y = Conv(Relu(Conv(x, A' [32, 3, 3, 3])), B' [32, 32, 3, 3])``

    Channels that an addition, a depthwise convolution, attention or the like ties together are one unit and
    go together; the groups of grouped convolutions and of channel shuffles keep equal counts. Inputs and
    outputs stay, and what an operator would mix without weights (normalisation or softmax over channels);
    no layer loses all. The outputs are those of the model whose removed channels are zero where they are
    read, to which ``apply=false`` leads. A second run removes as large a share of what is left.

    Engines compute channels in blocks, and odd numbers of them can make a model slower than it was.
    ``multiple_of=0`` keeps multiples of what the target computes at a time, halved until they are at most a
    quarter of the layer. What layers keep too many by this is taken from those after them, so that together
    they lose the share asked for. A multiple that is given holds for all layers: those no wider stay whole.

    ``latency``, ``macs`` and ``parameters`` are budgets: the smallest ratio that keeps them is searched for,
    and where none does, the pass fails. Latency is measured beside the original's on this machine, on one
    sample; a model keeps the budget where the whole 95 % interval of the ratio does. What was measured is in
    the report, with the recipe that does the same without measuring (``repeat``), for the same target.

    With calibration data ``auto`` does what loses least: channels go in the order in which the others can
    make up for them (``score=residual``, ``scope=global``, ``reduce=sum``), and then every layer that reads
    something else than before is fitted to what it computed (``repair=least-squares``). Without them it is
    ``score=l2``, ``scope=layer``, ``reduce=mean`` and ``repair=none``. One ranking takes the channels that
    matter least, which may not be those that cost most: with ``macs`` or ``parameters`` the cost is set.

    Source: Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017; He et al., Channel Pruning, ICCV
    2017; Fang et al., DepGraph, CVPR 2023.
    """

    name: ClassVar[str] = "prune-channels"
    effect: ClassVar[Effect] = Effect.LOSSY
    uses: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION, Need.RUNTIME, Need.SEED, Need.TARGET})

    ratio: float = option(0.5, "share of the channels to remove", within=(0.0, 1.0))
    scope: str = option(
        "auto", "the same share of each layer, or one ranking", choices=("auto", "layer", "global")
    )
    macs: float = option(
        0.0, "share of the multiply-accumulates to keep, which sets the ratio; 0: don't", within=(0.0, 1.0)
    )
    parameters: float = option(
        0.0, "share of the parameters to keep, which sets the ratio; 0: don't", within=(0.0, 1.0)
    )
    latency: float = option(
        0.0, "share of the latency to keep, which sets the ratio; 0: don't", within=(0.0, 1.0)
    )
    multiple_of: int = option(
        0, "keep a multiple of this many channels of each layer; 0: by the target", within=(0, 1024)
    )
    score: str = option("auto", "what tells how much a channel matters", choices=("auto", *SCORES))
    reduce: str = option("auto", "how the scores of coupled layers become one", choices=("auto", *REDUCTIONS))
    repair: str = option(
        "auto",
        "what calibration data mend afterwards: biases, or weights as well",
        choices=("auto", *REPAIRS),
    )
    apply: bool = option(True, "remove the channels; false: only multiply them by constants of 0 and 1")
    exclude: str = option(
        "", "leave layers alone whose whole name matches this regular expression", pattern=True
    )

    def call(self, model: ir.Model, context: Context) -> Result:
        """Prune `model` in place."""
        decided = self.decided(context)
        if decided != self:
            return decided.call(model, context)
        result = Result(model)
        if self.repair != "none":
            self.calibration(context, f"repair={self.repair}")
        channels = find(model, context, self.exclude)
        plan = self.planned(channels, context, result)
        record(result, channels, plan)
        if not self.apply:
            mask(channels, plan)
            return result
        whole = clone(model)
        layers = aims(channels, plan)
        channels.remove(plan)
        if self.repair != "none" and not plan.stay.all():
            data, runtime = self.calibration(context, f"repair={self.repair}")
            done = repair(
                whole, model, layers, data, runtime, self.repair, seed=context.seed, progress=context.progress
            )
            for found in result.records:
                if found.layer in done:
                    found.numbers["repair"] = done.pop(found.layer)
            for name, what in done.items():
                result.changed(name, what)
        return result

    def decided(self, context: Context) -> PruneChannels:
        """Return the pass with what "auto" stands for."""
        given = context.calibration is not None and context.runtime is not None
        score = self.score if self.score != "auto" else "residual" if given else "l2"
        defaults = {
            "score": score,
            "scope": "global" if score == "residual" else "layer",
            "reduce": "sum" if score == "residual" else "mean",
            "repair": "least-squares" if given and self.apply else "none",
        }
        auto: dict[str, Any] = {each: defaults[each] for each in defaults if getattr(self, each) == "auto"}
        return replace(self, **auto)

    def calibration(self, context: Context, what: str) -> tuple[Data, Runtime]:
        """Return calibration data and the engine to run them; UsageError where there are none."""
        if context.calibration is None or context.runtime is None:
            raise UsageError(f"prune-channels: {what} needs calibration data, none was given")
        return context.calibration, context.runtime

    def scores(self, channels: Channels, context: Context) -> np.ndarray:
        """Return the score of each unit, float64 [units]."""
        if self.score == "random":
            return np.random.default_rng(context.seed).random(channels.units.count)
        if self.score in ("l1", "l2", "batchnorm"):
            return score_weights(channels, self.score, self.reduce)
        data, runtime = self.calibration(context, f"score={self.score}")
        return score_activations(channels, data, runtime, self.score, self.reduce)

    def planned(self, channels: Channels, context: Context, result: Result) -> Plan:
        """Return what to remove: by the ratio, or by the smallest one that keeps within the budgets."""
        multiple = self.multiple
        if not self.multiple_of:
            target = find_target(context.target)
            multiple, result.numbers["target"] = target.step, target.name
        plans = partial(self.removal, channels, self.scores(channels, context), multiple)
        if not (self.macs or self.parameters or self.latency):
            return plans(self.ratio)
        self.search(channels, plans, context, result)
        return plans(float(result.numbers["ratio"]))

    def multiple(self, channels: int) -> int:
        """Return the number a multiple of which a layer of so many `channels` keeps."""
        return self.multiple_of

    def search(
        self, channels: Channels, plans: Callable[[float], Plan], context: Context, result: Result
    ) -> None:
        """Put the ratio that keeps the budgets into `result`, and what is to be known to do it again."""
        stopwatch = None
        if self.latency:
            if context.runtime is None:
                raise UsageError("prune-channels: latency needs a runtime, none was given")
            stopwatch = PrunedLatency(channels.model, context, context.runtime, self.exclude)
        ratio = Budget(self.parameters, self.macs, self.latency).ratio(channels, plans, stopwatch)
        again = replace(self, ratio=ratio, parameters=0.0, macs=0.0, latency=0.0)
        found: dict[str, Number] = {"ratio": ratio, "repeat": str(again)}
        if stopwatch is not None:
            stay = plans(ratio).stay
            time = stopwatch.time(stay)
            result.widths = stopwatch.widths(stay)
            found |= {"latency": time.ratio, "latency_low": time.low, "latency_high": time.high}
            found |= {"pairs": time.pairs, "threads": context.threads}
        result.numbers |= found

    def removal(
        self, channels: Channels, score: np.ndarray, multiple: Callable[[int], int], ratio: float
    ) -> Plan:
        """Return how to remove the share `ratio` of the channels."""

        def choose(units: Units) -> np.ndarray:
            return units.choose(score, self.shares(units, score, ratio), multiple)

        channels.units = Units(channels.flow)  # what an earlier plan gave up may work now
        return channels.plan(choose)

    def shares(self, units: Units, score: np.ndarray, ratio: float) -> np.ndarray:
        """Return the share of its family that goes, float64 [units]."""
        free = ~units.frozen & (units.family >= 0)
        if self.scope == "layer" or not free.any():
            return np.full(units.count, ratio)
        low = free & (score <= np.quantile(score[free], ratio)) & (ratio > 0)
        found = np.zeros(units.count)
        for family in units.families:
            found[family.units] = low[family.units].mean()
        return found
