"""Write docs/passes.md from the passes themselves; with --check, fail where it is stale."""

import inspect
import sys
from pathlib import Path

from onnxcompress.base import Pass
from onnxcompress.recipe import PRESETS, preset
from onnxcompress.registry import passes

PAGE = Path(__file__).parent / "passes.md"
HEAD = """# Passes

Generated from the source by `make docs`; `onnxcompress passes NAME` prints the same in a terminal. An *exact*
pass keeps the outputs within a stated tolerance, a *lossy* one has its loss measured and reported.
"""


def page() -> str:
    """Return the page as Markdown."""
    presets = "\n".join(f"* `{name}` = `{preset(name)}`" for name in PRESETS)
    return "\n".join([HEAD, *(section(each) for each in passes().values()), f"## Presets\n\n{presets}\n"])


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


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(
            0 if PAGE.exists() and PAGE.read_text() == page() else f"{PAGE.name} is stale: run make docs"
        )
    PAGE.write_text(page())
