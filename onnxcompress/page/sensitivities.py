"""What the page of `sensitivity` shows: what outputs lose when one layer alone is compressed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from onnxcompress.page import FEWEST, ROWS, render
from onnxcompress.page.layers import Curves, Trial, layer_curves, numbered, sensitivity_curves, trials
from onnxcompress.page.run import cut
from onnxcompress.report import count_bytes, decibels
from onnxcompress.trials import Sensitivity


class Alone:
    """A model whose layers were compressed alone; `id` begins its anchors, `most` are rows of its table."""

    def __init__(self, id: str, title: str, found: Sensitivity, most: int) -> None:
        self.id, self.title, self.found, self.most = id, title, found, most

    @property
    def figures(self) -> Iterator[tuple[str, str]]:
        """What was tried, and on what."""
        rows = self.found.rows
        compared = [(row, row.comparison) for row in rows if row.comparison is not None]
        yield "weights as they are", count_bytes(self.found.bytes)
        yield "layers", f"{len(numbered(rows)):,}"
        yield "schemes", ", ".join(dict.fromkeys(row.scheme for row in rows))
        if compared:
            _, first = compared[0]
            yield "samples", f"{first.samples:,}{' of random inputs' if first.random else ''}"
            row, worst = min(compared, key=lambda pair: pair[1].snr)
            yield "loses most", f"{row.layer} by {row.scheme}: {decibels(worst.snr)}"
        if left := len(rows) - len(compared):
            yield "left alone", f"{left:,} of {len(rows):,}"
        yield "onnxcompress", self.found.version

    @property
    def curves(self) -> list[Curves]:
        """What outputs lose, in the order of the model, and the layer that hurts most first."""
        ranked = sensitivity_curves(self.found.rows, self.most)
        return [*layer_curves(self.found.rows, self.most), *([ranked] if ranked else [])]

    @property
    def trials(self) -> list[Trial]:
        """What schemes do to layers alone."""
        return trials(self.found.rows, {})[: self.most]

    @property
    def trials_cut(self) -> str:
        """What the caption says where rows are missing."""
        return cut(self.most, len(self.found.rows))


def sensitivities_page(found: Sequence[tuple[str, Sensitivity]]) -> str:
    """Return the HTML page of what layers lose alone, for one model or several, each with a title.

    Long tables are cut; the page says so. UsageError where jinja2 is not installed.
    """
    most = max(FEWEST, ROWS // len(found))
    models = [Alone(f"model-{number}", title, each, most) for number, (title, each) in enumerate(found, 1)]
    title = models[0].title if len(models) == 1 else f"{len(models)} models"
    return render("sensitivities.html.jinja", f"Sensitivity of layers: {title}", {"models": models})
