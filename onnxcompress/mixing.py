"""Mixed precision: choose for each layer between schemes, or none, so that a bound holds.

Layers are ranked by what they lose alone: the power of the noise at the outputs, which adds up over layers
as long as it is small. The choice takes the steps of least noise for a byte saved first, or for a second
where time is bounded. How many of them is found with the whole model measured.

Who tries many choices on the same samples finds one that is lucky on them, and loses more on others. So the
search begins with the smallest of the schemes that keeps the bound on all layers, goes from there upwards,
and takes more only as long as the bound holds with SPARE standard errors to spare.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property

import onnx_ir as ir

from onnxcompress.base import Context, Effect, Pass
from onnxcompress.data import Data
from onnxcompress.drop import Drop, Limit, measured
from onnxcompress.errors import BoundError
from onnxcompress.measure import Latency, latencies
from onnxcompress.model import clone, to_proto
from onnxcompress.parts import Stopwatch
from onnxcompress.recipe import Mix, Recipe
from onnxcompress.registry import passes
from onnxcompress.report import spread
from onnxcompress.steps import Steps, everywhere, largest, steps
from onnxcompress.trials import Mixed, Recorded, Trials, applied, only
from onnxcompress.verify import compare

SECONDS = 60.0  # for timing layers alone
RANKING = 16  # samples that layers are ranked with and on; the recipe itself is given all
SPARE = 1.0  # standard errors by which a choice that was searched for must keep the bound


def settled(scheme: Pass, model: ir.Model, context: Context) -> Pass:
    """Return `scheme` with what its speed gate finds for the whole `model`, if it has one, spelt out.

    All that is tried and what is chosen in the end then compute alike, and so keep the same bound.
    """
    if not any(option.name == "gate" for option in fields(scheme)):
        return scheme
    return scheme.call(clone(model), context).replay or scheme


@dataclass
class Search:
    """Makes the choice of `mix` for `model`, which is not changed.

    `samples` are what layers are ranked on, RANKING of them, `judged` what `limit` is measured on; `most` are
    the bytes the file may have, `slowest` the latency it may have as a share of the model's. One of the
    bounds must be there.
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
        self.mix = replace(
            self.mix, schemes=tuple(settled(each, self.given, context) for each in self.mix.schemes)
        )
        self.timed = self.slowest is not None
        watch = Stopwatch(context, SECONDS) if self.timed else None
        trials = Trials(self.given, context, self.samples.take(RANKING), self.mix.after, watch)
        self.rows = tuple(trials.rows(self.mix.schemes, {}))
        self.names = {unit.layers[0]: unit.layers for unit in trials.units}
        self.steps = steps(self.rows, self.timed)
        self.drops: dict[Steps, Drop] = {}
        self.latencies: dict[Steps, Latency] = {}
        self.sizes: dict[Steps, int] = {}

    def run(self) -> tuple[Recipe, Mixed]:
        """Return the recipe; BoundError with the best found where none keeps the bounds.

        Without a bound on bytes or latency it takes as many steps as the limit allows, with one as few as it
        needs where the limit allows these.
        """
        if not self.steps:
            kind = "smaller" if self.slowest is None else "surely faster"
            listed = "|".join(map(str, self.mix.schemes))
            raise BoundError(f"{listed}: no layer gets {kind}; best found: the model as it is")
        taken = self.least() if self.most is not None or self.slowest is not None else ()
        if self.limit is not None and not (taken and self.allows(taken)):
            taken = self.largest(taken)
        return self.recipe(taken), Mixed(self.rows, self.chosen(taken), len(self.steps), len(taken))

    def least(self) -> Steps:
        """Return the first steps that keep the bounds on bytes and latency; BoundError where all don't."""
        every = len(self.steps)
        count = _first(lambda count: not self.excess(self.steps[:count]), 1, every)
        if count is None:
            raise BoundError(f"{self.excess(self.steps)}; best found: {self.recipe(self.steps)}")
        return self.steps[:count]

    def largest(self, least: Steps) -> Steps:
        """Return the steps that the limit, which refuses `least`, allows; BoundError where these don't do.

        They never take more bytes, or time where that is bounded, than a scheme the limit allows everywhere.
        """
        assert self.limit is not None
        confidence = self.limit.confidence
        uniform = [each for each in everywhere(self.rows, self.timed).values() if self.allows(each)]
        start = min(uniform, key=self.cost, default=())
        more = steps(self.rows, self.timed, start)
        self.steps = start + more
        best = start + largest(more, lambda some: self.allows(start + some, SPARE))
        if start:
            best = min((start, best), key=self.cost)
        if not best or self.excess(best):
            best = least or min(self.drops, key=lambda each: self.drops[each].bound(confidence))
        try:
            self.limit.check(self.drop(best))
        except BoundError as error:
            raise BoundError(f"{error}; best found: {self.recipe(best)}") from error
        return best

    def chosen(self, taken: Steps) -> dict[str, str]:
        """Return the scheme of each layer after the steps `taken`; layers they leave alone are not in it."""
        return {step.layer: step.scheme for step in taken}

    def passes(self, taken: Steps) -> list[Pass]:
        """Return the schemes, each with the layers it isn't for excluded, in the order passes have."""
        chosen, order = self.chosen(taken), list(passes())
        found = []
        for scheme in sorted(
            self.mix.schemes, key=lambda each: order.index(each.name) if each.name in order else len(order)
        ):
            layers = [layer for layer, text in chosen.items() if text == str(scheme)]
            if layers:
                layers += [each for each in self.untouched(scheme) if each not in chosen]
                names = [name for layer in layers for name in self.names[layer]]
                found.append(only(scheme, names, self.given))
        return found

    def untouched(self, scheme: Pass) -> list[str]:
        """Return the layers that `scheme` leaves alone by itself: these needn't be spelt out."""
        rows = [row for row in self.rows if row.scheme == str(scheme)]
        return [row.layer for row in rows if row.comparison is None and not row.saved]

    def recipe(self, taken: Steps) -> Recipe:
        """Return the whole recipe after the steps `taken`."""
        return Recipe((*self.mix.before.passes, *self.passes(taken), *self.mix.after.passes))

    @cached_property
    def first(self) -> Recorded:
        """The model as it is."""
        assert self.context.runtime is not None
        return Recorded(self.context.runtime.prepare(clone(self.model)))

    def allows(self, taken: Steps, spare: float = 0.0) -> bool:
        """Return whether the limit allows the steps `taken`, with `spare` standard errors to spare."""
        return self.limit is None or self.limit.allows(self.drop(taken), spare)

    def drop(self, taken: Steps) -> Drop:
        """Return what is lost after the steps `taken`, measured on the whole model."""
        assert self.limit is not None
        assert self.context.runtime is not None
        if taken not in self.drops:
            self.context.progress(len(self.drops), None, f"checking {len(taken)} of {len(self.steps)} steps")
            lossy = [each for each in self.mix.after.passes if each.effect is Effect.LOSSY]
            last = self.context.runtime.prepare(
                applied([*self.passes(taken), *lossy], self.given, self.context)[0]
            )
            try:
                found = None
                if self.judged is not None:
                    found = compare(self.first.restart(), last, self.judged, labels=self.judged.labels)
                self.drops[taken] = measured(self.limit.metric, self.first.runnable, last, found)
            except BoundError:  # outputs that hold NaN: there is nothing left to lose
                self.drops[taken] = Drop(self.limit.name, math.inf)
        return self.drops[taken]

    def excess(self, taken: Steps) -> str:
        """Return what of the bounds on bytes and latency so many steps miss; "" where they keep them."""
        if self.most is not None and (found := self.bytes(taken)) > self.most:
            return f"max-size: {found:,} bytes, expected {self.most:,.0f} at most"
        if self.slowest is not None and (latency := self.latency(taken)).high > self.slowest:
            return f"max-latency: {spread(latency)}, expected {self.slowest:g} at most"
        return ""

    def latency(self, taken: Steps) -> Latency:
        """Return the latency after the steps `taken`, beside the model's as it is."""
        assert self.context.runtime is not None
        if taken not in self.latencies:
            self.context.progress(
                len(self.latencies), None, f"timing {len(taken)} of {len(self.steps)} steps"
            )
            model = applied([*self.passes(taken), *self.mix.after.passes], self.given, self.context)[0]
            pair = [self.first.runnable, self.context.runtime.prepare(model)]
            self.latencies[taken] = latencies(pair, next(iter(self.samples)))[1]
        return self.latencies[taken]

    def bytes(self, taken: Steps) -> int:
        """Return the bytes of the file after the steps `taken`, the recipe written into it among them."""
        if taken not in self.sizes:
            self.context.progress(0, None, f"weighing {len(taken)} of {len(self.steps)} steps")
            model = applied([*self.passes(taken), *self.mix.after.passes], self.given, self.context)[0]
            told = len(str(self.recipe(taken)).encode()) + _MARK
            self.sizes[taken] = int(to_proto(model).ByteSize()) + told
        return self.sizes[taken]

    def cost(self, taken: Steps) -> float:
        """Return the bytes after the steps `taken`, or the latency where that is bounded."""
        return self.latency(taken).ratio if self.timed else self.bytes(taken)


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
