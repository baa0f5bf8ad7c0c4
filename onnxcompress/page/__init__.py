"""Reports of runs as one HTML file that needs no network and no scripts (docs/report.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

import onnxcompress
from onnxcompress.errors import UsageError
from onnxcompress.report import Report, Step, count_bytes, likeness, step_lines

if TYPE_CHECKING:
    import jinja2

SECTIONS = {
    "summary": "Before and after",
    "passes": "Size by pass",
    "bytes": "Bytes by tensor",
    "quality": "Accuracy and latency",
    "staircase": "Latency by channels kept",
    "energy": "Energy by kind of layer",
    "layers": "Error by layer",
    "sensitivity": "Sensitivity of layers",
    "weights": "Sparsity and values of weights",
    "left": "Left as it was",
    "repeat": "To repeat this run",
}
ROWS = 200  # of each long table, in all runs together
FEWEST = 3
NAMES = 40  # of layers that were left for one reason


def page(reports: Sequence[tuple[str, Report]]) -> str:
    """Return the HTML page of one run, or of several with a comparison; each has a title.

    Long tables are cut where there are many runs, the largest first; the page says so. UsageError where
    jinja2 is not installed.
    """
    from onnxcompress.page.comparison import compared
    from onnxcompress.page.run import Run

    most = max(FEWEST, ROWS // len(reports))
    runs = [Run(f"run-{number}", title, each, most) for number, (title, each) in enumerate(reports, 1)]
    title = f"onnxcompress: {runs[0].title if len(runs) == 1 else f'{len(runs)} runs'}"
    return render(
        "runs.html.jinja", title, {"runs": runs, "compared": compared(runs) if len(runs) > 1 else None}
    )


def render(template: str, title: str, content: Mapping[str, object]) -> str:
    """Return the page that the file `template` of this folder makes of `content`.

    UsageError where jinja2 is not installed.
    """
    style = files(__package__).joinpath("style.css").read_text(encoding="utf-8")
    frame = {"title": title, "version": onnxcompress.__version__, "style": style}
    text: str = page_template(template).render(frame | dict(content))
    return text.lstrip().encode("utf-8", "replace").decode("utf-8")  # names may hold halves of characters


def page_template(name: str = "frame.html.jinja") -> jinja2.Template:
    """Return the template in the file `name` of this folder; UsageError where jinja2 is not installed."""
    try:
        import jinja2  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "html: jinja2 is not installed, expected pip install onnxcompress[report]"
        ) from error
    return _environment().get_template(name)


@cache
def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FunctionLoader(
            lambda name: files(__package__).joinpath(name).read_text(encoding="utf-8")
        ),
    )
    environment.filters |= {"bytes": count_bytes, "likeness": likeness, "did": _did}
    environment.globals |= {"SECTIONS": SECTIONS, "SHOWN_NAMES": NAMES}
    return environment


def _did(step: Step) -> str:
    return "; ".join("\n".join(step_lines(step)).split("\n"))
