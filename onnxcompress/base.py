"""What a pass is: options, what it needs, what it did.

A pass is a value: a frozen dataclass whose fields are its options and whose ``call(model, context)`` rewrites
the model and returns a :class:`Result`. Command-line help, recipe text, the documentation page and the record
in the output model are all read from the class.
"""

from __future__ import annotations

import dataclasses
import enum
import re
import typing
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from onnxcompress.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from onnxcompress.data import Data

Number = float | int | str


class Effect(enum.Enum):
    """Whether a pass may change what the model computes."""

    EXACT = "exact"  # outputs agree within a stated tolerance
    LOSSY = "lossy"  # the loss is measured and reported


class Need(enum.Enum):
    """What a pass can ask of its context; the value is the context's field."""

    CALIBRATION = "calibration"
    TARGET = "target"
    METRIC = "metric"
    RUNTIME = "runtime"
    SEED = "seed"


class Runnable(Protocol):
    """A model made ready to run."""

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the model's outputs by name for one feed of its inputs by name."""
        ...


class Runtime(Protocol):
    """An engine that runs models."""

    name: ClassVar[str]

    @classmethod
    def make(cls, *, threads: int = 0, frugal: bool = False) -> Self:
        """Return the runtime with `threads` threads (0: as it likes); a `frugal` one saves anonymous memory.

        An engine that can't be told so does as it always does.
        """
        ...

    def patient(self) -> Self:
        """Return this runtime for many runs with other work in between: idle threads sleep where they can."""
        ...

    def prepare(self, model: ir.Model | Path, outputs: Sequence[str] | None = None) -> Runnable:
        """Return `model`, or the model in the file `model`, ready to run.

        `outputs` names the values to return instead of the model's own outputs: any values of its main graph.
        A `model` in memory must not be changed as long as the runnable is used.
        Raises CompressError where the engine can't take the model.
        """
        ...


def silent(done: int, total: int | None, what: str) -> None:
    """Report no progress."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a run has besides the model.

    `calibration` is data without labels, `target` the name of the machine to compile for (None: this one),
    `metric` the name of the figure the user watches, `runtime` the engine passes may run the model with,
    `seed` the source of all randomness, `threads` how many threads an engine may use (0: as it likes),
    `exclude` the layers no pass may touch, as regular expressions that must match the whole name.
    `progress(done, total, what)` is told how far a long step has come.
    """

    calibration: Data | None = None
    target: str | None = None
    metric: str | None = None
    runtime: Runtime | None = None
    seed: int = 0
    threads: int = 0
    exclude: tuple[str, ...] = ()
    progress: Callable[[int, int | None, str], None] = silent

    def __post_init__(self) -> None:
        for each in self.exclude:
            check_pattern(each, "exclude")

    def excludes(self, name: str, *more: str) -> bool:
        """Return whether `name` matches a pattern of `exclude` or of `more`; empty patterns match nothing."""
        return any(pattern and re.fullmatch(pattern, name) for pattern in (*self.exclude, *more))


class Named(Protocol):
    """Anything a record can be about."""

    @property
    def name(self) -> str | None:
        """What it is called."""


@dataclass
class Record:
    """What a pass did to one layer, or why it left it; `numbers` may be filled in when values are read."""

    layer: str
    changed: bool
    what: str
    numbers: dict[str, Number] = field(default_factory=dict)


@dataclass(frozen=True)
class Width:
    """How long a model takes that keeps `channels` of those its layers make: the ratio to the whole one's.

    `low` and `high` are the ratio's 95 % interval; `chosen` is what became of the model.
    """

    channels: int
    ratio: float
    low: float
    high: float
    chosen: bool = False


class Result:
    """The rewritten model and a record of every layer looked at.

    A pass calls :meth:`changed` or :meth:`left` for each layer; counts and `modified` are derived from the
    records. `numbers` are what the pass found out about the model as a whole, `widths` what it timed with
    fewer channels, the whole model first. `replay` is the pass that does the same on any machine, set by one
    that decided by measuring.
    """

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.replay: Pass | None = None
        self.records: list[Record] = []
        self.numbers: dict[str, Number] = {}
        self.widths: list[Width] = []

    def changed(self, layer: Named | str, what: str, **numbers: Number) -> Record:
        """Record that `layer` was changed; `what` is a past participle such as "pruned"."""
        return self._record(layer, True, what, numbers)

    def left(self, layer: Named | str, reason: str, **numbers: Number) -> Record:
        """Record that `layer` was left as it is, and why."""
        return self._record(layer, False, reason, numbers)

    def left_all(self, layers: Iterable[Named], reason: str, **numbers: Number) -> None:
        """Record that each of `layers` was left as it is, and why."""
        for layer in layers:
            self.left(layer, reason, **numbers)

    def _record(self, layer: Named | str, changed: bool, what: str, numbers: dict[str, Number]) -> Record:
        name = layer if isinstance(layer, str) else layer.name or ""
        self.records.append(Record(name, changed, what, numbers))
        return self.records[-1]

    @property
    def modified(self) -> bool:
        """Whether anything was changed."""
        return any(record.changed for record in self.records)

    def counts(self, changed: bool) -> dict[str, int]:
        """Return how many layers were changed (or left), by what was done (or the reason)."""
        return tally(self.records, changed)


