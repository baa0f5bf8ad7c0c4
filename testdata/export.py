"""From a trained network to a tidy ONNX model, and from a file to its accuracy."""

import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from digits import Digits
from torch import nn

IR_VERSION = {13: 8, 17: 8, 20: 9}


def export(net: nn.Module, *, opset: int = 17) -> onnx.ModelProto:
    """Trace `net` into a model with input `image` [batch, 1, 8, 8] and output `logits` [batch, 10].

    Nothing is folded: batch normalisations stay nodes, parameters keep the names they have in `net`.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        torch.onnx.export(
            net,
            (torch.zeros(2, 1, 8, 8),),
            buffer,
            dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
            opset_version=opset,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        )
    model = onnx.load_from_string(buffer.getvalue())
    model.ir_version = IR_VERSION[opset]
    tidy(model)
    return model


def tidy(model: onnx.ModelProto) -> None:
    """Remove what the exporter noted about itself: doc strings and node metadata."""
    model.ClearField("doc_string")
    model.ClearField("metadata_props")
    for graph in graphs(model.graph):
        for item in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
            item.ClearField("doc_string")
            item.ClearField("metadata_props")


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield `graph` and every graph inside its nodes, outermost first."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from graphs(attribute.g)


def parameters(model: onnx.ModelProto) -> int:
    """Return the number of float values stored as initializers, those of subgraphs included."""
    tensors = [tensor for graph in graphs(model.graph) for tensor in graph.initializer]
    return sum(int(np.prod(t.dims)) for t in tensors if t.data_type == onnx.TensorProto.FLOAT)


def accuracy(path: Path, data: Digits, batch: int) -> float:
    """Return the share of `data` that onnxruntime classifies correctly, `batch` images at a time."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    starts = range(0, len(data.labels), batch)
    logits = [session.run(["logits"], {"image": data.image[start : start + batch]})[0] for start in starts]
    return float(np.mean(np.concatenate(logits).argmax(1) == data.labels))
