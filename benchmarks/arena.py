"""The estimate of peak activations beside what onnxruntime's arena holds at most.

    python benchmarks/arena.py [MODEL.onnx ...]

Without files, on architectures of the light models and of papers. How the arena is read: onnxruntime 1.31
writes into its profile, for each node it ran, the bytes that its arena has given out (mem_bytes_in_use) and
the most so far (mem_in_use_peak). The arena is the stock BFC arena, set to extend by what is asked for and
to cut off what a request leaves over, so that what is given out is what was asked for, rounded up to 256
bytes; with its defaults, a request may get up to twice its size, which is in the last column. Initializers
and copies of them (prepacking) are kept out of the arena, memory patterns are off, only one run counts.

The estimate: live tensors of the graph that onnxruntime runs, in the order it runs them, inputs apart (they
are the caller's). Two things come on top of it, which the second estimate has: LRN takes memory for the sums
of squares and for the padded squares of one image, and the plan of onnxruntime gives a tensor the buffer of
an earlier one of the same shape, which is kept in between, as those of a dense block are. Source:
onnxruntime, allocation_planner.cc (FindReusableInput, FindReusableTensor) and lrn.cc. Both leave out where
the convolutions of the graph as it is lay out their input (im2col), some 128 KB.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import light
import nets
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from onnxcompress.cost import VIEWS
from onnxcompress.data import random_data
from onnxcompress.liveness import IN_PLACE, plan
from onnxcompress.model import load

SETTINGS = {
    "max_mem": 0,
    "arena_extend_strategy": 1,
    "initial_chunk_size_bytes": 256,
    "max_dead_bytes_per_chunk": 1,
}
Shapes = list[tuple[str, list[int]]]


def profiled(path: Path, exact: bool, level: str) -> tuple[list[dict[str, object]], onnx.ModelProto]:
    """Return the events of the nodes that one run of the model ran, and the graph that was run."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.enable_profiling, options.enable_mem_pattern = True, False
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    options.add_session_config_entry("session.disable_prepacking", "1")
    if exact:
        options.add_session_config_entry("session.use_env_allocators", "1")
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = f"{folder}/profile"
        options.optimized_model_filepath = f"{folder}/run.onnx"
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        session.run(None, next(iter(random_data(load(path), count=1))))
        events = json.loads(Path(session.end_profiling()).read_text())
        return [each for each in events if each["cat"] == "Node"], onnx.load(f"{folder}/run.onnx")


@dataclass(frozen=True)
class Ran:
    """The nodes of a graph in the order they ran in, and shape and bytes of what each made."""

    graph: ir.Graph
    nodes: list[ir.Node]
    shapes: dict[ir.Value, tuple[int, ...]]
    sizes: dict[ir.Value, int]


def ran(proto: onnx.ModelProto, events: list[dict[str, object]]) -> Ran:
    """Return what `events`, those of the nodes of `proto`, tell."""
    graph = ir.from_proto(proto).graph
    nodes = {node.name: node for node in graph}
    found = Ran(graph, [], {}, {})
    for event in events:
        node = nodes[str(event["name"]).removesuffix("_kernel_time")]
        found.nodes.append(node)
        if node.op_type == "Conv" and len(node.inputs) > 3:  # adds to what it is given, in its place
            node.op_type, node.domain = "Sum", ""
        told: Shapes = [next(iter(each.items())) for each in event["args"]["output_type_shape"]]  # type: ignore[index]
        made = [value for value in node.outputs if value.name]
        for value, (kind, dims) in zip(made, told, strict=False):
            found.shapes[value] = tuple(dims)
            found.sizes[value] = int(np.prod(dims)) * ir.DataType[kind.upper()].bitwidth // 8
    return found


def estimate(run: Ran) -> int:
    """Return the peak of live tensors of `run`."""
    layout = plan(run.graph, lambda value: run.sizes.get(value, 0), inputs=False)
    steps = {step.node: number for number, step in enumerate(layout.steps)}
    return layout.peak([steps[node] for node in run.nodes if node in steps])


@dataclass
class Buffer:
    """Memory from one step to another, how many reads of its tensor are to come, and the tensor's shape."""

    size: int
    first: int
    last: int = 0
    reads: int = 0
    shape: tuple[int, ...] = ()


