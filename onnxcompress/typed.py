"""Dataclasses as JSON: read back from plain data, and described by a JSON Schema.

What is written are the fields of dataclasses by name, tuples as lists. A float that isn't finite is null, so
that null, where the type is float and not also None, is read as infinity.
"""

from __future__ import annotations

import inspect
import math
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any

from onnxcompress.errors import UsageError

_PLAIN: dict[Any, str] = {bool: "boolean", int: "integer", float: "number", str: "string"}


def plain(value: Any) -> Any:
    """Return a dataclass, or what one holds, as JSON can hold it."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read(kind: Any, value: object, where: str) -> Any:
    """Return the plain `value` as the type `kind`: a dataclass, list, tuple, dict, union or plain type.

    UsageError, which names the place after `where`, for anything else. Fields with a default may be missing.
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _either(inner, value, where)
    if is_dataclass(kind):
        return _object(kind, value, where)
    if origin is list and isinstance(value, list):
        return [read(inner[0], each, f"{where}[{place}]") for place, each in enumerate(value)]
    if origin is tuple and isinstance(value, list):
        kinds = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        if len(kinds) == len(value):
            pairs = enumerate(zip(kinds, value, strict=True))
            return tuple(read(each, item, f"{where}[{place}]") for place, (each, item) in pairs)
    if origin is dict and isinstance(value, dict):
        return {key: read(inner[1], each, f"{where}.{key}") for key, each in value.items()}
    if kind is type(None) and value is None:
        return None
    if kind is float and value is None:
        return math.inf
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind in _PLAIN and type(value) is kind:
        return value
    raise UsageError(f"{where}: is {_told(value)}, expected {_named(kind)}")


def _either(kinds: tuple[Any, ...], value: object, where: str) -> Any:
    """Return `value` as the first of `kinds` it fits: None before others, an integer before a float."""
    for kind in sorted(kinds, key=lambda kind: _ORDER.get(kind, len(_ORDER))):
        if kind not in _ORDER and value is not None and kind is not str:
            return read(kind, value, where)  # or what is wrong inside of it
        try:
            return read(kind, value, where)
        except UsageError:
            continue
    raise UsageError(f"{where}: is {_told(value)}, expected {' or '.join(map(_named, kinds))}")


_ORDER = {type(None): 0, bool: 1, int: 2, float: 3}


def _object(kind: Any, value: object, where: str) -> Any:
    if not isinstance(value, dict):
        raise UsageError(f"{where}: is {_told(value)}, expected {_named(kind)}")
    kinds = typing.get_type_hints(kind)
    known = {each.name for each in fields(kind)}
    for name in value.keys() - known:
        raise UsageError(f"{where}: has a field {name!r}, expected {', '.join(sorted(known))}")
    given = {name: read(kinds[name], each, f"{where}.{name}") for name, each in value.items()}
    for name in _required(kind):
        if name not in given:
            raise UsageError(f"{where}: has no {name}, expected {_named(kind)}")
    return kind(**given)


def _required(kind: Any) -> Iterator[str]:
    """Yield the fields of a dataclass that have no default."""
    for name, parameter in inspect.signature(kind).parameters.items():
        if parameter.default is inspect.Parameter.empty:
            yield name


def schema(kind: Any, head: Mapping[str, Any], title: str) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of documents with the properties `head` and those of `kind`."""
    parts: dict[str, Any] = {}
    whole = _described(kind, parts)
    whole["properties"] = {**head, **whole["properties"]}
    whole["required"] = [*head, *whole["required"]]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        **whole,
        "$defs": dict(sorted(parts.items())),
    }


def _described(kind: Any, parts: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a dataclass; those it refers to go into `parts`."""
    kinds = typing.get_type_hints(kind)
    return {
        "description": " ".join(inspect.cleandoc(kind.__doc__ or "").split()),
        "type": "object",
        "properties": {each.name: _schema(kinds[each.name], parts) for each in fields(kind)},
        "required": [each.name for each in fields(kind)],
        "additionalProperties": False,
    }


def _schema(kind: Any, parts: dict[str, Any]) -> dict[str, Any]:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_schema(each, parts) for each in inner]}
    if is_dataclass(kind):
        name = f"{kind.__module__.rpartition('.')[2]}.{kind.__qualname__}"  # type: ignore[union-attr]
        if name not in parts:
            parts[name] = {}  # taken, should it refer to itself
            parts[name] = _described(kind, parts)
        return {"$ref": f"#/$defs/{name}"}
    if origin is list or (origin is tuple and inner[-1] is Ellipsis):
        return {"type": "array", "items": _schema(inner[0], parts)}
    if origin is tuple:
        items = [_schema(each, parts) for each in inner]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(inner[1], parts)}
    if kind is float:
        return {"type": ["number", "null"]}
    return {"type": "null" if kind is type(None) else _PLAIN[kind]}


def _named(kind: Any) -> str:
    """Return a type in the words of JSON."""
    origin = typing.get_origin(kind)
    if origin in (list, tuple):
        return "an array"
    if origin is dict or is_dataclass(kind):
        return "an object"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_named(each) for each in typing.get_args(kind))
    return "null" if kind is type(None) else _PLAIN[kind]


def _told(value: object) -> str:
    text = "an object" if isinstance(value, dict) else "an array" if isinstance(value, list) else repr(value)
    return text if len(text) < 60 else f"{text[:60]}..."
