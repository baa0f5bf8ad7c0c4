"""Mixed precision: choose for each layer between schemes, or none, so that a bound holds.

Layers are ranked by what they lose alone: the power of the noise at the outputs, which adds up over layers
as long as it is small. The choice takes the steps of least noise for a byte saved first, or for a second
where time is bounded; how many of them is found by halving, each time with the whole model measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import onnx_ir as ir

from onnxcompress.base import Context, Effect, Pass
from onnxcompress.data import Data
from onnxcompress.drop import Drop, Limit, measured, noise
from onnxcompress.errors import BoundError
from onnxcompress.measure import Latency, latencies
from onnxcompress.model import clone, to_proto
from onnxcompress.parts import Stopwatch
from onnxcompress.recipe import Mix, Recipe
from onnxcompress.registry import passes
from onnxcompress.report import spread
from onnxcompress.trials import Mixed, Recorded, Row, Trials, applied, only
from onnxcompress.verify import compare

SECONDS = 60.0  # for timing layers alone
RANKING = 32  # calibration samples that layers are ranked with; the recipe itself is given all


@dataclass(frozen=True)
class Step:
    """One layer from one scheme (or none) to the next: noise added, in shares of the signal, bytes saved.

    Where time is bounded, `saved` are seconds.
    """

    layer: str
    scheme: str
    noise: float
    saved: float


def steps(rows: Sequence[Row], timed: bool = False) -> list[Step]:
    """Return the steps from the model as it is to the smallest there is, least noise for a byte saved first.

    Where layers were `timed`, to the fastest there is, least noise for a second first. A layer's steps are
    those of the lower convex hull of its schemes, which makes the greedy order the best one for noise that
    adds up, wherever it is cut.
    Source: Sinha and Zoltners, The Multiple-Choice Knapsack Problem, Operations Research 27, 1979.
    """
    found: list[Step] = []
    for layer in dict.fromkeys(row.layer for row in rows):
        at = Step(layer, "", 0.0, 0.0)
        options = [
            Step(layer, row.scheme, noise(row.comparison.snr), (row.gained or 0.0) if timed else row.saved)
            for row in rows
            if row.layer == layer and row.comparison is not None
        ]
        while better := [each for each in options if each.saved > at.saved]:
            best = min(better, key=lambda each: (_price(at, each), -each.saved))
            found.append(Step(layer, best.scheme, best.noise - at.noise, best.saved - at.saved))
            at = best
    return sorted(found, key=lambda each: each.noise / each.saved)


def _price(at: Step, to: Step) -> float:
    return (to.noise - at.noise) / (to.saved - at.saved)


@dataclass
class Search:
    """Makes the choice of `mix` for `model`, which is not changed.

    `samples` are what layers are ranked on, `judged` what `limit` is measured on; `most` are the bytes the
    file may have, `slowest` the latency it may have as a share of the model's. One of the bounds must be
    there.
    """

    mix: Mix
    model: ir.Model
    context: Context
    samples: Data
    judged: Data | None
    limit: Limit | None
    most: float | None
    slowest: float | None

    def __post_init__(self) -> None:
        self.given = applied(self.mix.before.passes, self.model, self.context)[0]
        few = self.context.calibration and self.context.calibration.take(RANKING)
        context = replace(self.context, calibration=few)
        timed = self.slowest is not None
        watch = Stopwatch(context, SECONDS) if timed else None
        trials = Trials(self.given, context, self.samples, self.mix.after, watch)
        self.rows = tuple(trials.rows(self.mix.schemes, {}))
        self.names = {unit.layers[0]: unit.layers for unit in trials.units}
        self.steps = steps(self.rows, timed)
        self.drops: dict[int, Drop] = {}
        self.latencies: dict[int, Latency] = {}

    def run(self) -> tuple[Recipe, Mixed]:
        """Return the recipe; BoundError with the best found where none keeps the bounds.

        Without a bound on bytes or latency it takes as many steps as the limit allows, with one as few as it
        needs.
        """
        if not self.steps:
            kind = "smaller" if self.slowest is None else "surely faster"
            listed = "|".join(map(str, self.mix.schemes))
            raise BoundError(f"{listed}: no layer gets {kind}; best found: the model as it is")
        most = len(self.steps)
        if self.most is not None or self.slowest is not None:
            taken = _first(lambda count: not self.excess(count), 1, most)
            if taken is None:
                raise BoundError(f"{self.excess(most)}; best found: {self.recipe(most)}")
        else:
            exceeds = _first(lambda count: not self.allows(count), 1, most)
            taken = most if exceeds is None else exceeds - 1
        if self.limit is not None:
            least = max(taken, 1)
            try:
                self.limit.check(self.drop(least))
            except BoundError as error:
                raise BoundError(f"{error}; best found: {self.recipe(least)}") from error
        return self.recipe(taken), Mixed(self.rows, self.chosen(taken), most, taken)

    def chosen(self, taken: int) -> dict[str, str]:
        """Return the scheme of each layer after so many steps; layers that none has changed are left out."""
        return {step.layer: step.scheme for step in self.steps[:taken]}

    def passes(self, taken: int) -> list[Pass]:
        """Return the schemes, each with the layers it isn't for excluded, in the order passes have."""
        chosen, order = self.chosen(taken), list(passes())
        found = []
        for scheme in sorted(
            self.mix.schemes, key=lambda each: order.index(each.name) if each.name in order else len(order)
        ):
            layers = [layer for layer, text in chosen.items() if text == str(scheme)]
            names = [name for layer in layers for name in self.names[layer]]
            if names:
                found.append(only(scheme, names, self.given))
        return found

    def recipe(self, taken: int) -> Recipe:
        """Return the whole recipe after so many steps."""
        return Recipe((*self.mix.before.passes, *self.passes(taken), *self.mix.after.passes))

    @cached_property
    def first(self) -> Recorded:
        """The model as it is."""
        assert self.context.runtime is not None
        return Recorded(self.context.runtime.prepare(clone(self.model)))

    def allows(self, taken: int) -> bool:
        """Return whether the limit allows so many steps."""
        return self.limit is None or self.limit.allows(self.drop(taken))

    def drop(self, taken: int) -> Drop:
        """Return what is lost after so many steps, measured on the whole model."""
        assert self.limit is not None
        assert self.context.runtime is not None
        if taken not in self.drops:
            self.context.progress(len(self.drops), None, f"checking {taken} of {len(self.steps)} steps")
            lossy = [each for each in self.mix.after.passes if each.effect is Effect.LOSSY]
            last = self.context.runtime.prepare(
                applied([*self.passes(taken), *lossy], self.given, self.context)[0]
            )
            found = None
            if self.judged is not None:
                found = compare(self.first.restart(), last, self.judged, labels=self.judged.labels)
            self.drops[taken] = measured(self.limit.metric, self.first.runnable, last, found)
        return self.drops[taken]

    def excess(self, taken: int) -> str:
        """Return what of the bounds on bytes and latency so many steps miss; "" where they keep them."""
        if self.most is not None and (found := self.bytes(taken)) > self.most:
            return f"max-size: {found:,} bytes, expected {self.most:,.0f} at most"
        if self.slowest is not None and (latency := self.latency(taken)).high > self.slowest:
            return f"max-latency: {spread(latency)}, expected {self.slowest:g} at most"
        return ""

    def latency(self, taken: int) -> Latency:
        """Return the latency after so many steps, beside the model's as it is."""
        assert self.context.runtime is not None
        if taken not in self.latencies:
            self.context.progress(len(self.latencies), None, f"timing {taken} of {len(self.steps)} steps")
            model = applied([*self.passes(taken), *self.mix.after.passes], self.given, self.context)[0]
            pair = [self.first.runnable, self.context.runtime.prepare(model)]
            self.latencies[taken] = latencies(pair, next(iter(self.samples)))[1]
        return self.latencies[taken]

    def bytes(self, taken: int) -> int:
        """Return the bytes of the file after so many steps, the recipe written into it among them."""
        self.context.progress(0, None, f"weighing {taken} of {len(self.steps)} steps")
        model = applied([*self.passes(taken), *self.mix.after.passes], self.given, self.context)[0]
        return int(to_proto(model).ByteSize()) + len(str(self.recipe(taken)).encode()) + _MARK


_MARK = 256  # bytes that the other things written into a file take at most


def _first(holds: Callable[[int], bool], low: int, high: int) -> int | None:
    """Return the first of the numbers `low` to `high` from which on it `holds`, or None."""
    if not holds(high):
        return None
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return high