def planned(run: Ran) -> int:
    """Return the peak of the buffers that onnxruntime plans for `run`, with what LRN takes besides."""
    held: dict[ir.Value, Buffer] = {}
    buffers: list[Buffer] = []
    idle: list[Buffer] = []
    for step, node in enumerate(run.nodes):
        read = [value for value in node.inputs if value in held]
        if node.op_type in VIEWS and not read:
            continue  # of a constant
        made = [value for value in node.outputs if value in run.shapes]
        for value in made:
            shape, buffer = run.shapes[value], None
            if node.op_type in VIEWS:
                buffer = held[read[0]]
            elif node.op_type in IN_PLACE:
                near = [held[each] for each in read]
                buffer = next((each for each in near if each.reads == 1 and each.shape == shape), None)
            if buffer is None and not value.is_graph_output():
                buffer = next((each for each in idle if each.shape == shape), None)
                idle = [each for each in idle if each is not buffer]
            if buffer is None:
                buffer = Buffer(run.sizes[value], step)
                buffers.append(buffer)
            held[value], buffer.shape = buffer, shape
            buffer.reads += len(value.uses()) + value.is_graph_output()
        for value in read:
            held[value].reads -= 1
        used = {id(held[value]): held[value] for value in (*read, *made)}
        for buffer in used.values():
            buffer.last = step
            if not buffer.reads:
                idle.insert(0, buffer)
    return max(
        sum(each.size for each in buffers if each.first <= step <= each.last) + scratch(node, run)
        for step, node in enumerate(run.nodes)
    )


def scratch(node: ir.Node, run: Ran) -> int:
    """Return the bytes that `node` takes while it runs, besides its inputs and outputs."""
    if node.op_type != "LRN":
        return 0
    _, channels, *image = run.shapes[node.outputs[0]]
    padded = (channels + node.attributes["size"].as_int() - 1) * int(np.prod(image))
    return run.sizes[node.outputs[0]] + 4 * padded


def models(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield names and files of architectures."""
    for name in light.NAMES:
        yield name, saved(light.build(name), folder)
    for name, model in (
        ("squeezenext", nets.squeezenext()),
        ("mobilenet", nets.mobilenet()),
        ("shufflenet_g3", nets.shufflenet(3)),
    ):
        yield name, saved(model, folder)


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    """Write a model, each node with a name of its own."""
    for number, node in enumerate(model.graph.node):
        node.name = f"node{number}"
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


def main() -> None:
    """Print a line for each model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", type=Path)
    given = parser.parse_args()
    print("| model | graph | live tensors | as planned | arena's peak | ratios | by default |")
    print("|---|---|---|---|---|---|---|")
    alone = ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1)  # an arena each
    with tempfile.TemporaryDirectory() as folder, alone:
        found = ((each.stem, saved(onnx.load(each), Path(folder))) for each in given.models)
        for name, path in found if given.models else models(Path(folder)):
            for level, what in (("ORT_DISABLE_ALL", "as it is"), ("ORT_ENABLE_ALL", "optimised")):
                live, expected, held = alone.submit(measured, path, True, level).result()
                _, _, usual = alone.submit(measured, path, False, level).result()
                sizes = " | ".join(f"{each / 1e6:.3f} MB" for each in (live, expected, held))
                ratios = f"{live / held:.3f}, {expected / held:.3f}"
                print(f"| {name} | {what} | {sizes} | {ratios} | {usual / 1e6:.3f} MB |", flush=True)


def measured(path: Path, exact: bool, level: str) -> tuple[int, int, int]:
    """Return both estimates and the most bytes the arena had given out; one that is `exact` wastes none."""
    if exact:
        kinds = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
        memory = onnxruntime.OrtMemoryInfo("Cpu", *kinds)
        onnxruntime.create_and_register_allocator(memory, onnxruntime.OrtArenaCfg(SETTINGS))
    events, graph = profiled(path, exact, level)
    run = ran(graph, events)
    return estimate(run), planned(run), peak(events)


def peak(events: list[dict[str, object]]) -> int:
    """Return the most bytes the arena had given out by the end."""
    return max(int(each["args"]["mem_in_use_peak"]) for each in events)  # type: ignore[index]


if __name__ == "__main__":
    main()
