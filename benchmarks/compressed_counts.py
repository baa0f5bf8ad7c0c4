"""What products with encoded weights take, beside those of a dense engine: each layer, and all of them.

    python benchmarks/compressed_counts.py [MODEL ...]

Models that aren't encoded are: each weight in the smallest format that is exact for it. Without a model,
lenet300_digits of testdata is pruned to 10 % and clustered to 4 bits before. Each model runs once in the
interpreter, on a random input; its outputs are compared with those of onnxruntime. MACs are multiply-adds;
what the columns count is said by ``onnxcompress.runtimes.counts.Counts``.
"""

import argparse
from collections.abc import Sequence
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np

from onnxcompress.base import Context, Pass
from onnxcompress.data import random_data
from onnxcompress.formats.unpack import is_encoded
from onnxcompress.model import load
from onnxcompress.passes import Cluster, Encode, Prune
from onnxcompress.runtimes import Interpreter, OnnxRuntime
from onnxcompress.runtimes.counts import Counts

DEFAULT = Path(__file__).parent.parent / "testdata" / "lenet300_digits.onnx"
HEAD = ("dense MACs", "MACs", "adds", "shifts", "look-ups", "weight bytes", "index bytes", "activation bytes")


def main() -> None:
    """Print the counts of each model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", type=Path)
    given = parser.parse_args()
    for path in given.models:
        report(path, [Encode()])
    if not given.models:
        report(DEFAULT, [Prune(sparsity=0.9), Cluster(bits=4), Encode()])


def report(path: Path, passes: Sequence[Pass]) -> None:
    """Print what a run of one model takes, after `passes` where it isn't encoded."""
    model = load(path)
    if not is_encoded(model):
        for each in passes:
            each.call(model, Context())
    feeds = next(iter(random_data(model)))
    runnable = Interpreter().prepare(model)
    found, expected = runnable.run(feeds), OnnxRuntime().prepare(model).run(feeds)
    print(path.name)
    width = max(map(len, [*runnable.counts, "all"]))
    print(" " * width, *(f"{name:>16s}" for name in HEAD))
    for name, counts in runnable.counts.items():
        print(f"{name:{width}s}", row(counts))
    total = reduce(add, runnable.counts.values(), Counts())
    print(f"{'all':{width}s}", row(total))
    done = total.multiply_adds / max(total.multiply_adds + total.skipped, 1)
    print(f"multiply-adds done: {done:.1%} of the dense ones")
    for name, reason in runnable.expanded.items():
        print(f"expanded: {name}, {reason}")
    for name, value in found.items():
        difference = float(np.abs(value - expected[name]).max(initial=0))
        largest = float(np.abs(expected[name]).max(initial=0))
        print(f"{name}: differs from onnxruntime's by at most {difference:.1e}, of {largest:.1e}")


def row(counts: Counts) -> str:
    """Return the columns of one line."""
    figures = (
        counts.multiply_adds + counts.skipped,
        counts.multiply_adds,
        counts.adds,
        counts.shifts,
        counts.look_ups,
        counts.weight_bytes,
        counts.index_bytes,
        counts.activation_bytes,
    )
    return " ".join(f"{figure:16,d}" for figure in figures)


if __name__ == "__main__":
    main()
