"""onnxcompress compiles an ONNX model into a smaller, faster ONNX model.

``compress(model, passes, data=...)`` is the whole of it; see ``onnxcompress.passes`` for the passes.
Importing this package is cheap: what it offers is imported when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxcompress.base import Context as Context
    from onnxcompress.base import Effect as Effect
    from onnxcompress.base import Pass as Pass
    from onnxcompress.base import Result as Result
    from onnxcompress.base import option as option
    from onnxcompress.errors import BoundError as BoundError
    from onnxcompress.errors import CompressError as CompressError
    from onnxcompress.errors import UsageError as UsageError
    from onnxcompress.model import load as load
    from onnxcompress.model import save as save
    from onnxcompress.pipeline import Compressed as Compressed
    from onnxcompress.pipeline import compress as compress
    from onnxcompress.recipe import Recipe as Recipe
    from onnxcompress.trials import sensitivity as sensitivity

__version__ = "0.1.0"

_HOMES = {
    "Context": "base",
    "Effect": "base",
    "Pass": "base",
    "Result": "base",
    "option": "base",
    "BoundError": "errors",
    "CompressError": "errors",
    "UsageError": "errors",
    "load": "model",
    "save": "model",
    "Compressed": "pipeline",
    "compress": "pipeline",
    "Recipe": "recipe",
    "sensitivity": "trials",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'onnxcompress' has no attribute {name!r}")
    return getattr(import_module(f"onnxcompress.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
