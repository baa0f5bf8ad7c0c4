"""The built-in runtimes: engines that run a model. Each is imported when asked for."""

from onnxcompress.runtimes.interpreter import Interpreter
from onnxcompress.runtimes.onnxruntime import OnnxRuntime
from onnxcompress.runtimes.openvino import OpenVino

BUILT_IN = (OnnxRuntime, Interpreter, OpenVino)

__all__ = ["BUILT_IN", "Interpreter", "OnnxRuntime", "OpenVino"]
