"""OpenVINO on the CPU, for models that are deployed there. The extra ``openvino`` installs it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from onnxcompress.errors import CompressError, UsageError
from onnxcompress.formats.inlining import inline
from onnxcompress.model import clone, load
from onnxcompress.runtimes.onnxruntime import serialised


@dataclass(frozen=True)
class OpenVino:
    """OpenVINO on the CPU.

    `threads` is the number of threads (0: as it likes). Floats are computed with as the model says, also
    where OpenVINO by itself would take bfloat16 for float32.
    """

    name: ClassVar[str] = "openvino"
    threads: int = 0

    @classmethod
    def make(cls, *, threads: int = 0, frugal: bool = False) -> OpenVino:
        """Return the engine with `threads` threads; UsageError where it isn't installed."""
        try:
            import openvino  # noqa: F401
        except ImportError as error:
            raise UsageError(
                "openvino: it is not installed, expected pip install 'onnxcompress[openvino]'"
            ) from error
        return cls(threads)

    def patient(self) -> OpenVino:
        """Return this engine: its idle threads sleep."""
        return self

    def abreast(self) -> tuple[OpenVino, int]:
        """Return this engine, for one run at a time."""
        return self, 1

    def prepare(self, model: ir.Model | Path, outputs: Sequence[str] | None = None) -> Compiled:
        """Return `model` ready to run; see ``base.Runtime``. Functions, which it has none of, are inlined."""
        import openvino

        read = load(model) if isinstance(model, Path) else model
        source: str | bytes = str(model)
        if not isinstance(model, Path) or outputs is not None or read.functions:
            if read.functions:
                read = clone(read)
                inline(read)
            source = serialised(read, {}, outputs)
        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if self.threads:
            options["INFERENCE_NUM_THREADS"] = self.threads
        names = [value.name or "" for value in read.graph.outputs] if outputs is None else [*outputs]
        with _reported(CompressError):
            core = openvino.Core()
            return Compiled(core.compile_model(core.read_model(source), "CPU", options), names)


class Compiled:
    """A model compiled by OpenVINO, whose outputs are called `names`."""

    def __init__(self, compiled: Any, names: Sequence[str]) -> None:
        self._inputs = {name: port for port in compiled.inputs for name in port.get_names()}
        self._request = compiled.create_infer_request()
        self._names = names

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs by name for one feed.

        Raises UsageError where a feed doesn't fit the inputs, CompressError where the engine fails.
        """
        if wrong := sorted(feeds.keys() ^ self._inputs.keys()):
            what = "is not an input of the model" if wrong[0] in feeds else "is missing"
            raise UsageError(f"openvino: {wrong[0]} {what}, expected {', '.join(self._inputs)}")
        for name, array in feeds.items():
            if array.dtype != (wanted := self._inputs[name].get_element_type().to_dtype()):
                raise UsageError(f"openvino: input {name} is {array.dtype}, expected {wanted}")
        with _reported(UsageError):
            results = self._request.infer(dict(feeds))
        return {name: np.array(results[place]) for place, name in enumerate(self._names)}


@contextmanager
def _reported(kind: type[CompressError]) -> Iterator[None]:
    """Raise what OpenVINO raises as a `kind` of one line."""
    try:
        yield
    except RuntimeError as error:
        raise kind(f"openvino: {_plain(str(error))}") from error


def _plain(text: str) -> str:
    """Return the message `text` of OpenVINO in one line, without places in its source."""
    text = re.sub(r"(Exception from |Check '.*' failed at )\S+:\d+:?", "", text)
    return " ".join(text.split())
