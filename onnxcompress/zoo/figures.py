"""Figures of jobs for people: how they ended, and what they made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from onnxcompress.base import Number
from onnxcompress.report import count_bytes, decibels, share
from onnxcompress.zoo.jobs import DONE, Outcome


def tally(outcomes: Sequence[Outcome]) -> str:
    """Return in a few words how `outcomes` ended."""
    counts = Counter(each.status for each in outcomes)
    others = [f"{count} {status}" for status, count in counts.items() if status != DONE]
    return ", ".join([f"{counts[DONE]} of {len(outcomes)} jobs done", *others])


def size_cells(figures: Mapping[str, Number]) -> tuple[str, str]:
    """Return the size after and its ratio to that before, as text; empty where they aren't known."""
    if "bytes_after" not in figures:
        return "", ""
    after, before = int(figures["bytes_after"]), int(figures["bytes_before"])
    return count_bytes(after), share(after, before)


def figure_cells(outcome: Outcome) -> Iterator[str]:
    """Yield size, ratio, accuracy, likeness and latency as text."""
    figures = outcome.figures
    yield from size_cells(figures)
    has_top1 = "top1_before" in figures
    yield f"{figures['top1_before']:.2%} -> {figures['top1_after']:.2%}" if has_top1 else ""
    same = f", {figures['agreement']:.1%} same prediction" if "agreement" in figures else ""
    random = " (random inputs)" if figures.get("random") else ""
    snr = decibels(float(figures.get("snr", float("inf"))))
    yield f"{snr}{same}{random}" if "random" in figures else ""
    yield f"{figures['latency_ratio']:.2f}x" if "latency_ratio" in figures else ""
