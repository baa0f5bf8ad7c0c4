"""Static int8 beside onnxruntime.quantization: what it takes to quantize a model, and what comes out.

    python benchmarks/static_int8.py MODEL [--images FOLDER] [--preprocess imagenet] [--samples 100]

Both sides read the same calibration arrays, sample by sample from one file, and write U8S8 models, per
channel, QDQ. Each is a whole process, from start to file written: CPU time, time and peak memory, of several
rounds, in which all sides take turns, the least. Shares are those of what onnxruntime takes to load the model
and run it on the calibration samples. The two models are then run in turns on other samples for latency, and
beside float32 for the error; ours may be timed alone, with ``--alone``.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

CALIBRATORS = {"min-max": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}  # ours: theirs


def main() -> None:
    """Run every side in a process of its own; this one stays small: its size counts as its children's."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument(
        "--images", help="folder of images, every sixth to calibrate on; without: random numbers"
    )
    parser.add_argument("--preprocess", default="imagenet", help="how images become arrays")
    parser.add_argument(
        "--samples", type=int, default=100, help="how many to calibrate on, and to compare on"
    )
    parser.add_argument("--calibrators", default=",".join(CALIBRATORS))
    parser.add_argument("--rounds", type=int, default=1, help="how often each side runs; the least counts")
    parser.add_argument("--threads", type=int, default=1, help="threads when latency is compared")
    parser.add_argument("--alone", action="store_true", help="no comparison with onnxruntime.quantization")
    parser.add_argument("--options", default="", help="more options of quant, such as equalize=false")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        samples = [json.dumps(vars(given)), folder]
        child("make", *samples)
        for calibrator in given.calibrators.split(","):
            sides = {
                "inferences": ("infer", given.model, folder),
                "onnxcompress": ("ours", given.model, folder, calibrator, given.options),
            }
            if calibrator in CALIBRATORS and not given.alone:
                sides["onnxruntime"] = ("theirs", given.model, folder, calibrator)
            rounds = [[child(*each) for each in sides.values()] for _ in range(given.rounds)]
            least = [[min(each) for each in zip(*runs, strict=True)] for runs in zip(*rounds, strict=True)]
            print(f"{Path(given.model).stem}, {calibrator}, beside {given.samples} inferences")
            for name, (seconds, lasted, megabytes) in zip(sides, least, strict=True):
                print(
                    f"  {name:13s} {seconds:6.2f} s CPU ({seconds / least[0][0]:.2f})"
                    f"  {lasted:6.2f} s in all ({lasted / least[0][1]:.2f})"
                    f"  {megabytes:6.0f} MB peak ({megabytes / least[0][2]:.2f})",
                    flush=True,
                )
            if len(sides) == 3:
                child("compare", given.model, folder, str(given.threads))


def child(role: str, *arguments: str) -> tuple[float, float, float]:
    """Run one of CHILDREN in a new process; return its seconds of CPU, those it took, and peak megabytes."""
    code = f"import runpy, sys; runpy.run_path({__file__!r})['CHILDREN'][{role!r}](*sys.argv[1:])"
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", code, *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    lasted = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{role}: ended with {process.returncode}")
    return usage.ru_utime + usage.ru_stime, lasted, usage.ru_maxrss / 1024


def make(options: str, folder: str) -> None:
    """Write ``calibration.npz`` and ``other.npz`` into `folder`, each one array [samples, ...]."""
    import numpy as np

    from onnxcompress.data import load_data
    from onnxcompress.model import load, signature

    given = json.loads(options)
    model = load(given["model"])
    (port,) = signature(model).inputs
    drawn = np.random.default_rng(0)
    for name, part in (("calibration", "::6"), ("other", "!::6")):
        if given["images"]:
            data = load_data(f"{given['images']}[{part}]", model, preprocess=given["preprocess"])
            arrays = [feed[port.name] for feed in data.take(given["samples"])]
        else:
            dims = [each if isinstance(each, int) else 1 for each in port.shape]
            arrays = [drawn.standard_normal(dims).astype(np.float32) for _ in range(given["samples"])]
        np.savez(f"{folder}/{name}.npz", **{port.name: np.concatenate(arrays)})


