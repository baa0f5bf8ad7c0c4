"""The nine light_* architectures at full width through every pass, with calibration arrays: one row each.

    python benchmarks/architectures.py [NAME ...] [--passes simplify,prune,quant]

Each is a file with seeded random weights; calibration arrays are random. The output must be valid, verified
(exact passes within their tolerance), have the same signature, and load in stock onnxruntime.
"""

import argparse
import tempfile
import time
from pathlib import Path

import light
import numpy as np
import onnx
import onnxruntime

from onnxcompress import compress
from onnxcompress.model import load, signature


def main() -> None:
    """Print a row for each architecture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=light.NAMES)
    parser.add_argument("--passes", default="simplify,prune,quant")
    given = parser.parse_args()
    print("| architecture | before | after | exact pass | prune SNR | quant SNR | latency ratio | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for name in given.names:
        with tempfile.TemporaryDirectory() as folder:
            print(row(name, given.passes, Path(folder)), flush=True)


def row(name: str, passes: str, folder: Path) -> str:
    """Return the row of the architecture `name`."""
    source, output = folder / "in.onnx", folder / "out.onnx"
    model = light.build(name)
    onnx.save(model, source)
    images = {model.graph.input[0].name: np.random.default_rng(1).random((8, 3, 224, 224), np.float32)}
    began = time.perf_counter()
    report = compress(source, passes, data=images, output=output, verify="each").report
    seconds = time.perf_counter() - began
    onnx.checker.check_model(output, full_check=True)
    assert signature(load(output)) == signature(load(source))
    onnxruntime.InferenceSession(output)
    simplify, prune, quant = (step.comparison for step in report.steps)
    assert report.after is not None
    assert simplify is not None
    assert prune is not None
    assert quant is not None
    assert simplify.exact
    speed = f"{report.latency.ratio:.2f}" if report.latency else "not timed"
    return (
        f"| {name} | {report.before.bytes / 1e6:.1f} MB | {report.after.bytes / 1e6:.1f} MB | agrees "
        f"| {prune.snr:.1f} dB | {quant.snr:.1f} dB | {speed} | {seconds:.0f} |"
    )


if __name__ == "__main__":
    main()
