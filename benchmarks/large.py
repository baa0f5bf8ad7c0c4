"""Compress a model that is larger than memory should have to be, and print the memory it took.

    python benchmarks/large.py [--gigabytes 3] [--passes prune,quant] [--folder FOLDER]

The command runs in a process of its own; RssAnon, memory that is not mapped from a file, is read from the
kernel every 20 ms. Then stock onnxruntime loads the result, without prepacking.
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import make_large


def peak_of(command: list[str]) -> tuple[float, float, str]:
    """Run `command`; return its seconds, the peak of its anonymous memory in GB, and what it printed."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    peak = 0

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            peak = max(peak, anonymous(process.pid))
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    said = process.communicate()[0]
    watcher.join()
    if process.returncode:
        sys.exit(f"exit code {process.returncode}: {said}")
    return time.perf_counter() - began, peak / 1e9, said


def anonymous(pid: int) -> int:
    """Return the bytes of memory of the process `pid` that aren't mapped from files."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


LOAD = """
import sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.add_session_config_entry("session.disable_prepacking", "1")
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
session = onnxruntime.InferenceSession(sys.argv[1], options)
given = session.get_inputs()[0]
shape = [each if isinstance(each, int) else 1 for each in given.shape]
print(session.run(None, {given.name: numpy.ones(shape, numpy.float32)})[0].shape)
"""


def main() -> None:
    """Print a row for each step."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--passes", default="prune,quant")
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        source, result = Path(folder) / "large.onnx", Path(folder) / "out.onnx"
        make_large.make(source, given.gigabytes)
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
        print(f"model: {size / 1e9:.2f} GB")
        command = [
            sys.executable,
            "-m",
            "onnxcompress",
            source,
            result,
            "--passes",
            given.passes,
            "--verify",
            "end",
        ]
        seconds, peak, said = peak_of(list(map(str, command)))
        print(said)
        print(f"{given.passes}: {seconds:.0f} s, peak of anonymous memory {peak:.2f} GB")
        seconds, peak, said = peak_of([sys.executable, "-c", LOAD, str(result)])
        print(f"stock onnxruntime loads and runs it: {seconds:.0f} s, {peak:.2f} GB, output {said.strip()}")


if __name__ == "__main__":
    main()
