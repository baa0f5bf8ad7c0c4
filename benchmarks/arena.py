"""The estimate of peak activations beside what onnxruntime's arena holds at most.

    python benchmarks/arena.py [MODEL.onnx ...]

Without files, on architectures of the light models and of papers. How the arena is read: onnxruntime 1.31
writes into its profile, for each node it ran, the bytes that its arena has given out (mem_bytes_in_use) and
the most so far (mem_in_use_peak). The arena is the stock BFC arena, set to extend by what is asked for and
to cut off what a request leaves over, so that what is given out is what was asked for, rounded up to 256
bytes; with its defaults, a request may get up to twice its size, which is in the last column. Initializers
and copies of them (prepacking) are kept out of the arena, memory patterns are off, only one run counts.

The estimate: live tensors of the graph that onnxruntime runs, in the order it runs them, inputs apart (they
are the caller's). With onnxruntime's optimisations that is nearly all there is; the graph as it is has
convolutions that lay out their input in memory of their own (im2col), which the estimate leaves out.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import light
import nets
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from onnxcompress.data import random_data
from onnxcompress.liveness import plan
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


def estimate(graph: onnx.ModelProto, events: list[dict[str, object]]) -> int:
    """Return the peak of live tensors of `graph` in the order of `events`, which tell the sizes, too."""
    model = ir.from_proto(graph)
    nodes = {node.name: node for node in model.graph}
    sizes: dict[ir.Value, int] = {}
    order = []
    for event in events:
        node = nodes[str(event["name"]).removesuffix("_kernel_time")]
        order.append(node)
        if node.op_type == "Conv" and len(node.inputs) > 3:  # adds to what it is given, in its place
            node.op_type, node.domain = "Sum", ""
        told: Shapes = [next(iter(each.items())) for each in event["args"]["output_type_shape"]]  # type: ignore[index]
        made = [value for value in node.outputs if value.name]
        for value, (kind, dims) in zip(made, told, strict=False):
            sizes[value] = int(np.prod(dims)) * ir.DataType[kind.upper()].bitwidth // 8
    layout = plan(model.graph, lambda value: sizes.get(value, 0), inputs=False)
    steps = {step.node: number for number, step in enumerate(layout.steps)}
    return layout.peak([steps[node] for node in order if node in steps])


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
    print("| model | graph | estimate | arena's peak | ratio | by default |\n|---|---|---|---|---|---|")
    alone = ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1)  # an arena each
    with tempfile.TemporaryDirectory() as folder, alone:
        found = ((each.stem, saved(onnx.load(each), Path(folder))) for each in given.models)
        for name, path in found if given.models else models(Path(folder)):
            for level, what in (("ORT_DISABLE_ALL", "as it is"), ("ORT_ENABLE_ALL", "optimised")):
                expected, held = alone.submit(measured, path, True, level).result()
                _, usual = alone.submit(measured, path, False, level).result()
                print(
                    f"| {name} | {what} | {expected / 1e6:.3f} MB | {held / 1e6:.3f} MB "
                    f"| {expected / held:.3f} | {usual / 1e6:.3f} MB |",
                    flush=True,
                )


def measured(path: Path, exact: bool, level: str) -> tuple[int, int]:
    """Return the estimate and the most bytes the arena had given out; one that is `exact` wastes none."""
    if exact:
        kinds = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
        memory = onnxruntime.OrtMemoryInfo("Cpu", *kinds)
        onnxruntime.create_and_register_allocator(memory, onnxruntime.OrtArenaCfg(SETTINGS))
    events, graph = profiled(path, exact, level)
    return estimate(graph, events), peak(events)


def peak(events: list[dict[str, object]]) -> int:
    """Return the most bytes the arena had given out by the end."""
    return max(int(each["args"]["mem_in_use_peak"]) for each in events)  # type: ignore[index]


if __name__ == "__main__":
    main()
