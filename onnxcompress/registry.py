"""Names to passes and runtimes: the built-in ones, then those of other distributions' entry points."""

from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, cast

from onnxcompress.base import Pass, Runtime
from onnxcompress.errors import UsageError, unknown


def passes() -> dict[str, type[Pass]]:
    """Return the built-in passes by name, in the order of ``passes/__init__.py``."""
    return {each.name: each for each in import_module("onnxcompress.passes").BUILT_IN}


def runtimes() -> dict[str, type[Runtime]]:
    """Return the built-in runtimes by name, in the order of ``runtimes/__init__.py``."""
    return {each.name: each for each in import_module("onnxcompress.runtimes").BUILT_IN}


def find_pass(name: str) -> type[Pass]:
    """Return the pass called `name`; UsageError with the nearest names where there is none."""
    return cast(type[Pass], _find("pass", name, passes(), "onnxcompress.passes"))


def find_runtime(name: str) -> type[Runtime]:
    """Return the runtime called `name`; UsageError with the nearest names where there is none."""
    return cast(type[Runtime], _find("runtime", name, runtimes(), "onnxcompress.runtimes"))


def _find(kind: str, name: str, built_in: dict[str, Any], group: str) -> object:
    if name in built_in:
        return built_in[name]
    plugged = {point.name: point for point in entry_points(group=group)}  # on a miss only: it reads the disk
    if name not in plugged:
        raise UsageError(unknown(kind, name, [*built_in, *plugged]))
    try:
        return plugged[name].load()
    except ImportError as error:
        raise UsageError(f"{name}: the plug-in {plugged[name].value} can't be imported: {error}") from error
