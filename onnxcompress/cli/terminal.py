"""What is printed, where, and with what exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import click

if TYPE_CHECKING:
    from rich.console import Console


def terminal(stderr: bool = False) -> Console:
    """Return a console on standard output or error."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


def say_notes(notes: Iterable[str]) -> None:
    """Print what a user must see, on standard error."""
    from rich.text import Text

    for note in notes:
        terminal(stderr=True).print(Text.assemble(("note: ", "yellow"), note))


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int | None, str], None]]:
    """Yield a function that shows progress on stderr, where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda done, total, what: None
        return
    from rich.progress import Progress

    with Progress(console=terminal(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total, what: bar.update(task, completed=done, total=total, description=what)


def fail(message: str, code: int) -> NoReturn:
    """Print one line of error and exit."""
    click.echo(f"onnxcompress: {' '.join(message.split())}", err=True)
    sys.exit(code)