def tally(records: Iterable[Record], changed: bool) -> dict[str, int]:
    """Return how many layers were changed (or left) by `records`, by what was done (or the reason)."""
    return dict(Counter(record.what for record in records if record.changed == changed))


def option(
    default: Any,
    help: str,
    *,
    within: tuple[float, float] | None = None,
    choices: tuple[Number, ...] | None = None,
    pattern: bool = False,
) -> Any:
    """Declare an option of a pass: its default and one line of help.

    `within` are its bounds, both allowed; `choices` the only words it takes; `pattern` says that it is a
    regular expression.
    """
    return field(
        default=default, metadata={"help": help, "within": within, "choices": choices, "pattern": pattern}
    )


@dataclass(frozen=True)
class Option:
    """An option of a pass, as help and recipes see it; `kind` is bool, int, float or str."""

    name: str
    kind: type
    default: Number
    help: str
    within: tuple[float, float] | None
    choices: tuple[Number, ...] | None
    pattern: bool

    def check(self, value: object, owner: str) -> Number:
        """Return `value` as this option's kind; UsageError naming the pass `owner` where it does not fit."""
        listed = "one of " + ", ".join(map(str, self.choices or ()))
        wanted = listed if self.choices else self.kind.__name__
        fits = isinstance(value, self.kind) and (self.kind is bool or not isinstance(value, bool))
        if self.kind is float and isinstance(value, int) and not isinstance(value, bool):
            value, fits = float(value), True
        if fits and self.choices:
            fits = value in self.choices
        if fits and self.within:
            low, high = self.within
            wanted = f"{low:g} to {high:g}"
            fits = low <= typing.cast(float, value) <= high  # false for NaN too
        if not fits:
            raise UsageError(f"{owner}: option {self.name} is {value!r}, expected {wanted}")
        if self.pattern:
            check_pattern(typing.cast(str, value), f"{owner}: option {self.name}")
        return typing.cast(Number, value)


@dataclass(frozen=True, kw_only=True)
class Pass:
    """A rewrite of a model.

    Subclasses are frozen, keyword-only dataclasses; each field is declared with :func:`option`. Options are
    checked when a pass is made: UsageError for a wrong kind, bound or choice.
    """

    name: ClassVar[str]
    effect: ClassVar[Effect]
    needs: ClassVar[frozenset[Need]] = frozenset()  # can't run without
    uses: ClassVar[frozenset[Need]] = frozenset()  # does better with

    def __post_init__(self) -> None:
        for each in self.options():
            object.__setattr__(self, each.name, each.check(getattr(self, each.name), self.name))

    def call(self, model: ir.Model, context: Context) -> Result:
        """Rewrite `model` in place and say what was done to each layer."""
        raise NotImplementedError

    @classmethod
    def options(cls) -> Iterator[Option]:
        """Yield the options of this pass in the order of their declaration."""
        kinds = typing.get_type_hints(cls)
        plain = {"help": "", "within": None, "choices": None, "pattern": False}
        for each in dataclasses.fields(cls):
            yield Option(
                each.name, kinds[each.name], typing.cast(Number, each.default), **{**plain, **each.metadata}
            )

    def require(self, context: Context) -> None:
        """Raise UsageError where `context` lacks something this pass can't run without."""
        for need in sorted(self.needs, key=lambda need: need.value):
            if getattr(context, need.value) is None:
                raise UsageError(f"{self.name}: needs {need.value}, none was given")

    def bind(self, context: Context) -> ir.passes.InPlacePass:
        """Return this pass as an ``onnx_ir`` pass, to go into other tools' pipelines."""
        from onnxcompress.bound import Bound

        return Bound(self, context)

    def __str__(self) -> str:
        """Return the recipe text of this pass: its name and the options that differ from their defaults."""
        changed = [
            f"{each.name}={spell(value)}"
            for each in self.options()
            if (value := getattr(self, each.name)) != each.default
        ]
        return f"{self.name}({', '.join(changed)})" if changed else self.name


def check_pattern(text: str, owner: str) -> None:
    """Raise UsageError where `text` is no regular expression."""
    try:
        re.compile(text)
    except re.error as error:
        raise UsageError(f"{owner}: {text!r} is no regular expression: {error}") from error


def spell(value: Number) -> str:
    """Return `value` as recipe text: true, 3, 0.5, word, or 'any text' with backslash escapes."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if (isinstance(value, str) and not re.fullmatch(r"[A-Za-z_][\w-]*", value)) or value in ("true", "false"):
        return "'" + str(value).replace("\\", "\\\\").replace("'", "\\'") + "'"
    return str(value)
