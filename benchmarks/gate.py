"""Static int8 with and without the speed gate: file size and latency beside float, one row a model.

    python benchmarks/gate.py [NAME or MODEL.onnx ...] [--threads 1] [--batch 1] [--dynamic] [--runtime NAME]

Names are those of the ``light_*`` architectures; without any, all of these are taken and
``testdata/branch_digits.onnx``. Calibration arrays are random. Latencies are ratios to the model the gate is
given, runs in turns, with the 95 % interval of the median; "again" is a second session of that very model.
"""

import argparse
import tempfile
from pathlib import Path

import light
import numpy as np
import onnx

from onnxcompress import compress
from onnxcompress.measure import Latency, latencies
from onnxcompress.model import load, signature
from onnxcompress.registry import find_runtime
from onnxcompress.report import share

DIGITS = Path(__file__).parent.parent / "testdata" / "branch_digits.onnx"
SAMPLES = 4  # feeds to calibrate on


def main() -> None:
    """Print a row for each model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=[*light.NAMES, str(DIGITS)])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--runtime", default="onnxruntime", help="engine to time in")
    parser.add_argument("--dynamic", action="store_true", help="quantize without calibration data")
    parser.add_argument("--budget", type=float, default=10.0, help="seconds to compare latencies")
    given = parser.parse_args()
    print("| model | size | again | gate off | gate on | with int8 | seconds of the gate | bound |")
    print("|---|---|---|---|---|---|---|---|")
    for name in given.models:
        with tempfile.TemporaryDirectory() as folder:
            print(row(name, given, Path(folder)), flush=True)


def row(name: str, given: argparse.Namespace, folder: Path) -> str:
    """Return the row of the model `name`."""
    source, off, on = (folder / f"{each}.onnx" for each in ("in", "off", "on"))
    model = light.build(name) if name in light.NAMES else onnx.load(name)
    onnx.save(model, source)
    port = signature(load(source)).inputs[0]
    dims = [given.batch, *(each if isinstance(each, int) else 1 for each in port.shape[1:])]
    if isinstance(port.shape[0], int):
        dims[0] = port.shape[0]
    drawn = np.random.default_rng(1)
    feeds = [{port.name: drawn.random(dims, np.float32)} for _ in range(SAMPLES)]
    steps = []
    for gate, output in (("off", off), ("on", on)):
        report = compress(
            source,
            f"simplify,quant(gate={gate})",
            data=None if given.dynamic else feeds,
            output=output,
            runtime=given.runtime,
            threads=given.threads,
            verify="off",
            measure_latency=False,
        ).report
        steps.append(report.steps[1])
    engine = find_runtime(given.runtime).make(threads=given.threads)
    runnables = [engine.prepare(path) for path in (source, source, off, on)]
    _, again, first, second = latencies(runnables, feeds[0], budget=given.budget, min_pairs=30)
    words = ("computes with int8", "multiplied as int8")
    whole, integer = (sum(each.what in words for each in step.records) for step in steps)
    size = share(on.stat().st_size, source.stat().st_size)
    held = "held" if second.low <= 1 else "MISSED"
    seconds = steps[1].seconds - steps[0].seconds
    found = " | ".join(map(spelled, (again, first, second)))
    return f"| {Path(name).stem} | {size} | {found} | {integer} of {whole} | {seconds:.0f} | {held} |"


def spelled(found: Latency) -> str:
    """Return the ratio of `found` with its interval."""
    return f"{found.ratio:.2f} ({found.low:.2f} to {found.high:.2f})"


if __name__ == "__main__":
    main()
