"""Check each step of a run: compare outputs on samples, and name the node where they start to differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxcompress.base import Context, Effect, Pass, Runnable, Runtime
from onnxcompress.cure import cure, hurt
from onnxcompress.data import Data
from onnxcompress.drop import Limit, measured
from onnxcompress.errors import BoundError, CompressError, UsageError
from onnxcompress.model import clone
from onnxcompress.recipe import Recipe
from onnxcompress.report import Report
from onnxcompress.verify import Comparison, Tolerance, compare, first_difference, newly_broken

COLLAPSE = 0.9  # share of predictions that stay the same; below, the report warns
UNSTEADY = "the model's outputs differ from run to run: exact passes can't be held to their bound"
UNSOUND = "the model's outputs hold NaN or infinity before any pass: what is said of them is of the rest"


@dataclass
class Check:
    """Compares models on samples as a run goes on, and writes what it finds into the report.

    Without `wanted` it runs nothing. The whole run must keep `limit`, on the data `judged`.
    """

    engine: Runtime
    samples: Data
    tolerance: Tolerance
    report: Report
    judged: Data | None
    wanted: bool
    limit: Limit | None = None
    first: Runnable | None = None
    last: Runnable | None = None
    steady: bool = True
    advice: str = ""

    def start(self, model: ir.Model | Path) -> None:
        """Make the first model ready, and find out whether its outputs can be compared at all."""
        if not self.wanted:
            return
        try:
            self.first = self.last = self.engine.prepare(model)
            found = compare(self.first, self.first, self.samples.take(1), tolerance=self.tolerance)
        except CompressError as error:
            if not self.samples.random:
                raise
            raise UsageError(
                f"random inputs don't run this model, expected --calib data or --input-shape: {error}"
            ) from error
        self.steady = found.exact
        if not found.exact:
            self.report.notes.append(UNSTEADY)
        if found.unsound:
            self.report.notes.append(UNSOUND)

    def step(self, each: Pass, given: ir.Model, current: ir.Model) -> None:
        """Compare `current` with what the pass was `given`; BoundError with the first node that differs."""
        if self.last is None:
            return
        before, self.last = self.last, self.engine.prepare(clone(current))
        try:
            found = compare(
                before, self.last, self.samples, tolerance=self.tolerance, random=self.samples.random
            )
        except BoundError as error:
            raise BoundError(f"{error}{self._where(given, current, newly_broken)}") from error
        self.report.steps[-1].comparison = found
        if self.steady and each.effect is Effect.EXACT and not found.exact:
            where = self._where(given, current, lambda a, b: not self.tolerance.allows(a, b))
            raise BoundError(f"outputs differ: {difference(found)}{where}")
        if found.agreement is not None and found.agreement < COLLAPSE and not found.random:
            kept = f"{found.agreement:.1%} of predictions stayed the same"
            self.report.notes.append(f"{each.name}: only {kept}; milder options keep more")

    def _where(
        self, given: ir.Model, current: ir.Model, differ: Callable[[np.ndarray, np.ndarray], bool]
    ) -> str:
        node = first_difference(given, current, self.engine, next(iter(self.samples)), differ)
        return f", first at node {node}" if node else ""

    def whole(self, recipe: Recipe, last: ir.Model | Path, verify: str) -> None:
        """Compare the last model, or the file it was written to, with the first."""
        if self.first is None:
            return
        self.last = self.engine.prepare(last)
        if verify != "off":
            found = compare(
                self.first, self.last, self.samples, tolerance=self.tolerance, random=self.samples.random
            )
            self.report.comparison = found
            if self.steady and recipe.effect is Effect.EXACT and not found.exact:
                raise BoundError(f"{recipe}: outputs differ: {difference(found)}")
        if self.judged is not None:
            labels = self.judged.labels
            self.report.evaluation = compare(
                self.first, self.last, self.judged, labels=labels, tolerance=self.tolerance
            )

    def blame(self, passes: Sequence[Pass], given: ir.Model, last: ir.Model, context: Context) -> None:
        """Note which layer `passes`, which made `last` of `given`, hurt most, where outputs are far apart."""
        found = self.report.evaluation or self.report.comparison
        if found is not None and hurt(found):
            self.advice = cure(given, last, passes, context, self.samples)
            self.report.notes += [self.advice] if self.advice else []

    def bound(self) -> None:
        """Measure what was lost of the metric that has a limit; BoundError where it is too much."""
        if self.limit is None:
            return
        assert self.first is not None
        assert self.last is not None
        self.report.drop = measured(self.limit.metric, self.first, self.last, self.report.evaluation)
        try:
            self.limit.check(self.report.drop)
        except BoundError as error:
            raise BoundError("; ".join(filter(None, (str(error), self.advice)))) from error


def difference(comparison: Comparison) -> str:
    """Return in a few words how far the outputs of two models are apart."""
    return (
        f"{comparison.worst_output} by {comparison.largest_difference:.3g} at most, {comparison.snr:.1f} dB"
    )
