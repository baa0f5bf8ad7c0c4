"""Jobs: one model through one recipe each, as plain data, and the hash of all that decides their result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from inspect import signature
from pathlib import Path, PurePosixPath
from typing import Any

import onnxcompress
from onnxcompress.base import Number
from onnxcompress.data import split_slice
from onnxcompress.data.tensors import find_sets
from onnxcompress.errors import BoundError, CompressError, UsageError, unknown
from onnxcompress.model import external_files, load
from onnxcompress.pipeline import compress
from onnxcompress.recipe import Mix, as_recipe, parse

# Arguments of `compress` that a job sets itself, or that are no plain data.
_OWN = {"model", "passes", "output", "report_file", "html_file", "command", "tolerance", "progress", "jobs"}
DATA = ("data", "evaluation")
DONE = "done"
SUMMARIES = ("summary.md", "summary.csv", "summary.html")


def known_options() -> list[str]:
    """Return what a job's options can be: arguments of `compress`, and the bounds of its tolerance."""
    return [*(name for name in signature(compress).parameters if name not in _OWN), "rtol", "atol"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One model by one recipe: it makes ``<name>/<recipe>.onnx`` and a report ``<name>/<recipe>.json``.

    `passes` is what :func:`onnxcompress.compress` takes, made text. `name` is by default that of the model's
    file, `recipe` the names of the passes. `options` are further arguments of `compress` as JSON has them:
    `data` and `evaluation` are paths, `rtol` and `atol` stand for `tolerance`; `threads` is 1 unless given,
    `measure_latency` false, since jobs side by side disturb each other. The job is ended when it takes more
    than `memory` bytes (Linux only) or `seconds`. UsageError for names that lead out of the folder, and for
    options that aren't known.
    """

    model: str | Path
    passes: Any
    name: str = ""
    recipe: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    memory: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        passes = parse(self.passes) if isinstance(self.passes, str) else as_recipe(self.passes)
        if isinstance(passes, Mix):
            parts = (*passes.before.passes, *passes.schemes, *passes.after.passes)
        else:
            parts = passes.passes
        for key in self.options:
            if key not in known_options():
                raise UsageError(f"job: {unknown('option', key, known_options())}")
        options = {"threads": 1, "measure_latency": False, **self.options}
        for key in DATA:
            if options.get(key) is not None:
                if not isinstance(options[key], str | Path):
                    raise UsageError(f"job: {key} is {type(options[key]).__name__}, expected a path")
                options[key] = str(Path(options[key]).absolute())
        for key in ("memory", "seconds"):
            if not (getattr(self, key) is None or getattr(self, key) > 0):
                raise UsageError(f"job: {key} is {getattr(self, key)}, expected more than 0")
        values = {
            "model": str(Path(self.model).absolute()),
            "passes": str(passes),
            "name": self.name or Path(self.model).stem,
            "recipe": self.recipe or "+".join(each.name for each in parts),
            "options": options,
        }
        for key, value in values.items():
            object.__setattr__(self, key, value)
        check_name(self.name, nested=True)
        check_name(self.recipe, nested=False)

    @property
    def label(self) -> str:
        """What messages call the job, and where its result is: ``<name>/<recipe>``."""
        return f"{self.name}/{self.recipe}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job ended.

    `status` is "done", "bound" (one was missed), "failed" (a model or request that can't be handled),
    "killed" (its process crashed or was killed), "time" or "memory" (the limit was reached), "lost" (with the
    machine it ran on) or "stopped" (with the run); `message` says more in one line. `figures` are those of
    the report that the summary shows, `resumed` says that an earlier run did the job.
    """

    job: Job
    status: str
    seconds: float = 0.0
    message: str = ""
    figures: Mapping[str, Number] = field(default_factory=dict)
    resumed: bool = False


def check_done(outcomes: Sequence[Outcome]) -> None:
    """Raise CompressError where some of `outcomes` aren't done, BoundError where only bounds were missed."""
    missed = [each for each in outcomes if each.status != DONE]
    if missed:
        kind = BoundError if all(each.status == "bound" for each in missed) else CompressError
        first = f"{missed[0].job.label}: {missed[0].status}"
        raise kind(f"{len(missed)} of {len(outcomes)} jobs aren't done: {first}: {missed[0].message}")


def check_name(name: str, nested: bool) -> None:
    """Raise UsageError where `name` is none for a file, or where `nested` a path, within a folder."""
    parts = PurePosixPath(name).parts
    bad = any(part.startswith(".") or part == "/" or set(part) & set('\\:*?"<>|\0\n') for part in parts)
    if not parts or bad or (len(parts) > 1 and not nested) or name.endswith("/"):
        raise UsageError(f"name: {name!r} is no name for a file, expected letters, digits, '-' and '_'")


def check_labels(jobs: Iterable[Job]) -> None:
    """Raise UsageError where two of the `jobs` would write the same file, or one what sums them up."""
    seen: dict[str, Job] = {}
    for job in jobs:
        if job.name.lower() in SUMMARIES:
            raise UsageError(f"{job.name}: is the name of a summary, expected another")
        other = seen.setdefault(job.label.lower(), job)
        if other is not job:
            raise UsageError(
                f"{job.label}: is made of {other.model} and of {job.model}, expected names of their own"
                if other.model != job.model
                else f"{job.label}: is made by two recipes, expected names of their own"
            )


@dataclass(frozen=True)
class Task:
    """A job as it is sent to where it runs.

    `key` is the hash of what decides the result, `out` the folder of all results, `scratch` that of the run,
    `version` the one that must be there.
    """

    job: Job
    key: str
    out: Path
    scratch: Path
    version: str = onnxcompress.__version__

    def as_json(self) -> str:
        """Return the task as one line of JSON, which `from_json` reads."""
        return json.dumps(asdict(self), default=str)

    @staticmethod
    def from_json(line: str) -> Task:
        """Return the task that `line` spells."""
        found = json.loads(line)
        places = {name: Path(found[name]) for name in ("out", "scratch")}
        return Task(Job(**found["job"]), found["key"], version=found["version"], **places)


class Keys:
    """Hashes of jobs: of their model, its external data, their data, recipe, options, name and our version.

    Each file is read once.
    """

    def __init__(self) -> None:
        self._digest = cache(digest)
        self._model = cache(self._of_model)

    def __call__(self, job: Job) -> str:
        """Return the key of `job`; what can't be read counts as empty, the job itself will say so."""
        options = dict(job.options)
        for each in DATA:
            if options.get(each) is not None:
                path, part = split_slice(options[each])
                files = [(str(file.relative_to(path)), self._digest(file)) for file in data_files(path)]
                options[each] = [files, repr(part)]
        content = {
            "version": onnxcompress.__version__,
            "label": job.label,
            "model": self._model(Path(job.model)),
            "passes": job.passes,
            "options": options,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _of_model(self, path: Path) -> Sequence[str]:
        try:
            apart = sorted(external_files(load(path), path)) if path.is_file() else []
        except CompressError:
            apart = []
        return [self._digest(path), *(f"{file.name} {self._digest(file)}" for file in apart)]


def digest(path: Path) -> str:
    """Return the SHA-256 of the file `path` as hexadecimal digits; empty where it can't be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def data_files(path: Path) -> Iterator[Path]:
    """Yield the files of the calibration or evaluation data `path` in a fixed order."""
    for folder in (find_sets(path) if path.is_dir() else []) or [path]:
        yield from (
            sorted(each for each in folder.iterdir() if each.is_file()) if folder.is_dir() else [folder]
        )
