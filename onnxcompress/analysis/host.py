"""This machine as a roofline sees it: measured, with the engine that runs the models."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxcompress.base import Runtime
from onnxcompress.target import Machine

SIZE = 768  # rows and columns of the matrices multiplied
LONG = 1 << 24  # elements of the array that is copied, more than caches hold
SECONDS = 0.2  # for each of three measurements


def host(engine: Runtime) -> Machine:
    """Return the rates of this machine with `engine` and its threads: the best of 0.2 seconds each.

    Products of matrices of float32 and of 8 bits, and a pass over 64 MiB that reads and writes each number.
    Numbers of 16 bits are taken to be as slow as float32. The memory on the chip is the last level of cache;
    where the system doesn't tell its size, none.
    """
    square = (SIZE, SIZE)
    small, large = np.ones(square, np.uint8), np.ones(square, np.float32)
    multiply32 = _best(engine, "MatMul", [large, large], ir.DataType.FLOAT)
    multiply8 = _best(engine, "MatMulInteger", [small, small.astype(np.int8)], ir.DataType.INT32)
    copied = np.ones(LONG, np.float32)
    passing = _best(engine, "Neg", [copied], ir.DataType.FLOAT)
    rate32, rate8 = SIZE**3 / multiply32, SIZE**3 / multiply8
    return Machine(rate32, rate32, rate8, 2 * copied.nbytes / passing, _cache(), "this machine, measured")


def _best(engine: Runtime, op: str, arrays: Sequence[np.ndarray], kind: ir.DataType) -> float:
    """Return the least seconds of the operator `op` on `arrays`; a second one is its weight."""
    first, *others = arrays
    x = ir.Value(
        name="x", type=ir.TensorType(ir.DataType.from_numpy(first.dtype)), shape=ir.Shape(first.shape)
    )
    held = [ir.Value(name="w", const_value=ir.tensor(each, name="w")) for each in others]
    node = ir.node(op, [x, *held])
    node.outputs[0].type, node.outputs[0].name = ir.TensorType(kind), "y"
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=held, opset_imports={"": 13}, name="rate")
    made = engine.prepare(ir.Model(graph, ir_version=8))
    feeds, end = {"x": first}, 0.0
    seconds: list[float] = []
    while time.perf_counter() < end or len(seconds) < 3:
        began = time.perf_counter()
        made.run(feeds)
        seconds.append(time.perf_counter() - began)
        end = end or began + SECONDS
    return min(seconds)


def _cache() -> int:
    """Return the bytes of the last level of cache; 0 where the system doesn't tell."""
    names = getattr(os, "sysconf_names", {})
    found = [name for name in ("SC_LEVEL3_CACHE_SIZE", "SC_LEVEL2_CACHE_SIZE") if name in names]
    sizes = [os.sysconf(name) for name in found]
    listed = Path("/proc/cpuinfo")
    if listed.is_file():
        text = listed.read_text(encoding="utf-8", errors="replace")
        sizes += [1024 * int(size) for size in re.findall(r"^cache size\s*: (\d+) KB$", text, re.MULTILINE)]
    return max([0, *sizes])
