"""Cut the first fully connected layer of VGG-19, 25,088 x 4,096, to a tenth of its parameters.

    python benchmarks/factorise.py [--share 0.1] [--best]

The weight is seeded: parts of rank one, the n-th 1 / n as large, and noise. Printed are the seconds to read,
rewrite and save the file, parameters and bytes, the energy kept, and the error of the whole model's outputs
on a random image in stock onnxruntime. With ``--best`` the most energy that any matrix of that rank can keep
is printed too, from all eigenvalues of the Gram matrix: that takes minutes.
"""

import argparse
import tempfile
import time
from pathlib import Path

import light
import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from onnxcompress.base import Context
from onnxcompress.model import load, save
from onnxcompress.passes import Factorise

INPUTS, OUTPUTS = 25_088, 4_096


def weight(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Return a weight [4,096, 25,088] whose singular values fall as those of trained layers do."""
    draw = np.random.default_rng(seed)
    parts = 1_000
    left, right = (draw.standard_normal((size, parts), np.float32) for size in shape)
    scale = 1 / np.arange(1, parts + 1, dtype=np.float32)
    noise = 0.02 * draw.standard_normal(shape, np.float32)
    return np.float32(0.005) * ((left * scale) @ right.T + noise)


def main() -> None:
    """Print seconds, parameters and errors."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--best", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder) / "vgg19.onnx", Path(folder) / "out.onnx"
        model = light.build("vgg19")
        large = next(each for each in model.graph.initializer if np.prod(each.dims) == OUTPUTS * INPUTS)
        content = weight(tuple(large.dims))
        large.CopyFrom(numpy_helper.from_array(content, large.name))
        node = next(each for each in model.graph.node if large.name in each.input)
        onnx.save(model, source)
        began, busy = time.perf_counter(), time.process_time()
        loaded = load(source)
        others = rf"(?!{node.name or node.output[0]}$).*"
        result = Factorise(params=given.share, exclude=others).call(loaded, Context())
        decided = time.perf_counter()
        size = save(loaded, output)
        saved, busy = time.perf_counter(), time.process_time() - busy
        (record,) = [each for each in result.records if each.changed]
        print(f"{record.layer}: {record.what}, {record.numbers}")
        ratio = record.numbers["parameters"] / record.numbers["parameters_after"]
        print(f"parameters: {ratio:.2f} x fewer; file: {source.stat().st_size:,} to {size:,} bytes")
        print(
            f"read and factorise: {decided - began:.1f} s, save: {saved - decided:.1f} s, CPU: {busy:.1f} s"
        )
        print(f"energy kept: {record.numbers['energy']:.6f}")
        if given.best:
            energies = np.linalg.eigvalsh(content.astype(np.float64) @ content.T.astype(np.float64))[::-1]
            kept = energies[: int(record.numbers["rank"])].sum() / energies.sum()
            print(f"at best: {kept:.6f}")
        image = {model.graph.input[0].name: np.random.default_rng(1).random((1, 3, 224, 224), np.float32)}
        before, after = (
            onnxruntime.InferenceSession(path).run(None, image)[0].astype(np.float64)
            for path in (source, output)
        )
        error = np.linalg.norm(after - before) / np.linalg.norm(before)
        print(f"relative error of the model's outputs on a random image: {error:.4f}")


if __name__ == "__main__":
    main()
