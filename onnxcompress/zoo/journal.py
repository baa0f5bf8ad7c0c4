"""The folder of a run: what is finished, one file a job, and room for what is being made."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from onnxcompress.errors import CompressError, UsageError
from onnxcompress.zoo.jobs import digest

try:
    import fcntl
except ImportError:  # Windows: two runs in one folder at a time aren't told
    fcntl = None  # type: ignore[assignment]

HOME = ".zoo"  # within the folder of the results


def entry_path(out: Path, key: str) -> Path:
    """Return where the journal in the folder `out` tells of the finished job `key`."""
    return out / HOME / "done" / f"{key}.json"


def finished(out: Path, key: str) -> Mapping[str, Any] | None:
    """Return what the journal tells of the job `key`; None where it isn't finished or its files changed."""
    try:
        entry: Mapping[str, Any] = json.loads(entry_path(out, key).read_text(encoding="utf-8"))
        whole = all(digest(out / name) == stored for name, stored in entry["files"].items())
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    return entry if whole else None


def publish(made: Path, out: Path, label: str, key: str, figures: Mapping[str, Any], seconds: float) -> None:
    """Move the files of a job from the folder `made` to their places, then enter it into the journal.

    What an earlier job made there must have been withdrawn. The model comes last: where it is, its report and
    external data are its own. All moves are renames. FileNotFoundError where `made` is gone: the run has
    ended.
    """
    target = out / f"{label}.onnx"
    files = {f"{label}{each.name.removeprefix(target.stem)}": each for each in sorted(made.iterdir())}
    entry = {
        "job": label,
        "files": {name: digest(each) for name, each in files.items()},
        "figures": figures,
        "seconds": seconds,
    }
    draft = made / "entry"
    write(draft, json.dumps(entry, indent=1))
    target.parent.mkdir(parents=True, exist_ok=True)
    for name in sorted(files, key=lambda name: (name.endswith(".onnx"), name)):
        os.replace(files[name], out / name)
    os.replace(draft, entry_path(out, key))


def withdraw(out: Path, label: str) -> None:
    """Remove what an earlier job made at `label`, the model first."""
    for ending in (".onnx", ".onnx.data", ".json", ".html"):
        (out / f"{label}{ending}").unlink(missing_ok=True)


def write(path: Path, text: str) -> None:
    """Write `text` to the file `path` and wait until the disk has it."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def opened(out: Path) -> Iterator[Path]:
    """Yield a folder for what a run makes, within `out`; no other process runs in `out` meanwhile.

    The folder is moved away at the end, which stops what still works in it, here and on other machines, as
    does the start of the next run. UsageError where another run is at work, CompressError where nothing can
    be written.
    """
    home = out / HOME
    runs, over = home / "runs", home / "over"
    try:
        (home / "done").mkdir(parents=True, exist_ok=True)
        runs.mkdir(exist_ok=True)
        lock = (home / "lock").open("w")
    except OSError as error:
        raise CompressError(f"{out}: can't be written: {error.strerror}") from error
    with lock:
        if fcntl is not None:
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # which forked workers don't inherit
            except OSError as error:
                raise UsageError(f"{out}: another run is at work in this folder") from error
        shutil.rmtree(over, ignore_errors=True)
        _end(runs, over)
        runs.mkdir(exist_ok=True)
        try:
            yield Path(tempfile.mkdtemp(dir=runs))
        finally:
            _end(runs, over)


def _end(runs: Path, over: Path) -> None:
    """Move the folder `runs` away in one step, then remove it."""
    over.mkdir(exist_ok=True)
    with suppress(OSError):
        os.replace(runs, Path(tempfile.mkdtemp(dir=over)) / "runs")
    shutil.rmtree(over, ignore_errors=True)
