"""Many models: jobs handed to an executor, watched, and their results kept."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from onnxcompress.errors import CompressError, UsageError
from onnxcompress.zoo.engines import local
from onnxcompress.zoo.jobs import Job, Keys, Outcome, Task, check_labels
from onnxcompress.zoo.journal import entry_path, finished, opened
from onnxcompress.zoo.work import PROC, done, run

EVERY = 0.5  # seconds between two looks
LAST_WAIT = 10.0  # seconds in which jobs that run must end when the run does


@dataclass(frozen=True)
class State:
    """How far a run is: of `total` jobs those that ended, and what those that run are at, by their labels.

    `left` is about how many seconds the rest will take, None where nothing tells.
    """

    total: int
    outcomes: list[Outcome] = field(default_factory=list)
    running: Mapping[str, str] = field(default_factory=dict)
    left: float | None = None


def unwatched(state: State) -> None:
    """Look away."""


def compress_many(
    jobs: Iterable[Job],
    executor: Executor | None = None,
    *,
    out: str | Path,
    resume: bool = False,
    watch: Callable[[State], None] = unwatched,
) -> list[Outcome]:
    """Do `jobs` and return how each ended, in their order; what they make is in the folder `out`.

    `executor` is any of ``concurrent.futures`` (default: on this machine, as many jobs at a time as there are
    processors) whose workers see the same files. A job runs in a process of its own: its crash costs nothing
    else. With `resume`, jobs that an earlier run in `out` finished aren't repeated, if their model, data,
    recipe, options, our version, and what was made of them are still the same. `watch` is told how far it is,
    about twice a second. UsageError where two jobs would write the same file, or another run is at work in
    `out`.
    """
    jobs = list(jobs)
    check_labels(jobs)
    if not PROC.is_dir() and any(job.memory is not None for job in jobs):
        raise UsageError("memory: can be limited on Linux only")
    if executor is None:
        with local() as own:
            return compress_many(jobs, own, out=out, resume=resume, watch=watch)
    out = Path(out).absolute()
    futures: dict[Future[Outcome], Task] = {}
    try:
        with opened(out) as scratch:
            keys = Keys()
            tasks = [Task(job, keys(job), out, scratch) for job in jobs]
            ended = _earlier(tasks) if resume else {}
            for task in tasks:
                if task.key not in ended:
                    entry_path(out, task.key).unlink(missing_ok=True)
                    _submit(executor, task, futures, ended)
            _wait(futures, ended, len(tasks), watch)
    finally:  # what runs on after an interrupt has lost its folder and ends
        for each in futures:
            each.cancel()
        wait(futures, LAST_WAIT)
    return [ended[task.key] for task in tasks]


def _earlier(tasks: Iterable[Task]) -> dict[str, Outcome]:
    """Return the outcomes of those `tasks` that an earlier run finished, by key."""
    return {
        task.key: replace(found, resumed=True)
        for task in tasks
        if finished(task.out, task.key) and (found := done(task))
    }


def _submit(
    executor: Executor, task: Task, futures: dict[Future[Outcome], Task], ended: dict[str, Outcome]
) -> None:
    """Hand `task` to the `executor`; where that is broken, the task has ended."""
    try:
        futures[executor.submit(run, task)] = task
    except BrokenExecutor as error:
        ended[task.key] = Outcome(job=task.job, status="lost", message=_line(error))


def _wait(
    futures: Mapping[Future[Outcome], Task],
    ended: dict[str, Outcome],
    total: int,
    watch: Callable[[State], None],
) -> None:
    """Add the outcomes of all `futures` to `ended` as they come in; `watch` is told meanwhile."""
    began, before, waiting = time.monotonic(), len(ended), set(futures)
    while True:
        fresh = len(ended) - before
        left = (time.monotonic() - began) / fresh * len(waiting) if fresh else None
        watch(State(total, list(ended.values()), _running(futures), left))
        if not waiting:
            return
        over, waiting = wait(waiting, EVERY, return_when=FIRST_COMPLETED)
        ended |= {futures[each].key: _outcome(each, futures[each]) for each in over}


def _outcome(future: Future[Outcome], task: Task) -> Outcome:
    """Return how `task` ended, whose `future` is over."""
    if future.cancelled():
        return Outcome(job=task.job, status="lost", message="the executor has given it up")
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, CompressError):
        return Outcome(job=task.job, status="failed", message=_line(error))
    return Outcome(job=task.job, status="lost", message=f"{type(error).__name__}: {_line(error)}")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _running(futures: Mapping[Future[Outcome], Task]) -> dict[str, str]:
    """Return what the jobs that run are at, by label, as their processes have written it down."""
    found = {}
    for folder in {task.scratch for task in futures.values()}:
        for path in folder.glob("*/job"):
            with suppress(OSError, ValueError):  # it may end at any time
                label = path.read_text(encoding="utf-8")
                found[label] = "starts"
                done, total, what = json.loads(path.with_name("progress.json").read_text(encoding="utf-8"))
                found[label] = what if total is None else f"{what} ({min(done + 1, total)} of {total})"
    return found
