"""The built-in runtimes: engines that run a model. Each is imported when asked for."""

from onnxcompress.runtimes.interpreter import Interpreter
from onnxcompress.runtimes.onnxruntime import OnnxRuntime

BUILT_IN = (OnnxRuntime, Interpreter)

__all__ = ["BUILT_IN", "Interpreter", "OnnxRuntime"]