def infer(model: str, folder: str) -> None:
    """Run `model` on the calibration samples."""
    from onnxcompress.runtimes.onnxruntime import OnnxRuntime

    runnable = OnnxRuntime().prepare(Path(model))
    for feed in read(f"{folder}/calibration.npz"):
        runnable.run(feed)


def ours(model: str, folder: str, calibrator: str, options: str) -> None:
    """Quantize `model` with this package."""
    import onnxcompress

    onnxcompress.compress(
        model,
        f"quant(activations=static, gate=off, calibrator={calibrator}{options and ', ' + options})",
        data=f"{folder}/calibration.npz",
        output=f"{folder}/ours.onnx",
        verify="off",
        measure_latency=False,
    )


def theirs(model: str, folder: str, calibrator: str) -> None:
    """Quantize `model` with onnxruntime.quantization."""
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        """Hands over one sample after the other."""

        def __init__(self) -> None:
            self.samples = read(f"{folder}/calibration.npz")

        def get_next(self) -> dict:
            return next(self.samples, None)

    quantization.quantize_static(
        model,
        f"{folder}/theirs.onnx",
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        calibrate_method=quantization.CalibrationMethod[CALIBRATORS[calibrator]],
    )


def read(path: str) -> Iterator[dict]:
    """Yield the samples of the one array in the ``.npz`` at `path`, as feeds; none is kept."""
    import numpy as np

    with zipfile.ZipFile(path) as archive:
        (member,) = archive.namelist()
        with archive.open(member) as stream:
            np.lib.format.read_magic(stream)
            shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
            size = dtype.itemsize * int(np.prod(shape[1:]))
            for _ in range(shape[0]):
                sample = np.frombuffer(stream.read(size), dtype).reshape(1, *shape[1:])
                yield {member.removesuffix(".npy"): sample}


def compare(model: str, folder: str, threads: str) -> None:
    """Print error and latency of both quantized models."""
    import numpy as np

    from onnxcompress.measure import latencies
    from onnxcompress.runtimes.onnxruntime import OnnxRuntime

    engine = OnnxRuntime(threads=int(threads))
    paths = [Path(model), Path(folder, "theirs.onnx"), Path(folder, "ours.onnx")]
    sessions = [engine.prepare(path) for path in paths]
    signal, noise, agreement = 0.0, np.zeros(3), np.zeros(3)
    feeds = list(read(f"{folder}/other.npz"))
    for feed in feeds:
        outputs = [
            np.ravel(next(iter(session.run(feed).values()))).astype(np.float64) for session in sessions
        ]
        signal += np.sum(outputs[0] ** 2)
        noise += [np.sum((each - outputs[0]) ** 2) for each in outputs]
        agreement += [each.argmax() == outputs[0].argmax() for each in outputs]
    for place, name in ((2, "onnxcompress"), (1, "onnxruntime")):
        decibels = 10 * np.log10(signal / noise[place]) if noise[place] else np.inf
        share = agreement[place] / len(feeds)
        size = paths[place].stat().st_size / paths[0].stat().st_size
        print(f"  {name:13s} {decibels:6.2f} dB SNR  {share:6.1%} same class  {size:.3f} of the size")
    both = latencies(sessions[1:], feeds[0], budget=20, min_pairs=60)[1]
    print(
        f"  latency ratio {both.ratio:6.3f} ({both.low:.3f} to {both.high:.3f}), {both.pairs} pairs",
        flush=True,
    )


CHILDREN = {"make": make, "infer": infer, "ours": ours, "theirs": theirs, "compare": compare}

if __name__ == "__main__":
    main()
