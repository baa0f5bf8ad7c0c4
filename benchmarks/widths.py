"""What multiples of channels do for latency: one, 16 in all layers, and those of a target.

    python benchmarks/widths.py MODEL.onnx [MODEL.onnx ...] [--ratios 0.1 0.25 0.4 0.6] [--target avx512]

A row each for `prune-channels(ratio=R, multiple_of=M)`: the shares of the parameters, of the
multiply-accumulates and of the time that stay. Time is that of the processor, of one thread, so that other
work on the machine matters little; pairs are interleaved.
"""

import argparse
import time
from types import SimpleNamespace

import onnx_ir as ir

from onnxcompress import Context, measure
from onnxcompress.channels import find
from onnxcompress.channels.counts import Counts, counts
from onnxcompress.data import random_data
from onnxcompress.model import clone, load
from onnxcompress.passes import PruneChannels
from onnxcompress.runtimes import OnnxRuntime


def main() -> None:
    """Print a row for each model, ratio and multiple."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+")
    parser.add_argument("--ratios", type=float, nargs="*", default=[0.1, 0.25, 0.4, 0.6])
    parser.add_argument("--target", default="host")
    given = parser.parse_args()
    measure.time = SimpleNamespace(perf_counter=time.process_time)  # type: ignore[assignment]
    print("| model | ratio | multiple_of | parameters | MACs | time (95 % interval) |")
    print("|---|---|---|---|---|---|")
    for path in given.models:
        model = load(path)
        for ratio in given.ratios:
            rows(model, ratio, Context(target=given.target))


def rows(model: ir.Model, ratio: float, context: Context) -> None:
    """Print the rows of one model and ratio."""
    engine, before = OnnxRuntime.make(threads=1), counts(find(model))
    runnables, sizes = [engine.prepare(clone(model))], list[Counts]()
    multiples = (1, 16, 0)
    for multiple in multiples:
        pruned = clone(model)
        PruneChannels(ratio=ratio, multiple_of=multiple).call(pruned, context)
        sizes.append(counts(find(pruned)))
        runnables.append(engine.prepare(pruned))
    feeds = next(iter(random_data(model)))
    found = measure.latencies(runnables, feeds, budget=3.0, min_pairs=30)[1:]
    for multiple, size, each in zip(multiples, sizes, found, strict=True):
        shares = f"{size.parameters / before.parameters:.3f} | {size.macs / before.macs:.3f}"
        spread = f"{each.ratio:.3f} ({each.low:.3f} to {each.high:.3f})"
        print(f"| {model.graph.name} | {ratio:g} | {multiple} | {shares} | {spread} |", flush=True)


if __name__ == "__main__":
    main()
