"""Models from text and arrays, and what onnxruntime makes of them."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx.parser import parse_model

from onnxcompress.model import clone, load, to_proto

HEADER = '<ir_version: 8, opset_import: ["": 13]>\n'


def model(text: str, arrays: Mapping[str, np.ndarray] = {}, seed: int = 0) -> ir.Model:
    """Return the model of `text` with initializers `arrays`; those it declares as ``w = {}`` are drawn."""
    proto = parse_model(text if text.lstrip().startswith("<") else HEADER + text)
    draw = np.random.default_rng(seed)
    for tensor in _initializers(proto.graph):
        dims = tuple(tensor.dims)
        if int(np.prod(dims)) > 0 and not tensor.float_data and tensor.data_type == onnx.TensorProto.FLOAT:
            values = draw.normal(0, 1 / np.sqrt(max(np.prod(dims[1:]), 1)), dims).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()
    )
    onnx.checker.check_model(proto, full_check=True)
    return load(proto)


def _initializers(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from _initializers(attribute.g)


def run(made: ir.Model, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Return the outputs of `made` in onnxruntime, after a check that it is valid."""
    proto = to_proto(made)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feeds)))


def operators(made: ir.Model, folder: Path) -> Counter[str]:
    """Return how many nodes of each operator onnxruntime runs for `made`, after its optimisations."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns that the optimised model is for this machine only
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(to_proto(clone(made)).SerializeToString(), options)
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


def snr(expected: np.ndarray, found: np.ndarray) -> float:
    """Return the signal-to-noise ratio of `found`, in dB."""
    noise = np.sum((found.astype(np.float64) - expected) ** 2)
    return float(10 * np.log10(np.sum(expected.astype(np.float64) ** 2) / max(noise, 1e-30)))
