"""The manifest of a zoo: a TOML file that says which models go through which recipes."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from onnxcompress.data import split_slice
from onnxcompress.data.tensors import find_sets
from onnxcompress.errors import UsageError, unknown
from onnxcompress.recipe import Recipe, parse, preset
from onnxcompress.registry import find_runtime
from onnxcompress.target import find_target
from onnxcompress.verify import METRICS
from onnxcompress.zoo.jobs import Job, check_labels, check_name, known_options

# Key of the manifest: what it may be, and the argument of `compress` it stands for ("": the job's own).
OPTIONS: dict[str, tuple[type, str]] = {
    "calibration": (str, "data"),
    "evaluation": (str, "evaluation"),
    "preprocess": (str, "preprocess"),
    "metric": (str, "metric"),
    "max_drop": (float, "max_drop"),
    "confidence": (float, "confidence"),
    "max_size": (float, "max_size"),
    "max_latency": (float, "max_latency"),
    "rtol": (float, "rtol"),
    "atol": (float, "atol"),
    "shapes": (dict, "shapes"),
    "exclude": (list, "exclude"),
    "verify": (str, "verify"),
    "runtime": (str, "runtime"),
    "seed": (int, "seed"),
    "threads": (int, "threads"),
    "latency": (bool, "measure_latency"),
    "external_data": (bool, "external_data"),
    "inline": (bool, "inline"),
    "memory": (float, ""),
    "seconds": (float, ""),
}
MODEL: dict[str, type] = {"path": str, "name": str, "recipes": list}
RECIPE: dict[str, type] = {"name": str, "passes": str, "preset": str, "file": str, "targets": list}
TOP: dict[str, type] = {"model": list, "recipe": list, "out": str, "targets": list}
WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", list: "a list"}


@dataclass(frozen=True)
class Manifest:
    """The jobs of a zoo and the folder for their results."""

    jobs: list[Job]
    out: Path


def read_manifest(path: str | Path, out: Path | None = None) -> Manifest:
    """Return what the manifest `path` says, paths in it being relative to its folder.

    `out` goes before the folder for results that it names; models in that folder are results, not sources.
    UsageError of one line, ``<file>:<line>: <key>: ...``, for what can be told to be wrong before a model is
    read.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        document = tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not a text file, expected a TOML manifest") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: not TOML: {error}") from error
    return _Reader(path, text, document, out).manifest()


@dataclass(frozen=True)
class Section:
    """A table of the manifest: the `number`th called `table`, or what stands above all ("")."""

    table: str
    number: int
    values: Mapping[str, Any]


