"""Channel pruning: whole channels go, wherever they are coupled, and the model stays dense."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import onnx_ir as ir

from onnxcompress.base import Context, Effect, Need, Pass, Result, Runtime, option
from onnxcompress.channels import Channels, Plan, find, record
from onnxcompress.channels.counts import Counts, counts
from onnxcompress.channels.mask import mask
from onnxcompress.channels.repair import REPAIRS, aims, repair
from onnxcompress.channels.score import REDUCTIONS, SCORES, score_activations, score_weights
from onnxcompress.channels.units import Units
from onnxcompress.errors import UsageError
from onnxcompress.model import clone

if TYPE_CHECKING:
    from onnxcompress.data import Data

STEPS = 10  # halvings of the search for the ratio that keeps a budget


@dataclass(frozen=True, kw_only=True)
class PruneChannels(Pass):
    """Remove the channels that matter least, in every layer they are coupled to.

    Before: ``y = Conv(Relu(Conv(x, A [64, 3, 3, 3])), B [32, 64, 3, 3])``
    After:  ``y = Conv(Relu(Conv(x, A' [32, 3, 3, 3])), B' [32, 32, 3, 3])``

    Channels that an addition, a depthwise convolution, attention or the like ties together are one unit and
    go together; the groups of grouped convolutions and of channel shuffles keep equal counts. Inputs and
    outputs stay, and what an operator would mix without weights (normalisation or softmax over channels);
    no layer loses all. The outputs are those of the model whose removed channels are zero where they are
    read, to which ``apply=false`` leads. A second run removes as large a share of what is left. Source: Li et
    al., Pruning Filters for Efficient ConvNets, ICLR 2017; Fang et al., DepGraph, CVPR 2023.
    """

    name: ClassVar[str] = "prune-channels"
    effect: ClassVar[Effect] = Effect.LOSSY
    uses: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION, Need.SEED})

    ratio: float = option(0.5, "share of the channels to remove", within=(0.0, 1.0))
    scope: str = option("layer", "the same share of each layer, or one ranking", choices=("layer", "global"))
    macs: float = option(
        0.0, "share of the multiply-accumulates to keep, which sets the ratio; 0: don't", within=(0.0, 1.0)
    )
    parameters: float = option(
        0.0, "share of the parameters to keep, which sets the ratio; 0: don't", within=(0.0, 1.0)
    )
    multiple_of: int = option(1, "keep a multiple of this many channels of each layer", within=(1, 1024))
    score: str = option("l2", "what tells how much a channel matters", choices=SCORES)
    reduce: str = option("mean", "how the scores of coupled layers become one", choices=REDUCTIONS)
    repair: str = option(
        "none", "what calibration data mend afterwards: biases, or weights as well", choices=REPAIRS
    )
    apply: bool = option(True, "remove the channels; false: only multiply them by constants of 0 and 1")
    exclude: str = option(
        "", "leave layers alone whose whole name matches this regular expression", pattern=True
    )

    def call(self, model: ir.Model, context: Context) -> Result:
        """Prune `model` in place."""
        result = Result(model)
        if self.repair != "none":
            self.calibration(context, f"repair={self.repair}")
        channels = find(model, context, self.exclude)
        score = self.scores(channels, context)
        plan = self.planned(channels, score)
        record(result, channels, plan)
        self.missed(result, channels, plan)
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
                    found.numbers["repair"] = done[found.layer]
        return result

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

    def planned(self, channels: Channels, score: np.ndarray) -> Plan:
        """Return what to remove: by the ratio, or by the smallest one that keeps within the budgets."""
        if not self.macs and not self.parameters:
            return self.removal(channels, score, self.ratio)
        most, low, high = self.budget(channels), 0.0, 1.0
        for _ in range(STEPS):
            middle = (low + high) / 2
            left = counts(channels, self.removal(channels, score, middle))
            if left.macs <= most.macs and left.parameters <= most.parameters:
                high = middle
            else:
                low = middle
        return self.removal(channels, score, high)

    def budget(self, channels: Channels) -> Counts:
        """Return how many parameters and multiply-accumulates may stay."""
        whole = counts(channels)
        return Counts((self.parameters or 1) * whole.parameters, (self.macs or 1) * whole.macs)

    def missed(self, result: Result, channels: Channels, plan: Plan) -> None:
        """Record what more than the budgets `plan` keeps, which then is all that can't go."""
        for name, most, left in zip(
            Counts._fields, self.budget(channels), counts(channels, plan), strict=True
        ):
            if getattr(self, name) and left > most:
                result.left("model", f"the budget of {name} can't be kept", most=most, left=left)

    def removal(self, channels: Channels, score: np.ndarray, ratio: float) -> Plan:
        """Return how to remove the share `ratio` of the channels."""

        def choose(units: Units) -> np.ndarray:
            return units.choose(score, self.shares(units, score, ratio), self.multiple_of)

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
