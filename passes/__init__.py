"""The built-in passes: one file, one class, one name each."""

from onnxcompress.passes.prune import Prune
from onnxcompress.passes.quant import Quant
from onnxcompress.passes.simplify import Simplify

BUILT_IN = (Simplify, Prune, Quant)

__all__ = ["BUILT_IN", "Prune", "Quant", "Simplify"]