class _Reader:
    """Turns a manifest into jobs."""

    def __init__(self, path: Path, text: str, document: Mapping[str, Any], out: Path | None) -> None:
        self.path = path
        self.text = text
        self.folder = path.absolute().parent
        self.top = Section("", 0, document)
        self.given_out = out
        self.options = {key: kind for key, (kind, name) in OPTIONS.items() if name in ["", *known_options()]}

    def fail(self, section: Section, key: str, message: str) -> NoReturn:
        """Raise UsageError for what `section` says of `key`."""
        line = line_of(self.text, section, key)
        raise UsageError(f"{self.path.name}{f':{line}' if line else ''}: {message}")

    def manifest(self) -> Manifest:
        """Return the manifest."""
        self.check(self.top, TOP)
        named = self.folder / self.top.values["out"] if "out" in self.top.values else Path("out")
        out = self.given_out or named
        models, recipes = self.sections("model", MODEL), self.sections("recipe", RECIPE)
        names = [each.values.get("name") for each in recipes]
        for each in recipes:
            if names.count(each.values.get("name")) > 1:
                self.fail(each, "name", "name: two recipes have it, expected names of their own")
        jobs = [
            self.job(model, recipe, target, name, file)
            for model in models
            for name, file in self.files(model, out)
            for recipe in self.wanted(model, recipes)
            for target in recipe.values.get("targets", self.top.values.get("targets", [None]))
        ]
        try:
            check_labels(jobs)
        except UsageError as error:
            raise UsageError(f"{self.path.name}: {error}") from error
        return Manifest(jobs, out)

    def sections(self, table: str, known: Mapping[str, type]) -> list[Section]:
        """Return the tables called `table`, checked; UsageError where there is none."""
        found = self.top.values.get(table)
        if not found or not all(isinstance(each, dict) for each in found):
            self.fail(self.top, table, f"{table}: expected at least one [[{table}]] table")
        sections = [Section(table, number, values) for number, values in enumerate(found)]
        for each in sections:
            self.check(each, known)
        return sections

    def check(self, section: Section, known: Mapping[str, type]) -> None:
        """Raise UsageError where a key of `section` isn't known, or its value of another kind."""
        kinds = {**known, **self.options}
        where = f"key of [[{section.table}]]" if section.table else "key"
        for key, value in section.values.items():
            if key not in kinds:
                self.fail(section, key, unknown(where, key, kinds))
            self.check_kind(section, key, value, kinds[key])
            self.check_value(section, key, value)

    def check_kind(self, section: Section, key: str, value: Any, kind: type) -> None:
        """Raise UsageError where `value` is not of `kind`; a list must be one of texts."""
        if key == "shapes":
            good = isinstance(value, dict) and all(
                isinstance(dims, list) and all(type(dim) is int and dim > 0 for dim in dims)
                for dims in value.values()
            )
            if not good:
                self.fail(section, key, f"{key}: is {value!r}, expected such as {{ image = [1, 3, 8, 8] }}")
        elif key in ("model", "recipe"):
            if not isinstance(value, list):
                self.fail(section, key, f"{key}: expected [[{key}]] tables")
        elif not isinstance(value, (int, float) if kind is float else kind) or (
            isinstance(value, bool) and kind is not bool
        ):
            self.fail(section, key, f"{key}: is {value!r}, expected {WORDS[kind]}")
        elif kind is list and not are_texts(value):
            self.fail(section, key, f"{key}: is {value!r}, expected a list of texts")

    def check_value(self, section: Section, key: str, value: Any) -> None:
        """Raise UsageError where `value` can be told to be wrong before a model is read."""
        targets: list[str] = value if key == "targets" else []
        if key in ("calibration", "evaluation"):
            path = split_slice(str(self.folder / value))[0]
            if not path.exists():
                self.fail(section, key, f"{key}: {path}: no such file or folder")
        if key == "metric" and value not in METRICS:
            self.fail(section, key, f"metric: {unknown('metric', value, METRICS)}")
        if key in ("memory", "seconds") and not value > 0:
            self.fail(section, key, f"{key}: is {value}, expected more than 0")
        if key in ("seed", "threads", "rtol", "atol", "max_drop") and not value >= 0:
            self.fail(section, key, f"{key}: is {value}, expected 0 or more")
        try:
            if key == "runtime":
                find_runtime(value)
            for each in targets:
                find_target(each)
            if key == "name":
                check_name(value, nested=section.table == "model")
        except UsageError as error:
            self.fail(section, key, f"{key}: {error}")

    def files(self, model: Section, out: Path) -> Iterator[tuple[str, Path]]:
        """Yield the models that the section `model` names, and their files, but none in `out`."""
        given, name = model.values.get("path"), model.values.get("name")
        if given is None:
            self.fail(model, "", "path: is missing in a [[model]] table")
        try:
            found = list(find_models(self.folder, given, out.absolute()))
        except (ValueError, NotImplementedError) as error:  # pathlib's, of a pattern it doesn't take
            self.fail(model, "path", f"path: {given}: {error}")
        if not found:
            self.fail(model, "path", f"path: {given}: no model there, expected .onnx files")
        if name is not None and len(found) > 1:
            self.fail(model, "name", f"name: is for one model, {given} are {len(found)}")
        yield from ((name or each, file) for each, file in found)

    def wanted(self, model: Section, recipes: Sequence[Section]) -> list[Section]:
        """Return the recipes for the section `model`: those it names, or all."""
        known = {each.values.get("name", ""): each for each in recipes}
        for name in model.values.get("recipes", ()):
            if name not in known:
                self.fail(model, "recipes", f"recipes: {unknown('recipe', name, known)}")
        return [known[name] for name in model.values.get("recipes", known)]

    def recipe(self, section: Section) -> str:
        """Return the recipe that `section` spells, as text."""
        ways = [key for key in ("passes", "preset", "file") if key in section.values]
        if len(ways) != 1:
            self.fail(section, "", "recipe: expected exactly one of passes, preset and file")
        key, value = ways[0], section.values[ways[0]]
        try:
            if key == "passes":
                return str(parse(value))
            return str(preset(value) if key == "preset" else Recipe.read(self.folder / value))
        except UsageError as error:
            self.fail(section, key, f"{key}: {error}")

    def job(self, model: Section, recipe: Section, target: str | None, name: str, file: Path) -> Job:
        """Return the job of the model `name` in `file`; what its section says counts more than the recipe's.

        Without calibration data, that is the ``test_data_set_*`` folders beside the model.
        """
        label = recipe.values.get("name")
        if label is None:
            self.fail(recipe, "", "name: is missing in a [[recipe]] table")
        values = {**self.top.values, **recipe.values, **model.values}
        if "calibration" not in values and find_sets(file.parent):
            values["calibration"] = str(file.parent)
        for key in ("calibration", "evaluation"):
            if key in values:
                values[key] = str(self.folder / values[key])
        options = {OPTIONS[key][1]: values[key] for key in self.options if key in values and OPTIONS[key][1]}
        if target is not None:
            options["target"] = target
        memory = values.get("memory")
        passes = self.recipe(recipe)
        try:
            return Job(
                model=file,
                passes=passes,
                name=name,
                recipe=label if target is None else f"{label}-{target}",
                options=options,
                memory=None if memory is None else 1e9 * memory,
                seconds=values.get("seconds"),
            )
        except UsageError as error:
            self.fail(model, "path", f"path: {file.name}: {error}")


