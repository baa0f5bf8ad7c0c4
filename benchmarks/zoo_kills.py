"""Kill a zoo of twenty jobs at random moments, resume it each time, and look at what is there.

``--kills`` rounds (20). Each starts ``onnxcompress zoo``, in turns on processes and on dask (a scheduler and
two workers), kills by SIGKILL at a random moment a job's process, a worker, the scheduler or the parent, and
looks: every model there is must be the right one, none half-written. Then ``--resume`` on processes:
everything must be done, right bit for bit, and nothing repeated that was finished.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

import onnx
from zoo import RECIPES, TESTDATA, cluster, files, twenty

from onnxcompress import compress_many
from onnxcompress.zoo.engines import local

MANIFEST = f"""
calibration = '{TESTDATA}/digits_calib.npz[:32]'
[[model]]
path = '{TESTDATA}/*.onnx'
""" + "".join(f"[[recipe]]\nname = '{name}'\npasses = '{passes}'\n" for name, passes in RECIPES.items())
VICTIMS = {"local": ("job", "parent"), "dask": ("job", "worker", "scheduler", "parent")}


def workers_in(out: Path) -> list[int]:
    """Return the numbers of the processes whose working folder is in `out`: those of jobs."""
    found = []
    for each in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if str(each.readlink()).startswith(str(out)):
                found.append(int(each.parent.name))
        except OSError:
            continue
    return found


def stamps(out: Path) -> dict[str, tuple[int, int]]:
    """Return for each model in `out` what changes when it is written again."""
    return {
        str(each.relative_to(out)): (each.stat().st_ino, each.stat().st_mtime_ns)
        for each in out.glob("*/*.onnx")
    }


def strike(folder: Path, engine: str, victim: str, seconds: float) -> str | None:
    """Start a run into ``folder/out``, kill `victim` after `seconds` and wait for the end.

    Returns the last line it said; None where the run was over before.
    """
    folder.mkdir()
    (folder / "zoo.toml").write_text(MANIFEST)
    out = folder / "out"
    with ExitStack() as stack:
        options, processes = ["--jobs", "2"], []
        if engine == "dask":
            address, processes = stack.enter_context(cluster(2))
            options = ["--engine", "dask", "--scheduler", address]
        parent = subprocess.Popen(
            [sys.executable, "-m", "onnxcompress", "zoo", "zoo.toml", *options],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        stack.callback(parent.kill)
        while not workers_in(out):
            time.sleep(0.02)
        time.sleep(seconds)
        pids = {
            "parent": [parent.pid],
            "scheduler": [each.pid for each in processes[:1]],
            "worker": [each.pid for each in processes[1:2]],
            "job": workers_in(out)[:1],
        }
        if parent.poll() is not None or not pids[victim]:
            parent.communicate(timeout=300)
            return None
        os.kill(pids[victim][0], signal.SIGKILL)
        if victim == "parent":
            time.sleep(random.random())
        _, said = parent.communicate(timeout=300)
    return said.splitlines()[-1] if victim != "parent" else "gone without a word"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    engines = ["local", "dask"] if find_spec("distributed") else ["local"]
    with tempfile.TemporaryDirectory() as name:
        reference = Path(name) / "reference"
        with local() as executor:
            began = time.perf_counter()
            compress_many(twenty(), executor, out=reference)
            whole = time.perf_counter() - began
        expected = files(reference)
        print(
            f"reference: {len(expected)} models in {whole:.1f} s, load {os.getloadavg()[0]:.1f}", flush=True
        )
        for number in range(arguments.kills):
            engine = engines[number % len(engines)]
            victim = VICTIMS[engine][number // len(engines) % len(VICTIMS[engine])]
            said = None
            while said is None:
                folder = Path(tempfile.mkdtemp(dir=name)) / "zoo"
                moment = random.uniform(0, whole)
                said = strike(folder, engine, victim, moment)
            check(folder / "out", expected, f"{number + 1}: {engine}, {victim} after {moment:.1f} s", said)


def check(out: Path, expected: dict[str, str], what: str, said: str) -> None:
    """Look at what a killed run left in `out`, resume it, and look again; an error where it is wrong."""
    left = files(out)
    assert all(expected[name] == stored for name, stored in left.items()), "a model isn't right"
    for each in left:
        onnx.checker.check_model(onnx.load(out / each))
    before, finished = stamps(out), len(list((out / ".zoo" / "done").glob("*")))
    with local() as executor:
        outcomes = compress_many(twenty(), executor, out=out, resume=True)
    resumed = [each for each in outcomes if each.resumed]
    assert all(each.status == "done" for each in outcomes), outcomes
    assert files(out) == expected, "not all is right after the resumption"
    assert len(resumed) == finished, f"{len(resumed)} skipped of {finished} finished"
    after = stamps(out)
    kept = {f"{each.job.label}.onnx" for each in resumed}
    assert all(before[each] == after[each] for each in kept), "a finished job was repeated"
    stray = [
        str(each) for each in out.rglob("*") if each.name.startswith(".onnxcompress") or "runs/" in str(each)
    ]
    assert not stray, stray
    print(
        f"{what}: {finished} finished, {len(expected) - finished} done by --resume, all right; {said}",
        flush=True,
    )


if __name__ == "__main__":
    main()
