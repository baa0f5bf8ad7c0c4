"""What a run over many models came to: one table, as Markdown, as CSV, and on a page."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from onnxcompress.errors import UsageError
from onnxcompress.model import write_text
from onnxcompress.page import page, page_template
from onnxcompress.runs import read_reports
from onnxcompress.zoo.figures import figure_cells, tally
from onnxcompress.zoo.jobs import DONE, Outcome
from onnxcompress.zoo.page import zoo_page

FIGURES = (
    *("target", "bytes_before", "bytes_after", "parameters_before", "parameters_after", "top1_before"),
    *("top1_after", "agreement", "snr", "random", "latency_ratio"),
)


def write_summary(outcomes: Sequence[Outcome], out: Path) -> list[str]:
    """Write the table of `outcomes` to ``summary`` with .md, .csv and .html in the folder `out`.

    The last links to the page of each job that is done, which is made of its report. Return what a user
    should know: without jinja2 there are no pages.
    """
    write_text(out / "summary.md", markdown(outcomes))
    write_text(out / "summary.csv", comma_separated(outcomes))
    try:
        page_template()
    except UsageError as error:
        (out / "summary.html").unlink(missing_ok=True)  # which may be of an earlier run
        return [f"no summary.html: {error}"]
    for each in outcomes:
        if each.status == DONE:
            _write_page(out / f"{each.job.label}.json")
    write_text(out / "summary.html", zoo_page(outcomes))
    return []


def _write_page(told: Path) -> None:
    """Write the page of the report in the file `told` beside it, unless it is there."""
    shown = told.with_name(f"{told.name.removesuffix('.json')}.html")
    if shown.exists() and shown.stat().st_mtime_ns >= told.stat().st_mtime_ns:
        return
    runs, _ = read_reports([str(told)])
    write_text(shown, page([(run.output or name, run) for name, run in runs]))


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
        cells = [each.job.name, each.job.recipe, each.status, *figure_cells(each), f"{each.seconds:.1f}"]
        lines.append("| " + " | ".join(map(_escaped, cells)) + " |")
    if troubles := [each for each in outcomes if each.message]:
        lines += ["", *(f"* {each.job.label}: {_escaped(each.message)}" for each in troubles)]
    recipes = {each.job.recipe: each.job.passes for each in outcomes}
    lines += ["", *(f"* `{name}` = `{passes}`" for name, passes in recipes.items())]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
