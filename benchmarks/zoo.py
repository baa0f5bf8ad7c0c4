"""A zoo of twenty jobs, on processes of this machine and on dask: the same files, and how it scales.

Ten models of testdata by two recipes. With one and with two jobs at a time, in turns, ``--pairs`` times; then
on a dask cluster of a scheduler and two workers on loopback, where it is installed. Prints times, speed-up,
what two processes that only compute gain (the most there can be), and whether the files are the same bit for
bit.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from onnxcompress import Job, compress_many
from onnxcompress.zoo.engines import local, open_engine
from onnxcompress.zoo.jobs import digest

TESTDATA = Path(__file__).parent.parent / "testdata"
RECIPES = {"pruned": "simplify,prune(sparsity=0.6),encode", "int8": "quant(activations=none)"}


def twenty() -> list[Job]:
    """Return the jobs: every model of testdata by each of RECIPES."""
    data = {"data": str(TESTDATA / "digits_calib.npz[:32]")}
    return [
        Job(model=model, passes=passes, recipe=name, options=data)
        for model in sorted(TESTDATA.glob("*.onnx"))
        for name, passes in RECIPES.items()
    ]


def files(out: Path) -> dict[str, str]:
    """Return the models that a run has made in `out`, and their hashes."""
    return {str(each.relative_to(out)): digest(each) for each in sorted(out.glob("*/*.onnx"))}


def timed(jobs: Sequence[Job], executor: Executor, out: Path) -> float:
    """Do `jobs`; return the seconds that takes. An error where one isn't done."""
    began = time.perf_counter()
    outcomes = compress_many(jobs, executor, out=out)
    bad = [each for each in outcomes if each.status != "done"]
    assert not bad, bad
    return time.perf_counter() - began


@contextmanager
def cluster(workers: int) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """Yield the address of a dask scheduler, and its process and those of its workers, a thread each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    scheduler = ["scheduler", "--host", address, "--no-dashboard", "--no-jupyter"]
    worker = ["worker", address, "--nthreads", "1", "--no-dashboard", "--no-nanny"]
    paths = os.pathsep.join(filter(None, sys.path))
    with tempfile.TemporaryDirectory() as folder, open(f"{folder}/log", "wb") as log:
        environment = {**os.environ, "PYTHONPATH": paths, "DASK_TEMPORARY_DIRECTORY": folder}
        processes = [
            subprocess.Popen([sys.executable, "-m", "dask", *each], env=environment, stdout=log, stderr=log)
            for each in (scheduler, *[worker] * workers)
        ]
        try:
            wait_for(address)
            yield address, processes
        finally:
            for each in processes:
                each.kill()
                each.wait()


def wait_for(address: str) -> None:
    """Wait until something listens at `address`."""
    host, _, port = address.removeprefix("tcp://").partition(":")
    while True:
        with socket.socket() as tried:
            if tried.connect_ex((host, int(port))) == 0:
                return
        time.sleep(0.1)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3, help="times one and two jobs at a time are compared")
    pairs = parser.parse_args().pairs
    jobs = twenty()
    with tempfile.TemporaryDirectory() as name:
        folder, ratios, ideal = Path(name), [], []
        for number in range(pairs):
            seconds = {}
            for count in (1, 2) if number % 2 else (2, 1):
                with local(count) as executor:
                    seconds[count] = timed(jobs, executor, folder / f"local{count}")
            ratios.append(seconds[1] / seconds[2])
            ideal.append(gain())
            took = f"{seconds[1]:.1f} s one at a time, {seconds[2]:.1f} s two"
            print(f"{len(jobs)} jobs: {took}, load {os.getloadavg()[0]:.1f}", flush=True)
        print(f"speed-up by two at a time: median {median(ratios):.2f}x of {pairs} pairs")
        print(f"two processes that only compute: {median(ideal):.2f}x")
        expected = files(folder / "local1")
        print(f"one and two at a time: {same(expected, files(folder / 'local2'))}")
        if find_spec("distributed") is None:
            print("dask: not installed, left out")
            return
        with cluster(2) as (address, _), open_engine("dask", None, address) as executor:
            seconds_dask = timed(jobs, executor, folder / "dask")
        print(f"dask, two workers: {seconds_dask:.1f} s, {same(expected, files(folder / 'dask'))}")


def gain() -> float:
    """Return how much faster two processes that only compute are at once than one after the other."""
    command = [sys.executable, "-c", "for each in range(10**8): pass"]
    began = time.perf_counter()
    for _ in range(2):
        subprocess.run(command, check=True)
    middle = time.perf_counter()
    for each in [subprocess.Popen(command) for _ in range(2)]:
        each.wait()
    return (middle - began) / (time.perf_counter() - middle)


def same(expected: dict[str, str], found: dict[str, str]) -> str:
    """Return in words whether two runs made the same files."""
    equal = sum(found.get(name) == stored for name, stored in expected.items())
    return f"{equal} of {len(expected)} files the same bit for bit"


if __name__ == "__main__":
    main()
