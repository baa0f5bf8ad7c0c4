"""Recipes: a list of passes as text or TOML, and the presets.

Text: ``prune(sparsity=0.6, exclude='fc.*'),quant``. TOML: one ``[[pass]]`` table a pass, its ``name`` and
options. A recipe is a value; ``Recipe.parse(str(recipe)) == recipe`` and ``Recipe.from_toml(recipe.to_toml())
== recipe``.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from onnxcompress.base import Effect, Number, Pass, spell
from onnxcompress.errors import UsageError, unknown
from onnxcompress.registry import find_pass

_TOKEN = re.compile(
    r"""\s*(?: (?P<number> [+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)? (?![\w.]) )
           | (?P<word> [A-Za-z_][\w-]* )
           | (?P<text> '(?:[^'\\]|\\.)*' | "(?:[^"\\]|\\.)*" )
           | (?P<sign> [(),=|] ) )""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Recipe:
    """Passes in the order they run."""

    passes: tuple[Pass, ...]

    def __str__(self) -> str:
        """Return the text form."""
        return ",".join(map(str, self.passes))

    @property
    def effect(self) -> Effect:
        """EXACT where every pass is."""
        return Effect.LOSSY if any(each.effect is Effect.LOSSY for each in self.passes) else Effect.EXACT

    @staticmethod
    def parse(text: str) -> Recipe:
        """Return the recipe that `text` spells; UsageError where it can't be read."""
        steps = list(_Parser(text).steps())
        for each in steps:
            if len(each) > 1:
                listed = "|".join(map(str, each))
                raise UsageError(f"recipe: a choice of {listed}, expected one, or a bound to choose by")
        return Recipe(tuple(each for (each,) in steps))

    def to_toml(self) -> str:
        """Return the recipe as TOML, every option that differs from its default spelt out."""
        return "\n".join(
            "\n".join(
                ["[[pass]]", f'name = "{each.name}"', *(f"{k} = {_toml(v)}" for k, v in _changed(each))]
            )
            + "\n"
            for each in self.passes
        )

    @staticmethod
    def from_toml(text: str) -> Recipe:
        """Return the recipe that the TOML document `text` holds; UsageError where it holds none."""
        try:
            document = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise UsageError(f"recipe: not TOML: {error}") from error
        tables = document.get("pass")
        if set(document) != {"pass"} or not isinstance(tables, list):
            raise UsageError("recipe: expected [[pass]] tables and nothing else")
        if not all(isinstance(table, dict) and isinstance(table.get("name"), str) for table in tables):
            raise UsageError("recipe: a [[pass]] table has no name, expected name = '...'")
        return Recipe(tuple(make(table.pop("name"), table) for table in tables))

    @staticmethod
    def read(path: Path) -> Recipe:
        """Return the recipe in the TOML file `path`."""
        try:
            return Recipe.from_toml(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UsageError(f"{path}: not a text file, expected a TOML recipe") from error


@dataclass(frozen=True)
class Mix:
    """A recipe one of whose steps is a choice between passes, to be made for each layer.

    Text: ``simplify,quant|cluster(bits=4),encode``.
    """

    before: Recipe
    schemes: tuple[Pass, ...]
    after: Recipe

    def __str__(self) -> str:
        """Return the text form."""
        return ",".join(filter(None, (str(self.before), "|".join(map(str, self.schemes)), str(self.after))))

    @staticmethod
    def parse(text: str) -> Mix:
        """Return what `text` spells; UsageError where it can't be read or doesn't hold exactly one choice."""
        steps = list(_Parser(text).steps())
        places = [place for place, each in enumerate(steps) if len(each) > 1]
        if len(places) != 1:
            raise UsageError(f"recipe: {text!r} has {len(places)} choices between passes, expected one")
        (place,) = places
        before, after = (
            Recipe(tuple(each for (each,) in part)) for part in (steps[:place], steps[place + 1 :])
        )
        return Mix(before, check_schemes(steps[place]), after)


def parse(text: str) -> Recipe | Mix:
    """Return the recipe that `text` spells, with or without a choice between passes."""
    return Mix.parse(text) if any(len(each) > 1 for each in _Parser(text).steps()) else Recipe.parse(text)


def parse_schemes(text: str) -> tuple[Pass, ...]:
    """Return the passes of a choice such as ``quant|cluster(bits=4)``; a single one is a choice, too."""
    steps = list(_Parser(text).steps())
    if len(steps) != 1:
        raise UsageError(f"schemes: {text!r} has several steps, expected passes with | between them")
    return check_schemes(steps[0])


def check_schemes(passes: Sequence[Pass]) -> tuple[Pass, ...]:
    """Return `passes`, each applicable to one layer alone; UsageError where one isn't, or is there twice."""
    for each in passes:
        if each.effect is not Effect.LOSSY or not any(own.name == "exclude" for own in each.options()):
            raise UsageError(f"{each.name}: can't be applied to one layer alone, expected a lossy pass")
    if len(set(passes)) < len(passes):
        raise UsageError(f"schemes: {'|'.join(map(str, passes))} names a pass twice")
    return tuple(passes)


def make(name: str, options: dict[str, Any]) -> Pass:
    """Return the pass `name` with `options`; UsageError naming what is wrong and what was likely meant."""
    found = find_pass(name)
    known = [each.name for each in found.options()]
    for key in options:
        if key not in known:
            raise UsageError(f"{name}: {unknown('option', key, known)}")
    return found(**options)


def as_recipe(passes: str | Recipe | Pass | Sequence[Pass | str]) -> Recipe:
    """Return the recipe that `passes` stands for: text, a recipe, a pass, a sequence of passes and texts."""
    if isinstance(passes, Recipe):
        return passes
    if isinstance(passes, str):
        return Recipe.parse(passes)
    if isinstance(passes, Pass):
        return Recipe((passes,))
    if not isinstance(passes, Iterable):
        raise UsageError(f"recipe: {passes!r} is no pass, expected recipe text or passes such as Prune()")
    parts = []
    for each in passes:
        if not isinstance(each, str | Pass):
            raise UsageError(f"recipe: {each!r} is no pass, expected recipe text or a pass such as Prune()")
        parts.append(as_recipe(each) if isinstance(each, str) else Recipe((each,)))
    return Recipe(tuple(each for part in parts for each in part.passes))


PRESETS = {
    "lossless": "simplify,fuse,encode",  # smaller, and computes the same
    "fast": "simplify,fuse,quant",
    "small": "simplify,fuse,cluster(bits=6, initialise=entropy, price=1.5),encode(load_memory=3.0)",
    "tiny": "simplify,fuse,cluster(initialise=entropy, price=1.5),encode(block=128)",
}


def preset(name: str) -> Recipe:
    """Return the preset called `name`; UsageError with the nearest names where there is none."""
    if name not in PRESETS:
        raise UsageError(unknown("preset", name, PRESETS))
    return Recipe.parse(PRESETS[name])


def _changed(pass_: Pass) -> Iterator[tuple[str, Number]]:
    for each in pass_.options():
        value = getattr(pass_, each.name)
        if value != each.default:
            yield each.name, value


def _toml(value: Number) -> str:
    if isinstance(value, str):
        text = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + "".join(c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}" for c in text) + '"'
    return spell(value)


class _Parser:
    """Reads ``name(option=value, ...), name, ...``."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.kind = self.token = ""
        self.advance()

    def advance(self) -> None:
        """Step to the next token; kind "" at the end."""
        found = _TOKEN.match(self.text, self.at)
        if found is not None:
            self.at = found.end()
            self.kind = str(found.lastgroup)
            self.token = found.group(self.kind)
            return
        rest = self.text[self.at :].strip()
        self.kind, self.token = "", repr(rest[:20]) if rest else "the end"
        if rest:
            self.fail("a pass, an option or a value (in quotes where it is no word or number)")

    def fail(self, expected: str) -> NoReturn:
        """Raise UsageError at the current token."""
        raise UsageError(f"recipe: unexpected {self.token} in {self.text!r}, expected {expected}")

    def take(self, sign: str) -> bool:
        """Step over `sign` if it comes next."""
        if self.kind == "sign" and self.token == sign:
            self.advance()
            return True
        return False

    def word(self, expected: str) -> str:
        """Step over a word and return it."""
        word = self.token
        if self.kind != "word":
            self.fail(expected)
        self.advance()
        return word

    def steps(self) -> Iterator[list[Pass]]:
        """Yield the steps of the whole text: the passes between which there is a choice."""
        step = [self.call()]
        while self.kind:
            if self.take("|"):
                step.append(self.call())
            elif self.take(","):
                yield step
                step = [self.call()]
            else:
                self.fail(", between passes")
        yield step

    def call(self) -> Pass:
        """Step over a pass with its options and return it."""
        name, options = self.word("the name of a pass"), {}
        if self.take("("):
            while not self.take(")"):
                key = self.word("an option")
                if not self.take("="):
                    self.fail(f"= after {key}")
                if key in options:
                    raise UsageError(f"{name}: option {key} is given twice")
                options[key] = self.value()
                if not self.take(",") and self.token != ")":
                    self.fail(", or )")
        return make(name, options)

    def value(self) -> Number:
        """Step over a value and return it."""
        kind, token = self.kind, self.token
        if kind not in ("number", "word", "text"):
            self.fail("a value")
        self.advance()
        if kind == "number":
            return int(token) if re.fullmatch(r"[+-]?\d+", token) else float(token)
        if kind == "text":
            return re.sub(r"\\(.)", r"\1", token[1:-1], flags=re.DOTALL)
        return {"true": True, "false": False}.get(token, token)
