"""Cut the first fully connected layer of VGG-19, 25,088 x 4,096, to a tenth of its parameters.

    python benchmarks/factorise.py [--share 0.1] [--best]
    python benchmarks/factorise.py --layers

The weight is seeded: parts of rank one, the n-th 1 / n as large, and noise. Printed are the seconds to read,
rewrite and save the file, parameters and bytes, the energy kept, and the error of the whole model's outputs
on a random image in stock onnxruntime. With ``--best`` the most energy that any matrix of that rank can keep
is printed too, from all eigenvalues of the Gram matrix: that takes minutes.

With ``--layers``, instead, layers of ResNet-56 and VGG-19 are timed beside the chains that have at most three
quarters, half and a quarter of their multiplications: the measured ratio of each method, and how often fewer
multiplications are not fewer milliseconds. One thread, batch 1.
"""

import argparse
import tempfile
import time
from pathlib import Path

import light
import numpy as np
import onnx
import onnx.parser
import onnxruntime
from onnx import numpy_helper

from onnxcompress.base import Context
from onnxcompress.chains import chain
from onnxcompress.choice import timer
from onnxcompress.convolve import Window
from onnxcompress.cost import chain_cost
from onnxcompress.factors import METHODS, TwoKernels
from onnxcompress.measure import Latency
from onnxcompress.model import load, save
from onnxcompress.parts import Stopwatch
from onnxcompress.passes import Factorise
from onnxcompress.runtimes import OnnxRuntime

INPUTS, OUTPUTS = 25_088, 4_096
LAYERS = {  # channels read and made, kernel, size of the image
    "ResNet-56, stage 1": (16, 16, 3, 32),
    "ResNet-56, stage 2": (32, 32, 3, 16),
    "ResNet-56, stage 3": (64, 64, 3, 8),
    "VGG-19, conv2_2": (128, 128, 3, 112),
    "VGG-19, conv3_2": (256, 256, 3, 56),
    "VGG-19, conv4_2": (512, 512, 3, 28),
    "VGG-19, conv5_2": (512, 512, 3, 14),
    "1x1, 256 to 256": (256, 256, 1, 14),
    "1x1, 64 to 64": (64, 64, 1, 28),
}


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
    parser.add_argument("--layers", action="store_true")
    given = parser.parse_args()
    if given.layers:
        by_layer()
        return
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


def by_layer() -> None:
    """Print the measured ratio of each layer, share and method, and how often it isn't below 1."""
    ways = [each for each in METHODS if each is not TwoKernels]
    print("| layer | share of MACs | " + " | ".join(each.name for each in ways) + " |")
    print("|---|---|" + "---|" * len(ways))
    watch = Stopwatch(Context(runtime=OnnxRuntime(threads=1), threads=1), 1e9)
    found: dict[float, list[Latency]] = {}
    for name, (inputs, outputs, kernel, size) in LAYERS.items():
        layer, pads = (size, size), [kernel // 2] * 4
        draw = np.random.default_rng(0).standard_normal((outputs, inputs, kernel, kernel), np.float32)
        text = f"""<ir_version: 8, opset_import: ["": 17]>
        net (float[1, {inputs}, {size}, {size}] x) => (float[1, {outputs}, {size}, {size}] y)
        {{ y = Conv<pads = {pads}>(x, w) }}"""
        proto = onnx.parser.parse_model(text)
        proto.graph.initializer.append(numpy_helper.from_array(draw, "w"))
        model = load(proto)
        timed = timer(watch, model, model.graph.node(0))
        even = (kernel // 2,) * 2
        whole = Window(outputs, inputs, 1, draw.shape[2:], (1, 1), (1, 1), even, even)
        methods = [each(draw) for each in ways if each.fits(draw.shape)]
        for share in (0.75, 0.5, 0.25):
            most = share * chain_cost([whole], layer).macs
            chains = {}
            for method in methods:
                offers = [chain(method, ranks, whole, layer) for ranks in method.ladder]
                within = [each for each in offers if each.cost.macs <= most]
                if within:
                    chains[method.name] = max(within, key=lambda each: each.cost.macs)
            latencies = dict(zip(chains, timed(list(chains.values())), strict=True))
            found.setdefault(share, []).extend(latencies.values())
            cells = [
                f"{latencies[each.name].ratio:.2f} (rank {'x'.join(map(str, chains[each.name].ranks))})"
                if each.name in latencies
                else "-"
                for each in ways
            ]
            print(f"| {name} | {share} | {' | '.join(cells)} |", flush=True)
    for share, every in found.items():
        slower, unsure = (sum(test(each) for each in every) for test in (_slower, _unsure))
        print(f"of {len(every)} chains with {share} of the MACs, {slower} are slower and {unsure} no faster")


def _slower(latency: Latency) -> bool:
    return latency.low >= 1


def _unsure(latency: Latency) -> bool:
    return latency.low < 1 <= latency.high


if __name__ == "__main__":
    main()
