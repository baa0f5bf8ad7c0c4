"""Latency of models, paired: interleaved runs in one process, reported as a ratio with its spread."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcompress.base import Number, Runnable

MIN_PAIRS = 10
FEWEST = 6  # with fewer, not even the extremes bound the median at 95 %


@dataclass(frozen=True)
class Latency:
    """One model's latency beside the first one's: median seconds, median of the ratios, its 95 % interval."""

    seconds: float
    ratio: float
    low: float
    high: float
    pairs: int

    @property
    def numbers(self) -> dict[str, Number]:
        """The ratio and its interval, as records hold them."""
        return {"ratio": self.ratio, "ratio_low": self.low, "ratio_high": self.high}


def latencies(
    runnables: Sequence[Runnable],
    feeds: Mapping[str, np.ndarray],
    *,
    budget: float = 1.0,
    min_pairs: int = MIN_PAIRS,
    most: float = math.inf,
) -> list[Latency]:
    """Time `runnables` on `feeds` in turns, starting with another one each round, for about `budget` seconds.

    There are at least `min_pairs` rounds; but six do where these take `most` seconds. The interval is the
    distribution-free one of the median (order statistics), so a few disturbed runs don't matter.
    """
    for each in runnables:  # the first runs lay out memory
        each.run(feeds)
        each.run(feeds)
    rounds: list[list[float]] = []
    start, spent = time.perf_counter(), 0.0
    while spent < min(budget, most) or len(rounds) < (min_pairs if spent < most else FEWEST):
        seconds = [0.0] * len(runnables)
        first = len(rounds) % len(runnables)
        for index in [*range(first, len(runnables)), *range(first)]:
            began = time.perf_counter()
            runnables[index].run(feeds)
            seconds[index] = time.perf_counter() - began
        rounds.append(seconds)
        spent = time.perf_counter() - start
    times = np.array(rounds)
    ratios = np.sort(times / times[:, :1], axis=0)
    low, high = interval(len(rounds))
    return [
        Latency(
            float(np.median(times[:, i])),
            float(np.median(ratios[:, i])),
            float(ratios[low, i]),
            float(ratios[high, i]),
            len(rounds),
        )
        for i in range(len(runnables))
    ]


def interval(count: int) -> tuple[int, int]:
    """Return the places of the order statistics that bound the median of `count` samples at 95 %.

    Source: David and Nagaraja, Order Statistics, section 7.1 (normal approximation of the binomial).
    """
    half = 1.96 * math.sqrt(count) / 2
    low = max(0, math.floor(count / 2 - half))
    return low, count - 1 - low
