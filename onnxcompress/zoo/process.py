"""The process of one job: ``python -m onnxcompress.zoo.process``, with the task as a line on standard input.

What it makes goes into the folder it runs in (``made``, ``progress.json``, and ``result.json`` where it
fails) and from there to its place by renames only. It ends when its standard input does: with whoever
started it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxcompress.base import Number
from onnxcompress.errors import BoundError, CompressError
from onnxcompress.pipeline import compress
from onnxcompress.report import Report
from onnxcompress.verify import Tolerance
from onnxcompress.zoo.jobs import DONE, Task
from onnxcompress.zoo.journal import entry_path, publish, withdraw

EVERY = 0.2  # seconds between two notes of progress


def main() -> None:
    """Do the task that standard input spells."""
    task = Task.from_json(sys.stdin.readline())
    threading.Thread(target=end_with_standard_input, daemon=True).start()
    status, message = work(task)
    if status != DONE:
        Path("draft.json").write_text(json.dumps([status, " ".join(message.split())]), encoding="utf-8")
        os.replace("draft.json", "result.json")


def end_with_standard_input() -> None:
    """Wait until whoever started this process is gone, then end it and all that it started."""
    while os.read(0, 4096):  # not sys.stdin: what is read through it can't be given up at the end
        pass
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def work(task: Task) -> tuple[str, str]:
    """Compress, publish what came out, and return how that ended and a line about it."""
    began, job = time.perf_counter(), task.job
    made = Path("made")
    made.mkdir()  # fails where the run has ended
    if entry_path(task.out, task.key).exists():  # by another process, whose worker was thought dead
        return DONE, ""
    file, told = made / f"{job.recipe}.onnx", made / f"{job.recipe}.json"
    try:
        withdraw(task.out, job.label)
        report = compress(
            job.model,
            job.passes,
            output=file,
            report_file=told,
            progress=Notes(),
            **arguments(job.options),
        ).report
    except BoundError as error:
        return "bound", str(error)
    except CompressError as error:
        return "failed", str(error)
    except MemoryError:
        return "memory", "the machine has no more memory"
    except OSError as error:
        return "failed", str(error)
    report.output = str(task.out / f"{job.label}.onnx")
    told.write_text(report.as_json() + "\n", encoding="utf-8")
    publish(made, task.out, job.label, task.key, figures(report), time.perf_counter() - began)
    return DONE, ""


def arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a job as arguments of `compress`."""
    given = dict(options)
    given["tolerance"] = Tolerance(given.pop("rtol", None), given.pop("atol", None))
    if given.get("shapes"):
        given["shapes"] = {name: tuple(dims) for name, dims in given["shapes"].items()}
    return given


@dataclass
class Notes:
    """Writes down how far the job is, now and then, for whoever looks."""

    last: float = 0.0

    def __call__(self, done: int, total: int | None, what: str) -> None:
        """Note that `done` of `total` are done, and `what` comes."""
        if time.monotonic() - self.last < EVERY:
            return
        self.last = time.monotonic()
        Path("draft.json").write_text(json.dumps([done, total, what]), encoding="utf-8")
        os.replace("draft.json", "progress.json")


def figures(report: Report) -> dict[str, Number]:
    """Return what a summary shows of `report`; what it doesn't know is left out."""
    found: dict[str, Number | None] = {"target": report.target}
    for when, size in (("before", report.before), ("after", report.after)):
        if size is not None:
            found |= {f"bytes_{when}": size.bytes, f"parameters_{when}": size.parameters}
    compared = report.evaluation or report.comparison
    if compared is not None:
        found |= {"agreement": compared.agreement, "random": int(compared.random)}
        if compared.snr != float("inf"):
            found["snr"] = compared.snr
        if compared.top1 is not None:
            found |= {"top1_before": compared.top1[0], "top1_after": compared.top1[1]}
    if report.latency is not None:
        found["latency_ratio"] = report.latency.ratio
    return {name: value for name, value in found.items() if value is not None}


if __name__ == "__main__":
    main()
