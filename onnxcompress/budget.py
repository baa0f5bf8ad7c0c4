"""How much channel pruning a budget takes: search for the ratio, and latency of plans, measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxcompress.base import Context, Runtime, Width
from onnxcompress.channels import Channels, Plan, find
from onnxcompress.channels.counts import counts
from onnxcompress.data import random_data
from onnxcompress.errors import BoundError, UsageError
from onnxcompress.measure import Latency, latencies
from onnxcompress.model import clone

STEPS = 10  # halvings of the search
SECONDS = 1.0  # to time a plan, at least
PAIRS = 30


def smallest(fits: Callable[[float], bool]) -> float | None:
    """Return the smallest ratio in (0, 1] that `fits`, to 1/1024; None where 1 doesn't.

    It is found by halving: where larger ratios fit less now and then, as those of latency may, what is
    returned fits, but need not be the smallest.
    """
    if not fits(1.0):
        return None
    low, high = 0.0, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        if fits(middle):
            high = middle
        else:
            low = middle
    return high


@dataclass(frozen=True)
class Budget:
    """The shares of a model's own figures that a pruned one may have; 0: any."""

    parameters: float = 0.0
    macs: float = 0.0
    latency: float = 0.0

    def ratio(
        self, channels: Channels, plans: Callable[[float], Plan], stopwatch: PrunedLatency | None = None
    ) -> float:
        """Return the smallest ratio whose plan keeps this budget; see :func:`smallest`.

        `stopwatch` times plans, where latency is limited: the upper end of the 95 % interval must keep it.
        BoundError, with what is missed, where no plan does.
        """
        whole = counts(channels)

        def excess(plan: Plan) -> str | None:
            left = counts(channels, plan)
            for name in ("parameters", "macs"):
                now, before, most = getattr(left, name), getattr(whole, name), getattr(self, name)
                if most and now > most * before:
                    return f"{name} are {now / before:.3f} of the original's at least, expected {most:g}"
            if (
                self.latency
                and stopwatch is not None
                and (time := stopwatch.time(plan.stay)).high > self.latency
            ):
                found = f"{time.ratio:.3f} ({time.low:.3f} to {time.high:.3f}) of the original's"
                return f"latency is {found} with all removed that can be, expected {self.latency:g}"
            return None

        found = smallest(lambda ratio: excess(plans(ratio)) is None)
        if found is None:
            raise BoundError(f"prune-channels: {excess(plans(1.0))}")
        return found


class PrunedLatency:
    """Latency of pruned models beside that of `model`, each measured once.

    Both run in turns in the engine `runtime` with the threads of `context`, on the first feed of its
    calibration data or else one of random values: a single sample where the model leaves the number open.
    `exclude` is as in :func:`onnxcompress.channels.find`. UsageError where random values need a shape that
    the model leaves open.
    """

    def __init__(self, model: ir.Model, context: Context, runtime: Runtime, exclude: str = "") -> None:
        self.model, self.context, self.exclude = model, context, exclude
        self.engine = runtime.make(threads=context.threads)
        data = context.calibration
        if data is None:
            data = random_data(model, seed=context.seed, count=1)
            if data.notes:
                raise UsageError(
                    "prune-channels: latency needs calibration data where inputs leave their shape open"
                )
        self.feeds = next(iter(data))
        self.whole = self.engine.prepare(clone(model))
        self.found: dict[bytes, Latency] = {}
        self.kept: dict[bytes, int] = {}

    def time(self, stay: np.ndarray) -> Latency:
        """Return the latency of the model whose units `stay` [units, bool], as a ratio to the whole one's."""
        key = stay.tobytes()
        if key not in self.found:
            self.context.progress(len(self.found), None, "timing pruned models")
            pruned = clone(self.model)
            channels = find(pruned, self.context, self.exclude)
            plan = channels.plan(lambda units: stay)
            self.kept[key] = _made(channels, plan.removal.kept)
            channels.remove(plan)
            pair = [self.whole, self.engine.prepare(pruned)]
            self.found[key] = latencies(pair, self.feeds, budget=SECONDS, min_pairs=PAIRS)[1]
        return self.found[key]

    def widths(self, chosen: np.ndarray) -> list[Width]:
        """Return what was timed, the most channels first; units that stay [units, bool] were `chosen`."""
        channels = find(clone(self.model), self.context, self.exclude)
        whole = _made(channels, np.ones(channels.flow.count, bool))
        found = [Width(whole, 1.0, 1.0, 1.0)]
        for key, each in self.found.items():
            width = Width(self.kept[key], each.ratio, each.low, each.high, key == chosen.tobytes())
            found.append(width)
        return sorted(found, key=lambda each: -each.channels)


def _made(channels: Channels, kept: np.ndarray) -> int:
    """Return how many of the channels that nodes make are `kept` [labels, bool]."""
    return sum(int(kept[each.start : each.stop].sum()) for each in channels.flow.sources)
