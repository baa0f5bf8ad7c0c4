"""The command that explains passes, and the texts it takes from them."""

from __future__ import annotations

from inspect import cleandoc
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from onnxcompress.base import Pass


@click.command()
@click.argument("name", required=False)
def passes(name: str | None) -> None:
    """List the passes, or explain one and its options."""
    from onnxcompress.registry import find_pass

    if name is None:
        width = max(len(each.name) for each in built_in())
        for each in built_in():
            click.echo(f"{each.name:{width}}  {each.effect.value:5}  {summary(each)}")
        return
    click.echo(explain(find_pass(name)))


def summary(each: type[Pass]) -> str:
    """Return the first line of a pass's documentation."""
    return cleandoc(each.__doc__ or "").splitlines()[0]


def explain(each: type[Pass]) -> str:
    """Return a pass's documentation page as text."""
    lines = [f"{each.name} ({each.effect.value})", "", cleandoc(each.__doc__ or ""), "", "Options:"]
    for entry in each.options():
        bounds = ", ".join(map(str, entry.choices)) if entry.choices else ""
        if entry.within:
            bounds = f"{entry.within[0]:g} to {entry.within[1]:g}"
        kind = f"{entry.kind.__name__}{', ' + bounds if bounds else ''}"
        lines.append(f"  {entry.name} = {entry.default!r} ({kind}): {entry.help}")
    for label, wanted in (("Needs", each.needs), ("Uses where given", each.uses)):
        if wanted:
            lines.append(f"{label}: {', '.join(sorted(need.value for need in wanted))}")
    return "\n".join(lines)


def built_in() -> list[type[Pass]]:
    """Return the classes of all passes there are."""
    from onnxcompress.registry import passes as known

    return list(known().values())
