"""Files that extract themselves, beside the dense ones: bytes, time to load, memory, latency.

    python benchmarks/self_extracting.py [MODEL ...] [--first RECIPE] [--load-memory 3] [--block 64]

Models whose weights are all different need a recipe `--first`, such as prune,cluster, that makes what is then
the dense model. Without a model, a matrix of 9,216 x 4,096 at 10 % density with 16 values is made, as the
first connected layer of AlexNet is in Deep Compression (Han et al., ICLR 2016). Sizes are compared with the
entropy of gaps and values. Files are loaded in turns, with a warm cache, each in a process of its own. Memory
is that of the process above what it was before: the most at any time, and what is left when the session is
ready, before and after the C library is asked to hand free memory back.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LOAD = """
import ctypes, json, sys, time
import onnxruntime
def memory(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith(key))
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
with open(sys.argv[1], "rb") as file:
    file.read()
before = memory("VmRSS")
began = time.perf_counter()
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
seconds = time.perf_counter() - began
peak, resident = memory("VmHWM") - before, memory("VmRSS") - before
ctypes.CDLL("libc.so.6").malloc_trim(0)
print(json.dumps([seconds, peak, resident, memory("VmRSS") - before]))
"""


def main() -> None:
    """Encode each model, check that it comes back bit by bit, and print what both files cost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--first", help="recipe that makes the dense model, such as cluster(bits=6)")
    parser.add_argument("--block", type=int, default=64)
    parser.add_argument("--load-memory", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=7, help="how often each file is loaded")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for path in given.models or [matrix(Path(folder))]:
            if given.first:
                path = prepared(path, given.first, Path(folder))
            options = {"block": given.block, "load_memory": given.load_memory}
            report(path, Path(folder), options, given.rounds)


def prepared(path: Path, recipe: str, folder: Path) -> Path:
    """Return the dense model that the passes of `recipe` make of the one in `path`."""
    from onnxcompress import compress

    compress(path, recipe, output=folder / path.name, verify="off")
    return folder / path.name


def matrix(folder: Path) -> Path:
    """Write the model of one sparse matrix of few values, and return its path."""
    import numpy as np
    import onnx

    rows, columns = 9216, 4096
    draw = np.random.default_rng(0)
    values = np.concatenate([-np.linspace(0.02, 0.1, 8), np.linspace(0.02, 0.1, 8)]).astype(np.float32)
    shares = np.exp(-30 * np.abs(values))
    weight = np.zeros(rows * columns, np.float32)
    places = np.flatnonzero(draw.random(weight.size) < 0.1)
    weight[places] = draw.choice(values, places.size, p=shares / shares.sum())
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "fc6",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, rows])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, columns])],
        [onnx.numpy_helper.from_array(weight.reshape(rows, columns), "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "fc6.onnx")
    return folder / "fc6.onnx"


def report(path: Path, folder: Path, options: dict[str, Any], rounds: int) -> None:
    """Print what `path` costs dense and encoded."""
    import numpy as np

    from onnxcompress.base import Context
    from onnxcompress.data import random_data
    from onnxcompress.formats.unpack import unpack
    from onnxcompress.measure import latencies
    from onnxcompress.model import load, save
    from onnxcompress.passes import Encode
    from onnxcompress.runtimes.onnxruntime import OnnxRuntime

    model = load(path)
    dense = {name: value.const_value.numpy().tobytes() for name, value in model.graph.initializers.items()}
    elements = sum(value.const_value.size for value in model.graph.initializers.values())
    bound = sum(map(entropy, (value.const_value.numpy() for value in model.graph.initializers.values())))
    began = time.perf_counter()
    Encode(**options).call(model, Context())
    seconds = time.perf_counter() - began
    encoded = folder / "encoded.onnx"
    save(model, encoded)
    back = load(encoded)
    unpack(back)
    for name, value in back.graph.initializers.items():
        assert value.const_value.numpy().tobytes() == dense[name], name
    size = encoded.stat().st_size
    print(f"{path.name}: {path.stat().st_size:,} bytes, encoded {size:,}, {size / bound:.3f} x the entropy")
    print(f"  encoded in {seconds:.2f} s, {elements / seconds / 1e6:.1f} million weights a second")
    print("  unpacks to the same bits")
    paths = [path, encoded]
    times = np.array([[load_once(each) for each in paths] for _ in range(rounds)])  # [rounds, file, figure]
    for name, figures in zip(("dense", "encoded"), np.median(times, axis=0), strict=True):
        spent, peak, left, rest = figures
        print(f"  {name:8s} loads in {spent:.3f} s; MB: peak {peak:.0f}, left {left:.0f}, trimmed {rest:.0f}")
    ratios = np.median(times[:, 1] / times[:, 0], axis=0)
    print(f"  ratios: time to load {ratios[0]:.2f}, peak memory {ratios[1]:.2f}, left {ratios[2]:.2f}")
    sessions = [OnnxRuntime(threads=1).prepare(each) for each in paths]
    feeds = next(iter(random_data(load(path), shapes={}, seed=0)))
    outputs = [session.run(feeds) for session in sessions]
    same = all(np.array_equal(outputs[0][name], outputs[1][name]) for name in outputs[0])
    both = latencies(sessions, feeds, budget=10, min_pairs=30)[1]
    print(f"  outputs {'are the same' if same else 'DIFFER'}")
    print(f"  latency {both.ratio:.3f} x ({both.low:.3f} to {both.high:.3f})")


def entropy(weight: object) -> float:
    """Return the bytes of gaps and values of `weight`, or of all its values, by entropy, with its table."""
    import numpy as np

    def bits(symbols: np.ndarray) -> float:
        counts = np.unique(symbols, return_counts=True)[1]
        return float(-(counts * np.log2(counts / symbols.size)).sum()) if symbols.size else 0.0

    weight = np.asarray(weight).reshape(-1)
    places = np.flatnonzero(weight)
    sparse = bits(np.diff(places, prepend=-1)) + bits(weight[places])
    table = np.unique(weight).size * weight.itemsize
    return min(weight.nbytes, table + min(sparse, bits(weight)) / 8)


def load_once(path: Path) -> list[float]:
    """Return seconds and megabytes of loading `path` in a new process."""
    done = subprocess.run([sys.executable, "-c", LOAD, str(path)], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
