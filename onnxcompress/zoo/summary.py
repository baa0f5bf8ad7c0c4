"""What a run over many models came to: one table, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from onnxcompress.base import Number
from onnxcompress.model import write_text
from onnxcompress.report import count_bytes, decibels, share
from onnxcompress.zoo.jobs import DONE, Outcome

FIGURES = (
    *("target", "bytes_before", "bytes_after", "parameters_before", "parameters_after", "top1_before"),
    *("top1_after", "agreement", "snr", "random", "latency_ratio"),
)


def write_summary(outcomes: Sequence[Outcome], out: Path) -> None:
    """Write the table of `outcomes` to ``summary.md`` and ``summary.csv`` in the folder `out`."""
    write_text(out / "summary.md", markdown(outcomes))
    write_text(out / "summary.csv", comma_separated(outcomes))


def comma_separated(outcomes: Sequence[Outcome]) -> str:
    """Return every figure of `outcomes`, a line each; what isn't known is empty."""
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["model", "recipe", "status", "passes", *FIGURES, "seconds", "message"])
    for each in outcomes:
        job = each.job
        values = [each.figures.get(name, "") for name in FIGURES]
        seconds = f"{each.seconds:.2f}"
        table.writerow([job.name, job.recipe, each.status, job.passes, *values, seconds, each.message])
    return text.getvalue()


def markdown(outcomes: Sequence[Outcome]) -> str:
    """Return `outcomes` as a page for people."""
    lines = [
        "# Zoo",
        "",
        f"{tally(outcomes)}.",
        "",
        "| model | recipe | status | size | of before | accuracy | outputs | latency | seconds |",
        "|---|---|---|---:|---:|---|---|---:|---:|",
    ]
    for each in outcomes:
        cells = [each.job.name, each.job.recipe, each.status, *_cells(each), f"{each.seconds:.1f}"]
        lines.append("| " + " | ".join(map(_escaped, cells)) + " |")
    if troubles := [each for each in outcomes if each.message]:
        lines += ["", *(f"* {each.job.label}: {_escaped(each.message)}" for each in troubles)]
    recipes = {each.job.recipe: each.job.passes for each in outcomes}
    lines += ["", *(f"* `{name}` = `{passes}`" for name, passes in recipes.items())]
    return "\n".join(lines) + "\n"


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


def _cells(outcome: Outcome) -> Iterator[str]:
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


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
