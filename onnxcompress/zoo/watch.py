"""Show how far a run over many models is: bars on a terminal, a line for each event elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from onnxcompress.zoo.figures import size_cells
from onnxcompress.zoo.jobs import DONE, Outcome
from onnxcompress.zoo.many import State

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID


class Lines:
    """Says in a line each what has happened since the last look."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.told = 0
        self.running: dict[str, str] = {}

    def __call__(self, state: State) -> None:
        """Look."""
        for each in state.outcomes[self.told :]:
            self.told += 1
            rest = "" if state.left is None or self.told == state.total else f"; {duration(state.left)} left"
            self.say(f"[{self.told}/{state.total}] {sentence(each)}{rest}")
        for label, what in state.running.items():
            name = what.partition(" (")[0]
            if self.running.get(label) != name:
                self.running[label] = name
                self.say(f"{label}: {what}")


@contextmanager
def watching(console: Console) -> Iterator[Callable[[State], None]]:
    """Yield what shows on `console` how far a run is: bars where it is a terminal, lines elsewhere."""
    if console.is_terminal:
        with bars(console) as look:
            yield look
    else:
        yield Lines(lambda line: console.print(line, markup=False, soft_wrap=True))


@contextmanager
def bars(console: Console) -> Iterator[Callable[[State], None]]:
    """Yield what shows a bar for the run, one line for each job that runs, and a line for each that ended."""
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        whole = progress.add_task("jobs", total=None, note="")
        shown: dict[str, TaskID] = {}

        def look(state: State) -> None:
            lines(State(state.total, state.outcomes, left=None))
            left = "" if state.left is None else f", {duration(state.left)} left"
            ended = len(state.outcomes)
            progress.update(whole, total=state.total, completed=ended, note=f"{ended} of {state.total}{left}")
            for label in shown.keys() - state.running:
                progress.remove_task(shown.pop(label))
            for label, what in state.running.items():
                if label not in shown:
                    shown[label] = progress.add_task(label, total=None, note="")
                progress.update(shown[label], note=what)

        lines = Lines(lambda line: console.print(line, markup=False))
        yield look


def sentence(outcome: Outcome) -> str:
    """Return in a line how a job ended."""
    label = outcome.job.label
    if outcome.status != DONE:
        return f"{label}: {outcome.status}{f': {outcome.message}' if outcome.message else ''}"
    size, ratio = size_cells(outcome.figures)
    when = "finished before" if outcome.resumed else f"done in {outcome.seconds:.1f} s"
    return f"{label}: {when}, {size} ({ratio})"


def duration(seconds: float) -> str:
    """Return a time for people: 42 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
