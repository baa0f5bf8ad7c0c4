"""Compress a model that is larger than memory should have to be, and print the memory it took.

    python benchmarks/large.py [--gigabytes 3] [--passes prune,quant] [--folder FOLDER]
    python benchmarks/large.py --decoder 32 [--passes PASSES] [--folder FOLDER]

The command runs in a process of its own; RssAnon, memory that is not mapped from a file, is read from the
kernel every 20 ms. Then stock onnxruntime loads the result, without prepacking.

The second form makes a language model of so many layers in float16, 13.5 GB for 32, and by default puts it
in blocks of 4 bits and encodes it. Outputs are not compared: stock onnxruntime casts each float16 weight in
each run, which takes minutes. Instead, the shapes of the result are read, and its last layer runs in
onnxruntime beside the one it was made from. It takes 18 GB of disk.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import decoder
import make_large

from onnxcompress.model import save


def peak_of(command: list[str]) -> tuple[float, float, float, str]:
    """Run `command`; return its seconds, those of processors, its peak of memory in GB, and what it said."""
    began, spent = time.perf_counter(), processor_seconds()
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
    return time.perf_counter() - began, processor_seconds() - spent, peak / 1e9, said


def processor_seconds() -> float:
    """Return the seconds that all processes that this one has waited for took of processors."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


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
    parser.add_argument("--decoder", type=int, metavar="LAYERS")
    parser.add_argument("--passes")
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    blocks = "quant-blocks(when=always,activations=float),encode"
    passes = given.passes or ("prune,quant" if given.decoder is None else blocks)
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        source, result = Path(folder) / "large.onnx", Path(folder) / "out.onnx"
        if given.decoder is None:
            make_large.make(source, given.gigabytes)
        else:
            save(decoder.model(given.decoder), source, external_data=True, jobs=0)
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
        print(f"model: {size / 1e9:.2f} GB", flush=True)
        command = [sys.executable, "-m", "onnxcompress", source, result, "--passes", passes]
        command += ["--verify", "end" if given.decoder is None else "off"]
        seconds, spent, peak, said = peak_of(list(map(str, command)))
        print(said)
        print(
            f"{passes}: {seconds:.0f} s, {spent:.0f} s of processors, {size / 1e9 / seconds:.3f} GB/s, "
            f"peak of anonymous memory {peak:.2f} GB",
            flush=True,
        )
        if given.decoder is None:
            seconds, _, peak, said = peak_of([sys.executable, "-c", LOAD, str(result)])
            print(
                f"stock onnxruntime loads and runs it: {seconds:.0f} s, {peak:.2f} GB, output {said.strip()}"
            )
        else:
            print(decoder.checked(source, result))


if __name__ == "__main__":
    main()
