"""Latency of models, paired: interleaved runs in one process, reported as a ratio with its spread."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcompress.base import Number, Runnable

MIN_PAIRS = 10


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
) -> list[Latency]:
    """Time `runnables` on `feeds` in turns, starting with another one each round, for about `budget` seconds.

    The interval is the distribution-free one of the median (order statistics), so a few disturbed runs don't
    matter.
    """
    for each in runnables:  # the first runs lay out memory
        each.run(feeds)
        each.run(feeds)
    rounds: list[list[float]] = []
    end = time.perf_counter() + budget
    while len(rounds) < min_pairs or time.perf_counter() < end:
        seconds = [0.0] * len(runnables)
        start = len(rounds) % len(runnables)
        for index in [*range(start, len(runnables)), *range(start)]:
            began = time.perf_counter()
            runnables[index].run(feeds)
            seconds[index] = time.perf_counter() - began
        rounds.append(seconds)
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
