"""Every way to cast models to 16-bit floats: valid, run by stock onnxruntime, and how far outputs are off.

    python benchmarks/casting.py [MODEL | MODEL=DATA ...]

A row for each model given, without one for the nine architectures of the onnx package with seeded weights:
the signal-to-noise ratio of the outputs on the data given, else on random inputs, in dB, for weights in
float16 and bfloat16, and for the whole model without and with calibration data; then how many nodes of the
whole model compute with float16, and how many stay float32, by reason.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import light
import numpy as np
import onnx
import onnx_ir as ir

from onnxcompress import Context
from onnxcompress.data import Data, load_data, random_data
from onnxcompress.errors import CompressError
from onnxcompress.model import clone, load, to_proto
from onnxcompress.passes import Cast
from onnxcompress.runtimes import OnnxRuntime
from onnxcompress.verify import compare


def main() -> None:
    """Print a row for each model."""
    print("| model | float16 weights | bfloat16 weights | model | model, with data | float16 nodes | stay |")
    print("|---|---|---|---|---|---|---|")
    engine = OnnxRuntime()
    for name, model, data in _models():
        plain, seen = Context(), Context(calibration=data, runtime=engine)
        cells = []
        reasons: dict[str, int] = {}
        for options, context in (
            (Cast(), plain),
            (Cast(to="bfloat16"), plain),
            (Cast(scope="model"), plain),
            (Cast(scope="model"), seen),
        ):
            after = clone(model)
            result = options.call(after, context)
            onnx.checker.check_model(to_proto(after), full_check=True)
            try:
                found = compare(engine.prepare(model), engine.prepare(after), data)
                cells.append(f"{found.snr:.0f} dB")
            except CompressError as error:
                cells.append(f"FAILS: {str(error)[:150]}")
            if options.scope == "model":
                reasons = result.counts(changed=False)
                halves = sum(result.counts(changed=True).values())
        stay = ", ".join(f"{count} {reason}" for reason, count in reasons.items()) or "none"
        print(f"| {name} | {' | '.join(cells)} | {halves} | {stay} |", flush=True)


def _models() -> Iterator[tuple[str, ir.Model, Data]]:
    for path, _, arrays in (given.partition("=") for given in sys.argv[1:]):
        model = load(path)
        yield Path(path).stem, model, load_data(arrays, model) if arrays else random_data(model, count=2)
    for name in light.NAMES if len(sys.argv) == 1 else ():
        model = load(light.build(name))
        yield name, model, random_data(model, count=2)


if __name__ == "__main__":
    np.seterr(over="ignore")
    main()
