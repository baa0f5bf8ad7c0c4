"""Mixed precision under a bound, beside int8 everywhere: what a file takes, and whether the bound holds.

    python benchmarks/mixed.py MODEL --calib DATA --eval DATA --check DATA [--preprocess imagenet]

The choice between --schemes is made for each layer, on the --eval data, so that at most --max-drop points of
--metric are lost; `--check` are other samples, which it never sees. The drops are of accuracy (top1)
or of the other metrics, with standard errors. Uniform int8 is --uniform, stored and checked the same way.
"""

import argparse
import tempfile
import time
from pathlib import Path

from onnxcompress import BoundError, compress
from onnxcompress.drop import drop
from onnxcompress.report import count_bytes

SCHEMES = "quant|cluster(bits=8)|cluster(bits=5, initialise=entropy)|cluster(bits=4, initialise=entropy)"


def main() -> None:
    """Print the size and the drops of both files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    for name in ("calib", "eval", "check"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--preprocess")
    parser.add_argument("--metric", default="top1")
    parser.add_argument("--max-drop", type=float, default=0.5)
    parser.add_argument("--confidence", type=float)
    parser.add_argument("--schemes", default=SCHEMES)
    parser.add_argument("--uniform", default="quant")
    given = parser.parse_args()
    print(f"{Path(given.model).stem}: {given.metric} may drop by {given.max_drop:g}")
    shared = {"data": given.calib, "preprocess": given.preprocess, "measure_latency": False}
    bounds = {"max_drop": given.max_drop, "confidence": given.confidence}
    with tempfile.TemporaryDirectory() as folder:
        for name, step, bound in (("int8", given.uniform, {}), ("mixed", given.schemes, bounds)):
            began, output = time.perf_counter(), Path(folder, f"{name}.onnx")
            try:
                made = compress(
                    given.model,
                    f"simplify,fuse,{step},encode",
                    output=output,
                    evaluation=given.eval,
                    metric=given.metric,
                    **shared,
                    **bound,
                )
            except BoundError as error:
                print(f"  {name:6s} {error}")
                continue
            seconds = time.perf_counter() - began
            other = compress(
                given.model, made.report.recipe, evaluation=given.check, verify="end", **shared
            ).report.evaluation
            size = count_bytes(output.stat().st_size)
            share = output.stat().st_size / Path(given.model).stat().st_size
            print(f"  {name:6s} {size:>8s} ({share:.3f} of float32), {seconds:.0f} s")
            for where, found in (("eval", made.report.evaluation), ("check", other)):
                assert found is not None
                print(f"         drop on {where:5s} {drop(given.metric, found)}, {found.samples} samples")
            if made.report.mixed is not None:
                print(f"         {made.report.mixed.taken} of {made.report.mixed.steps} steps", flush=True)


if __name__ == "__main__":
    main()
