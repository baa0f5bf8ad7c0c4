"""Do a job in a process of its own and watch over it; this is what executors are given to run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import onnxcompress
from onnxcompress.errors import CompressError
from onnxcompress.zoo.jobs import DONE, Outcome, Task
from onnxcompress.zoo.journal import entry_path

EVERY = 0.05  # seconds between two looks
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
PROC = Path("/proc")


def run(task: Task) -> Outcome:
    """Do `task` unless it is done, and return how it ended; it costs this process neither memory nor life.

    CompressError where this is another version of onnxcompress than the one that asks.
    """
    if task.version != onnxcompress.__version__:
        raise CompressError(f"onnxcompress {onnxcompress.__version__} runs here, expected {task.version}")
    if found := done(task):  # a worker may die after its job, before it can tell
        return found
    try:
        scratch = Path(tempfile.mkdtemp(prefix=f"{task.key[:12]}-", dir=task.scratch))
    except FileNotFoundError:
        return Outcome(job=task.job, status="stopped")
    began = time.perf_counter()
    (scratch / "job").write_text(task.job.label, encoding="utf-8")
    with (scratch / "said.txt").open("w+b") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "onnxcompress.zoo.process"],
            bufsize=0,
            cwd=scratch,
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=said,
            env=environment(task),
            start_new_session=True,
        )
        with process:
            try:
                ended = watched(process, task, scratch)
            finally:
                end(process)
        said.seek(max(0, said.seek(0, os.SEEK_END) - 4096))
        last = said.read().decode(errors="replace").strip().splitlines()[-1:]
    status, message = ended or dead(scratch, process.returncode, *last)
    shutil.rmtree(scratch, ignore_errors=True)
    if found := done(task):  # also where its process was killed between its last deed and its end
        return found
    return Outcome(job=task.job, status=status, seconds=time.perf_counter() - began, message=message)


def done(task: Task) -> Outcome | None:
    """Return the outcome of `task` that the journal holds, or None."""
    try:
        entry = json.loads(entry_path(task.out, task.key).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return Outcome(job=task.job, status=DONE, seconds=entry["seconds"], figures=entry["figures"])


def environment(task: Task) -> dict[str, str]:
    """Return the environment of the job's process: the modules that can be imported here, its threads."""
    threads = task.job.options["threads"]
    paths = [str(Path(each).absolute()) for each in sys.path]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        **({name: str(threads) for name in THREADS} if threads else {}),
    }


def watched(process: subprocess.Popen[bytes], task: Task, scratch: Path) -> tuple[str, str] | None:
    """Hand `process` its task and wait for its end; return what made it end too soon, if anything did."""
    assert process.stdin is not None
    began, job = time.monotonic(), task.job
    try:
        process.stdin.write(task.as_json().encode() + b"\n")
    except BrokenPipeError:
        return None
    while True:
        try:
            process.wait(EVERY)
        except subprocess.TimeoutExpired:
            pass
        else:
            return None
        if not scratch.exists():
            return "stopped", ""
        if job.seconds is not None and time.monotonic() - began > job.seconds:
            return "time", f"took more than {job.seconds:g} s"
        if job.memory is not None and anonymous_memory(process.pid) > job.memory:
            return "memory", f"took more than {job.memory / 1e9:g} GB of memory"


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill `process`, where it still runs, and all that it started."""
    if process.poll() is not None:
        return
    if hasattr(os, "killpg"):
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()


def anonymous_memory(pid: int) -> int:
    """Return the bytes of memory that belong to the process `pid` alone, swapped out or not.

    Pages of mapped files, such as weights, aren't counted: the system can drop them at any time. That is why
    no resource limit does for this: RLIMIT_AS counts them, RLIMIT_DATA counts what is reserved and never
    used, such as the stacks of threads, and both end in a crash anywhere. Source: proc_pid_status(5).
    """
    try:
        lines = (PROC / str(pid) / "status").read_text().splitlines()
    except OSError:  # it has just ended
        return 0
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return sum(1024 * int(fields[name].split()[0]) for name in ("RssAnon", "VmSwap") if name in fields)


def dead(scratch: Path, code: int, last: str = "") -> tuple[str, str]:
    """Return how a process that ended by itself with `code` failed, and a line about it."""
    if code == 0 and (scratch / "result.json").exists():
        status, message = json.loads((scratch / "result.json").read_text(encoding="utf-8"))
        return status, message
    if code < 0:
        return "killed", f"killed by {signal.Signals(-code).name}"
    return "killed", f"ended with {code}: {last}" if last else f"ended with {code}"
