"""The stock engine: onnxruntime on the CPU."""

from __future__ import annotations

import ctypes
import json
import re
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir

from onnxcompress.errors import CompressError, UsageError
from onnxcompress.model import SparseTensor, load, to_proto
from onnxcompress.target import processors

LARGE = 65536  # bytes from which a weight is handed over as it lies in memory
BULK = 1 << 24  # bytes of such weights from which it is worth while to give memory back
PLAIN = (  # the element types numpy and onnxruntime share
    ir.DataType.FLOAT,
    ir.DataType.FLOAT16,
    ir.DataType.DOUBLE,
    ir.DataType.BOOL,
    ir.DataType.INT8,
    ir.DataType.INT16,
    ir.DataType.INT32,
    ir.DataType.INT64,
    ir.DataType.UINT8,
    ir.DataType.UINT16,
    ir.DataType.UINT32,
    ir.DataType.UINT64,
)


class Event(NamedTuple):
    """A node that the engine ran: its name there, its operator, its seconds, and the values it made."""

    name: str
    op: str
    seconds: float
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class OnnxRuntime:
    """onnxruntime on the CPU.

    `threads` is the number of threads (0: one for each physical core), `optimise` whether the engine may
    rewrite the graph, `prepacking` whether it may keep weights in a layout of its own, `spinning` whether
    idle threads wait busily, `planning` whether memory is laid out for feeds of the first one's shapes
    (faster, and more of it). Without `optimise` and `prepacking` a file's external data stay mapped. Without
    `optimise`, a node runs when what it makes is wanted: those that widen float16 weights need nothing, and
    would all run first.
    """

    name: ClassVar[str] = "onnxruntime"
    threads: int = 0
    optimise: bool = True
    prepacking: bool = True
    spinning: bool = True
    planning: bool = True

    @classmethod
    def make(cls, *, threads: int = 0, frugal: bool = False) -> OnnxRuntime:
        """Return the engine with `threads` threads; a `frugal` one leaves graph and weights as they are."""
        return cls(threads=threads, optimise=not frugal, prepacking=not frugal)

    def patient(self) -> OnnxRuntime:
        """Return this engine without spinning and planning."""
        return replace(self, spinning=False, planning=False)

    def abreast(self) -> tuple[OnnxRuntime, int]:
        """Return the patient engine with half of the threads, for two runs at a time."""
        threads = self.threads or processors()
        return replace(self.patient(), threads=max(threads // 2, 1)), min(threads, 2)

    def prepare(self, model: ir.Model | Path, outputs: Sequence[str] | None = None) -> Session:
        """Return `model` ready to run; see ``base.Runtime``. A file is read by onnxruntime itself.

        Large weights of a model in memory are read where they lie, not put in a protobuf, so that it may be
        over 2 GB. Without `optimise` the session shares them with the model.
        """
        if isinstance(model, Path) and outputs is None:
            return Session(self._options(), str(model))
        model = load(model) if isinstance(model, Path) else model
        weights = {name: tensor for name, tensor in _tensors(model.graph) if _is_large(tensor)}
        session = self._session(model, weights, outputs)
        _give_back(weights)
        return session

    def _session(
        self, model: ir.Model, weights: Mapping[str, ir.TensorProtocol], outputs: Sequence[str] | None
    ) -> Session:
        """Return `model` loaded, its large `weights` handed over apart."""
        import onnxruntime

        options = self._options()
        arrays = {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in weights.items()}
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in arrays.values()]
        options.add_external_initializers(list(arrays), values)  # copied while the session is made
        _give_back(weights)
        if self.optimise:
            return Session(options, serialised(model, weights, outputs))
        for name, value in zip(arrays, values, strict=True):
            options.add_initializer(name, value)  # so the copy is dropped again
        return Session(options, serialised(model, weights, outputs), values)

    def profile(self, model: ir.Model, feeds: Mapping[str, np.ndarray], runs: int) -> list[Event]:
        """Return what the engine ran for `feeds`, in its order: for each node the median seconds of `runs`.

        The engine's nodes aren't those of `model`: it joins, replaces and adds some. CompressError where it
        can't take the model, and where that takes over 2 GB.
        """
        import onnxruntime

        options = self._options()
        with tempfile.TemporaryDirectory() as folder, _reported(CompressError):
            options.enable_profiling = True
            options.profile_file_prefix = f"{folder}/profile"
            options.optimized_model_filepath = f"{folder}/rewritten.onnx"
            session = onnxruntime.InferenceSession(
                to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            for _ in range(runs + 1):  # the first lays out memory
                session.run(None, dict(feeds))
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
            rewritten = onnx.load(options.optimized_model_filepath, load_external_data=False)
        made = {node.name: tuple(node.output) for node in rewritten.graph.node}
        times: dict[tuple[str, str], list[float]] = {}
        for each in events:
            if each["cat"] == "Node" and each["name"].endswith("_kernel_time"):
                key = each["name"].removesuffix("_kernel_time"), each["args"]["op_name"]
                times.setdefault(key, []).append(each["dur"] / 1e6)
        return [
            Event(name, op, statistics.median(seconds[len(seconds) // (runs + 1) :]), made.get(name, ()))
            for (name, op), seconds in times.items()
        ]

    def _options(self) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised
        options.intra_op_num_threads = self.threads
        options.use_deterministic_compute = True
        options.enable_mem_pattern = self.planning
        if not self.optimise:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
        if not self.prepacking:
            options.add_session_config_entry("session.disable_prepacking", "1")
        if not self.spinning:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return options


class Session:
    """A model loaded by onnxruntime; `kept` are the values it shares with the caller."""

    def __init__(self, options: Any, source: str | bytes, kept: Sequence[Any] = ()) -> None:
        import onnxruntime

        with _reported(CompressError):
            self._session = onnxruntime.InferenceSession(
                source, options, providers=["CPUExecutionProvider"], enable_fallback=0
            )
        self._kept = kept
        outputs = self._session.get_outputs()
        self._names = [each.name for each in outputs]
        for each in outputs:
            if not each.type.startswith("tensor("):
                raise CompressError(f"onnxruntime: output {each.name} is a {each.type}, expected a tensor")

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs by name for one feed.

        Raises UsageError where a feed doesn't fit the inputs, CompressError where the engine fails.
        """
        with _reported(UsageError):
            results = self._session.run(self._names, dict(feeds))
        return dict(zip(self._names, results, strict=True))


def _tensors(graph: ir.Graph) -> Iterator[tuple[str, ir.TensorProtocol]]:
    """Yield name and tensor of every initializer that is read."""
    for name, value in graph.initializers.items():
        if value.const_value is not None and value.uses():
            yield name, value.const_value


def _is_large(tensor: ir.TensorProtocol) -> bool:
    """Return whether onnxruntime can use `tensor` where it lies, and this is worth it.

    A small one may be wanted for shape inference, which looks into the protobuf.
    """
    return not isinstance(tensor, SparseTensor) and tensor.dtype in PLAIN and tensor.nbytes >= LARGE


def _give_back(weights: Mapping[str, ir.TensorProtocol]) -> None:
    """Return memory that was freed but kept to the system, where `weights`, which are copied, are large."""
    if sys.platform == "linux" and sum(tensor.nbytes for tensor in weights.values()) >= BULK:
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
        if trim is not None:
            trim(0)


def serialised(
    model: ir.Model, weights: Mapping[str, ir.TensorProtocol], outputs: Sequence[str] | None
) -> bytes:
    """Return `model` as a protobuf in which `weights` are only declared, with `outputs` if they are given."""
    proto = to_proto(model, apart=weights)
    if outputs is not None:
        del proto.graph.output[:]
        proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    return bytes(proto.SerializeToString())


@contextmanager
def _reported(unfit: type[CompressError]) -> Iterator[None]:
    """Raise what onnxruntime raises as a one-line CompressError; refused arguments as an `unfit`."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    engine = (
        state.EPFail,
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.InvalidProtobuf,
        state.NoModel,
        state.NoSuchFile,
        state.NotImplemented,
        state.RuntimeException,
    )
    try:
        yield
    except (*engine, RuntimeError, ValueError) as error:
        text = str(error)
        refused = isinstance(error, state.InvalidArgument | ValueError) and "status code" not in text
        raise (unfit if refused else CompressError)(f"onnxruntime: {_plain(text)}") from error


def _plain(text: str) -> str:
    """Return the message `text` of onnxruntime in one line, without error codes and C++ signatures."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", " ".join(text.split()))
    signature = r"[^()]*\((?:[^()]|\([^()]*\))*\)(?: const)?(?: \[with [^\]]*\])? "
    return re.sub(r"\S+\.(?:cc|cpp|h|hpp):\d+ " + signature, "", text)
