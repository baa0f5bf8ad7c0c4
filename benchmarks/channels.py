"""Time of finding and removing channels: the nine light_* architectures, and chains of convolutions.

    python benchmarks/channels.py [NAME ...] [--chains 500 1000 2000]

A row each: labels, units, seconds to find them, seconds for the whole of `prune-channels`, the share of the
parameters that stays. The time of a chain should grow as its length does.
"""

import argparse
import time

import light
import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from onnxcompress import Context
from onnxcompress.channels import find
from onnxcompress.channels.counts import counts
from onnxcompress.model import load
from onnxcompress.passes import PruneChannels

WIDTH = 16  # channels of a convolution of a chain


def main() -> None:
    """Print a row for each model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=light.NAMES)
    parser.add_argument("--chains", type=int, nargs="*", default=[500, 1000, 2000])
    given = parser.parse_args()
    print("| model | nodes | labels | units | find | prune-channels | parameters left |")
    print("|---|---|---|---|---|---|---|")
    for name in given.names:
        print(row(name, load(light.build(name))), flush=True)
    for length in given.chains:
        print(row(f"{length} convolutions", load(chain(length))), flush=True)


def chain(length: int) -> onnx.ModelProto:
    """Return `length` convolutions one after another."""
    draw = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", [f"x{i}", f"w{i}"], [f"x{i + 1}"], name=f"conv{i}", pads=[1, 1, 1, 1])
        for i in range(length)
    ]
    weights = [
        numpy_helper.from_array(draw.standard_normal((WIDTH, WIDTH, 3, 3)).astype(np.float32), f"w{i}")
        for i in range(length)
    ]
    ports = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, WIDTH, 8, 8])
        for name in ("x0", f"x{length}")
    ]
    graph = helper.make_graph(nodes, "chain", ports[:1], ports[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def row(name: str, model: ir.Model) -> str:
    """Return the row of `model`."""
    nodes = model.graph.num_nodes()
    began = time.perf_counter()
    channels = find(model)
    found = time.perf_counter() - began
    before = counts(channels).parameters
    began = time.perf_counter()
    PruneChannels().call(model, Context())
    seconds = time.perf_counter() - began
    left = counts(find(model)).parameters / before
    figures = f"{channels.flow.count:,} | {channels.units.count:,} | {found:.2f} s | {seconds:.2f} s"
    return f"| {name} | {nodes:,} | {figures} | {left:.1%} |"


if __name__ == "__main__":
    main()
