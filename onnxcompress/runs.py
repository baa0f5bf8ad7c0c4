"""Reports read back from their files, and runs side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onnxcompress.errors import UsageError
from onnxcompress.report import SCHEMA, Report, count_bytes, likeness, share
from onnxcompress.typed import read

if TYPE_CHECKING:
    from rich.console import RenderableType


def read_report(path: Path) -> Report:
    """Return the report in the JSON file `path`; UsageError where it is none."""
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: can't be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: is no JSON, expected a file that --report wrote") from error
    if not isinstance(document, dict) or "schema" not in document:
        raise UsageError(f"{path}: is no report, expected a file that --report wrote")
    if (number := document.pop("schema")) != SCHEMA:
        raise UsageError(f"{path}: has the schema {number!r}, expected {SCHEMA}: run it again with --report")
    found: Report = read(Report, document, str(path))
    compared = [found.comparison, found.evaluation, *(step.comparison for step in found.steps)]
    compared += [row.comparison for row in found.mixed.rows] if found.mixed else []
    for each in compared:  # JSON has no signs of infinities
        if each is not None and each.snr == math.inf and each.largest_difference:
            object.__setattr__(each, "snr", -math.inf)
    return found


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
