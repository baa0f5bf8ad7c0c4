"""Reports read back from their files, and runs side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onnxcompress.errors import UsageError
from onnxcompress.report import SCHEMA, Report, count_bytes, likeness, share
from onnxcompress.trials import Sensitivity, read_sensitivity, restore_signs
from onnxcompress.typed import read

if TYPE_CHECKING:
    from rich.console import RenderableType


def read_report(path: Path) -> Report | Sensitivity:
    """Return the report of a run, or of sensitivity, in the JSON file `path`; UsageError where it is none."""
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: can't be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: is no JSON, expected a file that --report wrote") from error
    if not isinstance(document, dict) or "schema" not in document:
        raise UsageError(f"{path}: is no report, expected a file that --report wrote")
    if "content" in document:
        return read_sensitivity(document, str(path))
    if (number := document.pop("schema")) != SCHEMA:
        raise UsageError(f"{path}: has the schema {number!r}, expected {SCHEMA}: run it again with --report")
    found: Report = read(Report, document, str(path))
    restore_signs([found.comparison, found.evaluation, *(step.comparison for step in found.steps)])
    restore_signs(row.comparison for row in (found.mixed.rows if found.mixed else ()))
    return found


def read_reports(paths: Sequence[str]) -> tuple[list[tuple[str, Report]], list[tuple[str, Sensitivity]]]:
    """Return the reports in the files `paths`, each with its path: all of runs, or all of sensitivity.

    UsageError where a file is no report, and for files of both kinds.
    """
    found = [(path, read_report(Path(path))) for path in paths]
    runs = [(path, each) for path, each in found if isinstance(each, Report)]
    alone = [(path, each) for path, each in found if isinstance(each, Sensitivity)]
    if runs and alone:
        raise UsageError(f"{alone[0][0]}: is about sensitivity, expected a run's as {runs[0][0]} is")
    return runs, alone


def runs_table(runs: Sequence[tuple[str, Report]]) -> RenderableType:
    """Return what `report` prints: the size, the likeness of outputs and the latency of each run."""
    from rich.table import Table
    from rich.text import Text

    table = Table("report", "recipe", "size", "of before", "outputs", "latency")
    for column in table.columns[:2]:
        column.overflow = "fold"
    for name, each in runs:
        after = each.after
        size = (count_bytes(after.bytes), share(after.bytes, each.before.bytes)) if after else ("", "")
        found = each.evaluation or each.comparison
        accuracy = f", top-1 {found.top1[0]:.2%} -> {found.top1[1]:.2%}" if found and found.top1 else ""
        latency = f"{each.latency.ratio:.2f}x" if each.latency else ""
        table.add_row(Text(name), Text(each.recipe), *size, f"{likeness(found)}{accuracy}", latency)
    return table
