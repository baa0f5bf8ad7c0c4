"""Steps of layers from one scheme to the next: in which order they are taken, and how many of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onnxcompress.drop import noise
from onnxcompress.trials import Row

BLOCKS = 6  # of steps, each tried as a whole first


@dataclass(frozen=True)
class Step:
    """One layer from one scheme (or none) to the next: noise added, in shares of the signal, bytes saved.

    Where time is bounded, `saved` are seconds.
    """

    layer: str
    scheme: str
    noise: float
    saved: float


Steps = tuple[Step, ...]


def everywhere(rows: Sequence[Row], timed: bool = False) -> dict[str, Steps]:
    """Return for each scheme the steps that give it to all layers it changes."""
    found: dict[str, Steps] = {}
    for row in rows:
        if row.comparison is not None:
            saved = (row.gained or 0.0) if timed else row.saved
            step = Step(row.layer, row.scheme, noise(row.comparison.snr), saved)
            found[row.scheme] = (*found.get(row.scheme, ()), step)
    return found


def steps(rows: Sequence[Row], timed: bool = False, start: Steps = ()) -> Steps:
    """Return the steps from `start` to the smallest model there is, least noise for a byte saved first.

    `start` has one step for a layer at most; a layer without one starts as it is. Where layers were `timed`
    the way goes to the fastest there is, least noise for a second first. A layer's steps are those of the
    lower convex hull of its schemes, which makes the greedy order the best one for noise that adds up,
    wherever it is cut; steps that take noise away come first.
    Source: Sinha and Zoltners, The Multiple-Choice Knapsack Problem, Operations Research 27, 1979.
    """
    found: list[Step] = []
    options = [step for each in everywhere(rows, timed).values() for step in each]
    begun = {each.layer: each for each in start}
    for layer in dict.fromkeys(row.layer for row in rows):
        at = begun.get(layer, Step(layer, "", 0.0, 0.0))
        while better := [each for each in options if each.layer == layer and each.saved > at.saved]:
            best = min(better, key=lambda each: (_price(at, each), -each.saved))
            found.append(Step(layer, best.scheme, best.noise - at.noise, best.saved - at.saved))
            at = best
    return tuple(sorted(found, key=lambda each: each.noise / each.saved))


def _price(at: Step, to: Step) -> float:
    return (to.noise - at.noise) / (to.saved - at.saved)


def largest(steps: Steps, allows: Callable[[Steps], bool]) -> Steps:
    """Return the first of `steps`, as many as the bound `allows` on the way up; () where not even one.

    BLOCKS counts of steps, evenly spread, are tried from the least upwards. Between the last that is allowed
    and the first that is refused the place is found by halves; larger counts are never tried, as one of them
    may be allowed by luck.
    """
    low = 0
    for part in range(1, BLOCKS + 1):
        high = -(-len(steps) * part // BLOCKS)
        if high > low and not allows(steps[:high]):
            break
        low = high
    while high - low > 1:
        middle = (low + high) // 2
        if allows(steps[:middle]):
            low = middle
        else:
            high = middle
    return steps[:low]
