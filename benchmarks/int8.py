"""int8 of this package beside onnxruntime's and NNCF's: agreement with float32, accuracy, size, latency.

    python benchmarks/int8.py MODEL --data CALIBRATION.npz --eval EVALUATION.npz [--samples 100]

CALIBRATION and EVALUATION are arrays [samples, ...] in an ``.npz``, the second with ``labels`` where accuracy
is wanted; a folder of images does as well, with ``--preprocess`` and parts like ``FOLDER[::6]``. All sides
calibrate on the same arrays, one sample at a time, and are judged on the same others, in the same engine.
onnxruntime.quantization gets its own preprocessing and its settings that are best here: QDQ, uint8
activations, int8 weights per channel, with each of its `--calibrators`. NNCF (extra packages: ``nncf``) is
left out where it isn't installed, as is the comparison in OpenVINO (``openvino``). Latencies are ratios to
float32, runs in turns, with the 95 % interval of the median.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx

from onnxcompress import compress
from onnxcompress.data import Data, load_data
from onnxcompress.measure import Latency, latencies
from onnxcompress.model import load, signature
from onnxcompress.runtimes.onnxruntime import OnnxRuntime

ROUND = 16  # samples that are judged at a time where the model leaves their number open


def main() -> None:
    """Print a table for each model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--data", required=True, help="what all sides calibrate on")
    parser.add_argument("--eval", required=True, help="what they are judged on")
    parser.add_argument("--preprocess", help="how images become arrays")
    parser.add_argument("--samples", type=int, default=100, help="how many to calibrate on")
    parser.add_argument("--images", type=int, default=500, help="how many to judge on")
    parser.add_argument("--recipe", default="quant", help="passes of ours")
    parser.add_argument("--calibrators", default="MinMax", help="of onnxruntime: MinMax,Percentile,Entropy")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 8], help="for latencies")
    parser.add_argument("--budget", type=float, default=10.0, help="seconds for each comparison of latencies")
    given = parser.parse_args()
    model = load(given.model)
    data = load_data(given.data, model, preprocess=given.preprocess).take(given.samples)
    judge = load_data(given.eval, model, preprocess=given.preprocess).take(given.images)
    with tempfile.TemporaryDirectory() as folder:
        files = {"float32": Path(given.model)}
        for name, make in makers(given).items():
            path, began = Path(folder, f"{name}.onnx"), time.perf_counter()
            make(given.model, data, path)
            print(f"{name}: quantized in {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
            files[name] = path
        table(files, judge, given)
        if importlib.util.find_spec("openvino"):
            openvino(files, judge, given)


def makers(given: argparse.Namespace) -> dict:
    """Return what quantizes a model with data into a file, by the name of the side."""
    found = {"onnxcompress": lambda *each: ours(*each, given.recipe)}
    for calibrator in given.calibrators.split(","):
        found[f"onnxruntime {calibrator}"] = lambda *each, how=calibrator: theirs(*each, how)
    if importlib.util.find_spec("nncf"):
        found["NNCF"] = nncf
    else:
        print("NNCF is not installed", file=sys.stderr)
    return found


def ours(model: str, data: Data, output: Path, recipe: str) -> None:
    """Quantize with this package."""
    compress(model, recipe, data=list(data), output=output, verify="off", measure_latency=False)


def theirs(model: str, data: Data, output: Path, calibrator: str) -> None:
    """Quantize with onnxruntime.quantization."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        """Hands over one sample after the other."""

        def __init__(self) -> None:
            self.samples = iter(data)

        def get_next(self) -> dict | None:
            feed = next(self.samples, None)
            return None if feed is None else dict(feed)

    prepared = output.with_suffix(".prepared.onnx")
    quant_pre_process(model, str(prepared))
    quantization.quantize_static(
        str(prepared),
        str(output),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        calibrate_method=quantization.CalibrationMethod[calibrator],
    )


def nncf(model: str, data: Data, output: Path) -> None:
    """Quantize with NNCF, its defaults."""
    import nncf

    samples = [dict(feed) for feed in data]
    made = nncf.quantize(onnx.load(model), nncf.Dataset(samples), subset_size=len(samples))
    onnx.save(made, output)


def table(files: dict[str, Path], judge: Data, given: argparse.Namespace) -> None:
    """Print a row for each of `files`, the first of which the others are compared with."""
    cases = [(threads, batch) for threads in given.threads for batch in given.batch]
    scores = judged(files, judge)
    ratios = [ratio(files, judge, *case, given.budget) for case in cases]
    heads = [f"latency, {threads} threads, batch {batch}" for threads, batch in cases]
    print(f"| {Path(given.model).stem} | agreement | top-1 | SNR | size | {' | '.join(heads)} |")
    print("|---" * (5 + len(cases)) + "|")
    whole = files["float32"].stat().st_size
    for number, (name, path) in enumerate(files.items()):
        times = [spelled(found[number]) if found else "fixed batch" for found in ratios]
        size = path.stat().st_size / whole
        print(f"| {name} | {' | '.join(scores[name])} | {size:.3f} | {' | '.join(times)} |", flush=True)


def judged(files: dict[str, Path], judge: Data) -> dict[str, list[str]]:
    """Return agreement with the first of `files`, accuracy and signal-to-noise ratio of each, as text."""
    labels = judge.labels
    found: dict[str, list[str]] = {}
    first = np.empty(0)
    for name, path in files.items():
        runnable = OnnxRuntime().prepare(path)
        made = [next(iter(runnable.run(feed).values())) for feed in rounds(judge, path)]
        outputs = np.concatenate([each.reshape(len(each), -1) for each in made]).astype(np.float64)
        first = first if first.size else outputs
        classes = outputs.argmax(axis=1)
        noise = np.sum((outputs - first) ** 2)
        found[name] = [
            f"{np.mean(classes == first.argmax(axis=1)):.2%}",
            "-" if labels is None else f"{np.mean(classes == labels[: len(classes)]):.2%}",
            f"{10 * np.log10(np.sum(first**2) / noise):.1f} dB" if noise else "-",
        ]
    return found


def rounds(data: Data, path: Path) -> Iterator[dict[str, np.ndarray]]:
    """Yield the feeds of `data`, ROUND at a time where the model at `path` allows."""
    open_ended = not isinstance(signature(load(path)).inputs[0].shape[0], int)
    waiting: list = []
    for feed in data:
        waiting.append(feed)
        if not open_ended or len(waiting) == ROUND:
            yield joined(waiting)
            waiting = []
    if waiting:
        yield joined(waiting)


def joined(feeds: Sequence) -> dict[str, np.ndarray]:
    """Return `feeds` as one."""
    return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}


def ratio(
    files: dict[str, Path], judge: Data, threads: int, batch: int, budget: float
) -> list[Latency] | None:
    """Return the latencies of `files`, each beside the first; None where they can't take `batch` samples."""
    fixed = signature(load(files["float32"])).inputs[0].shape[0]
    if isinstance(fixed, int) and fixed != batch:
        return None
    feed = joined(list(judge.take(batch)))
    engine = OnnxRuntime(threads=threads)
    return latencies([engine.prepare(each) for each in files.values()], feed, budget=budget, min_pairs=30)


def spelled(found: Latency) -> str:
    """Return the ratio of `found` with its interval."""
    return f"{found.ratio:.2f} ({found.low:.2f} to {found.high:.2f})"


def openvino(files: dict[str, Path], judge: Data, given: argparse.Namespace) -> None:
    """Print how fast the files of `files` run in OpenVINO, as ratios to float32 there, at batch 1."""
    import openvino as ov

    class Compiled:
        """A model in OpenVINO."""

        def __init__(self, path: Path, threads: int) -> None:
            options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
            self.compiled = ov.Core().compile_model(str(path), "CPU", options)

        def run(self, feeds: dict) -> dict:
            return dict(self.compiled(dict(feeds)))

    feed = joined(list(judge.take(1)))
    for threads in given.threads:
        runnables = [Compiled(each, threads) for each in files.values()]
        found = latencies(runnables, feed, budget=given.budget, min_pairs=30)
        rows = [f"{name} {spelled(each)}" for name, each in zip(files, found, strict=True)]
        print(f"OpenVINO, {threads} threads, batch 1: {'; '.join(rows)}", flush=True)


if __name__ == "__main__":
    main()
