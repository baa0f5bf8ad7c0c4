"""Channel pruning: whole channels go, wherever they are coupled, and the model stays dense."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxcompress.base import Context, Effect, Need, Pass, Result, option
from onnxcompress.channels import Channels, find, record
from onnxcompress.channels.mask import mask
from onnxcompress.channels.score import REDUCTIONS, SCORES, score_activations, score_weights
from onnxcompress.channels.units import Units
from onnxcompress.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class PruneChannels(Pass):
    """Remove the channels that matter least, in every layer they are coupled to.

    Before: ``y = Conv(Relu(Conv(x, A [64, 3, 3, 3])), B [32, 64, 3, 3])``
    After:  ``y = Conv(Relu(Conv(x, A' [32, 3, 3, 3])), B' [32, 32, 3, 3])``

    Channels that an addition, a depthwise convolution, attention or the like ties together are one unit and
    go together; the groups of grouped convolutions and of channel shuffles keep equal counts. Inputs and
    outputs stay, and what an operator would mix without weights (normalisation or softmax over channels);
    no layer loses all. The outputs are those of the model whose removed channels are zero where layers read
    them, to which ``apply=false`` leads. Source: Li et al., Pruning Filters for Efficient ConvNets, ICLR
    2017; Fang et al., DepGraph, CVPR 2023.
    """

    name: ClassVar[str] = "prune-channels"
    effect: ClassVar[Effect] = Effect.LOSSY
    uses: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION, Need.SEED})

    ratio: float = option(0.5, "share of the channels to remove", within=(0.0, 1.0))
    score: str = option("l2", "what tells how much a channel matters", choices=SCORES)
    reduce: str = option("mean", "how the scores of coupled layers become one", choices=REDUCTIONS)
    apply: bool = option(True, "remove the channels; false: only multiply them by constants of 0 and 1")
    exclude: str = option(
        "", "leave layers alone whose whole name matches this regular expression", pattern=True
    )

    def call(self, model: ir.Model, context: Context) -> Result:
        """Prune `model` in place."""
        result = Result(model)
        channels = find(model, context, self.exclude)
        score = self.scores(channels, context)
        plan = channels.plan(lambda units: self.chosen(units, score))
        record(result, channels, plan)
        if self.apply:
            channels.remove(plan)
        else:
            mask(channels, plan)
        return result

    def scores(self, channels: Channels, context: Context) -> np.ndarray:
        """Return the score of each unit, float64 [units]."""
        if self.score == "random":
            return np.random.default_rng(context.seed).random(channels.units.count)
        if self.score not in ("activation", "energy"):
            return score_weights(channels, self.score, self.reduce)
        if context.calibration is None or context.runtime is None:
            raise UsageError(f"prune-channels: score={self.score} needs calibration data, none was given")
        return score_activations(channels, context.calibration, context.runtime, self.score, self.reduce)

    def chosen(self, units: Units, score: np.ndarray) -> np.ndarray:
        """Return which units stay, bool [units]."""
        return units.choose(score, np.full(units.count, self.ratio))