def are_texts(values: Any) -> bool:
    """Return whether the list `values` holds texts, one or more."""
    return bool(values) and all(isinstance(each, str) for each in values)


def find_models(folder: Path, given: str, out: Path) -> Iterator[tuple[str, Path]]:
    """Yield the models that the path, folder or pattern `given`, relative to `folder`, names; names first.

    In a folder those of all folders in it are meant, as in the ONNX model zoo: one that is alone in its
    folder is called by the folder, others by folder and file. What lies in `out` is left out.
    """
    path = folder / given
    if path.is_file():
        yield path.stem, path
    elif path.is_dir():
        files = sorted(each for each in path.rglob("*.onnx") if not each.is_relative_to(out))
        for file in files:
            inner = file.parent.relative_to(path)
            alone = sum(each.parent == file.parent for each in files) == 1 and file.parent != path
            yield (inner if alone else inner / file.stem).as_posix(), file
    elif re.search(r"[*?\[]", given):
        base = Path(path.anchor)
        for file in sorted(base.glob(str(path.relative_to(base)))):
            if file.is_file() and not file.is_relative_to(out):
                yield file.stem, file


def line_of(text: str, section: Section, key: str) -> int | None:
    """Return the number of the line of `text` with `key` of `section` ("": with its header), if found."""
    table, number = "", -1
    for line, content in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*\[\[?\s*([\w.-]+)\s*\]", content)
        if header:
            number += header[1] == section.table
            table = header[1].partition(".")[0]
        here = (table, number if section.table else 0) == (section.table, section.number)
        if here and (header if not key else re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*[=.]", content)):
            return line
        if header and header[1] == f"{section.table}.{key}" and here:
            return line
    return None
