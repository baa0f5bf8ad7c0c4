"""Write the pages of docs/ that are made from the source; with --check, fail where they are stale."""

import inspect
import json
import re
import sys
from pathlib import Path

from onnxcompress.base import Pass
from onnxcompress.formats import FORMATS, Format
from onnxcompress.recipe import PRESETS, preset
from onnxcompress.registry import passes
from onnxcompress.report import SCHEMA, Report
from onnxcompress.target import TARGETS
from onnxcompress.typed import schema

FOLDER = Path(__file__).parent
HEAD = """# Passes

Generated from the source by `make docs`; `onnxcompress passes NAME` prints the same in a terminal. An *exact*
pass keeps the outputs within a stated tolerance, a *lossy* one has its loss measured and reported.
"""


TARGETS_HEAD = """## Targets

`--target NAME`, or `target=` in Python, says for what machine to compile. The default, `host`, is this one
and stands for one of the names below. The report says which, and so does the file where a pass asked for it:
with that name, another machine does the same.

| target | machine | channels computed at a time |
|---|---|---|
"""

FORMATS_HEAD = """# Formats

Generated from the source by `make docs`. A stored weight is an expression of these functions, which stand in
the file itself, in the domain `onnxcompress`: model-local functions of standard ONNX operators. `encode`
tries every expression that gives back the same bits and keeps the smallest. `onnxcompress inspect FILE` shows
what was chosen.
"""


def passes_page() -> str:
    """Return the page on passes as Markdown."""
    presets = "\n".join(f"* `{name}` = `{preset(name)}`" for name in PRESETS)
    machines = "\n".join(f"| `{each.name}` | {each.what} | {each.multiple} |" for each in TARGETS.values())
    ends = [f"## Presets\n\n{presets}\n", f"{TARGETS_HEAD}{machines}\n"]
    return "\n".join([HEAD, *(section(each) for each in passes().values()), *ends])


def formats_page() -> str:
    """Return the page on storage formats as Markdown."""
    return "\n".join([FORMATS_HEAD, *map(specification, FORMATS.values())])


def specification(each: Format) -> str:
    """Return what the page says of one format."""
    text = re.sub("``(.+?)``(?!`)", code, inspect.cleandoc(each.__doc__ or ""), flags=re.DOTALL)
    word = f"`encode(format={each.word})` forces it.\n\n" if each.word else ""
    return f"## `{each.name}`\n\n{text}\n\n{word}"


def code(found: re.Match[str]) -> str:
    """Return code in Markdown, which may have backquotes itself."""
    text = found[1].replace("\n", " ")
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def section(each: type[Pass]) -> str:
    """Return what the page says of one pass."""
    rows = ["| option | default | takes | meaning |", "|---|---|---|---|"]
    for option in each.options():
        takes = option.kind.__name__
        if option.choices:
            takes = ", ".join(f"`{choice}`" for choice in option.choices)
        elif option.within:
            takes += f", {option.within[0]:g} to {option.within[1]:g}"
        default = str(option.default).lower() if option.kind is bool else str(option.default)
        rows.append(
            f"| `{option.name}` | {f'`{default}`' if default else 'none'} | {takes} | {option.help} |"
        )
    text = inspect.cleandoc(each.__doc__ or "").replace("\nAfter: ", "\\\nAfter: ").replace("``", "`")
    needs = "".join(
        f"{label}: {', '.join(sorted(need.value for need in wanted))}.\n\n"
        for label, wanted in (("Needs", each.needs), ("Uses, where given", each.uses))
        if wanted
    )
    return f"## `{each.name}` ({each.effect.value})\n\n{text}\n\n{needs}" + "\n".join(rows) + "\n"


def report_schema() -> str:
    """Return the JSON Schema of what --report writes."""
    head = {"schema": {"description": "The version of this schema.", "const": SCHEMA}}
    title = f"Report of an onnxcompress run, version {SCHEMA}"
    return json.dumps(schema(Report, head, title), indent=2) + "\n"


PAGES = {"passes.md": passes_page, "formats.md": formats_page, "report.schema.json": report_schema}

if __name__ == "__main__":
    for name, page in PAGES.items():
        path = FOLDER / name
        if "--check" not in sys.argv:
            path.write_text(page())
        elif not path.exists() or path.read_text() != page():
            sys.exit(f"{name} is stale: run make docs")
