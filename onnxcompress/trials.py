"""Sensitivity: what a model loses when one layer alone is compressed, and what that saves."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

import onnxcompress
from onnxcompress.base import Context, Pass, Record, Runnable, silent
from onnxcompress.data import Data, load_data, random_data
from onnxcompress.edit import tidy
from onnxcompress.errors import BoundError, CompressError, UsageError
from onnxcompress.layers import by_weight
from onnxcompress.model import clone, load, materialise, to_proto, weight_bytes, write_text
from onnxcompress.parts import Stopwatch, cut, faster
from onnxcompress.recipe import Recipe, check_schemes, parse_schemes
from onnxcompress.registry import find_runtime
from onnxcompress.typed import plain, read
from onnxcompress.verify import Comparison, compare

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx

SCHEMA = 1
KEPT = 1 << 28  # bytes of a model's outputs that are kept; those of further samples are computed again
BATCH = 32  # samples run at once where the model allows it


@dataclass(frozen=True)
class Unit:
    """Layers that can only be compressed together, since they share weights."""

    layers: tuple[str, ...]
    weights: tuple[str, ...]


def units(model: ir.Model, context: Context) -> list[Unit]:
    """Return the layers of `model` that passes may change, in the order of the model."""
    found: list[Unit] = []
    for readers, reason in by_weight(model, context):
        if reason is None:
            names = dict.fromkeys(layer.name for layer in readers)
            same = [each for each in found if not names.keys().isdisjoint(each.layers)]
            names |= dict.fromkeys(name for each in same for name in each.layers)
            held = [readers[0].weight.name or "", *(name for each in same for name in each.weights)]
            found = [each for each in found if each not in same] + [Unit(tuple(names), tuple(held))]
    return found


def only(scheme: Pass, names: Sequence[str], model: ir.Model) -> Pass:
    """Return `scheme` so that of the layers of `model` it changes those called `names` at most."""
    every = dict.fromkeys(layer.name for readers, _ in by_weight(model, Context()) for layer in readers)
    others = "|".join(re.escape(name) for name in every if name not in names)
    own = str(scheme.exclude)  # type: ignore[attr-defined]  # checked when schemes are read
    return replace(scheme, exclude="|".join(filter(None, (own, others))))  # type: ignore[call-arg]


def applied(passes: Sequence[Pass], model: ir.Model, context: Context) -> tuple[ir.Model, list[Record]]:
    """Return a copy of `model` rewritten by `passes`, and what the passes recorded.

    A pass with a speed gate goes without it, as trials are many: the gate judges what is chosen in the end.
    """
    model, records = clone(model), []
    for each in passes:
        if any(option.name == "gate" for option in fields(each)):
            each = replace(each, gate="off")  # type: ignore[call-arg]
        each.require(context)
        result = each.call(model, context)
        model = result.model
        records += result.records
        tidy(model)
        materialise(model)
    return model, records


@dataclass(frozen=True)
class Row:
    """What one scheme does to one layer alone; `tied` are the layers that share its weight.

    `saved` are bytes in the file, next to the layer as it is; each is stored the smallest exact way.
    `comparison` is with the model as it is, None where the scheme leaves the layer alone or ruins the model;
    `what` says what was done, or why not. `gained` are the seconds that the layer takes less, run without
    its neighbours, where layers are timed; 0 where it isn't surely faster.
    """

    layer: str
    tied: tuple[str, ...]
    scheme: str
    what: str
    saved: int
    comparison: Comparison | None
    gained: float | None = None


@dataclass(frozen=True)
class Mixed:
    """How a choice was made: what each layer loses alone, and the steps taken of all."""

    rows: tuple[Row, ...]
    schemes: dict[str, str]  # of each layer that is changed
    steps: int
    taken: int


class Recorded:
    """A model ready to run whose outputs for feeds that come in the same order each time are kept."""

    def __init__(self, runnable: Runnable) -> None:
        self.runnable = runnable
        self.outputs: list[dict[str, np.ndarray]] = []
        self.bytes = 0
        self.places: Iterator[int] = count()

    def restart(self) -> Recorded:
        """Begin with the first feed again."""
        self.places = count()
        return self

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs for the next feed, which `feeds` is."""
        place = next(self.places)
        if place < len(self.outputs):
            return self.outputs[place]
        made = self.runnable.run(feeds)
        if place == len(self.outputs) and self.bytes < KEPT:
            self.outputs.append(made)
            self.bytes += sum(each.nbytes for each in made.values())
        return made


@dataclass
class Trials:
    """Compresses single layers of `model` and looks at its outputs for `data`.

    `storing` are the passes that come last, such as ``encode``: they are for the bytes only. With a `watch`
    layers are timed, too.
    """

    model: ir.Model
    context: Context
    data: Data
    storing: Recipe = field(default_factory=lambda: Recipe.parse("encode"))
    watch: Stopwatch | None = None

    @cached_property
    def units(self) -> list[Unit]:
        """The layers that can be compressed."""
        return units(self.model, self.context)

    @cached_property
    def first(self) -> Recorded:
        """The model as it is."""
        assert self.context.runtime is not None
        return Recorded(self.context.runtime.prepare(clone(self.model)))

    def rows(self, schemes: Sequence[Pass], known: Mapping[tuple[str, str], Row]) -> Iterator[Row]:
        """Yield what each scheme does to each layer; `known` rows (by both) as they are."""
        total = len(self.units) * len(schemes)
        for number, unit in enumerate(self.units):
            before: int | None = None
            for place, scheme in enumerate(schemes):
                self.context.progress(number * len(schemes) + place, total, f"{unit.layers[0]}: {scheme}")
                key = unit.layers[0], str(scheme)
                if key in known:
                    yield known[key]
                    continue
                if before is None:
                    before = self.stored(self.model, unit)
                yield self.row(unit, scheme, before)

    def row(self, unit: Unit, scheme: Pass, before: int) -> Row:
        """Return what `scheme` does to `unit`, which makes the model take `before` bytes as it is."""
        name, *tied = unit.layers
        model, records = applied([only(scheme, unit.layers, self.model)], self.model, self.context)
        told = [each for each in records if each.layer in unit.layers]
        told = [each for each in told if each.changed] or told
        what = told[-1].what if told else "left alone"
        saved, found, gained = 0, None, None
        if any(each.changed for each in records):
            assert self.context.runtime is not None
            try:
                found = compare(
                    self.first.restart(),
                    self.context.runtime.prepare(clone(model)),
                    self.data,
                    labels=self.data.labels,
                    random=self.data.random,
                )
            except BoundError as error:
                what = f"{what}, and {error}"
            saved = before - self.stored(model, unit)
            gained = self.gained(scheme, unit) if self.watch else None
        return Row(name, tuple(tied), str(scheme), what, saved, found, gained)

    def gained(self, scheme: Pass, unit: Unit) -> float:
        """Return the seconds that `scheme` takes off the layers of `unit`, each alone on random inputs."""
        assert self.watch is not None
        total = 0.0
        for node in self.timed.graph:
            if node.name in unit.layers:
                try:
                    part = cut(self.timed, [node])
                    context = replace(self.context, calibration=random_data(part, count=1))
                    latency = self.watch.times([part, applied([scheme], part, context)[0]])[1]
                except CompressError:  # it can't be timed, so nothing is known to be gained
                    continue
                total += latency.seconds / latency.ratio - latency.seconds if faster(latency) else 0.0
        return total

    @cached_property
    def timed(self) -> ir.Model:
        """The model with the shapes that parts of it need to run alone."""
        model = clone(self.model)
        ShapeInferencePass()(model)
        return model

    def stored(self, model: ir.Model, unit: Unit) -> int:
        """Return the bytes of the weights of `model` with those of `unit` alone stored the smallest way."""
        others = [each for each in self.units if each is not unit]
        names = [re.escape(name) for each in others for name in (*each.layers, *each.weights)]
        context = replace(self.context, exclude=(*self.context.exclude, *names))
        return weight_bytes(applied(self.storing.passes, model, context)[0])


@dataclass(frozen=True)
class Sensitivity:
    """What each layer loses by each scheme; `content` tells the model, the data and the seed apart."""

    version: str
    content: str
    bytes: int
    rows: tuple[Row, ...]

    def as_json(self) -> str:
        """Return the figures as a JSON document, ready to be plotted; those that are infinite are null."""
        return json.dumps({"schema": SCHEMA, **plain(asdict(self))}, indent=2)


def read_sensitivity(document: Mapping[str, Any], where: str) -> Sensitivity:
    """Return what :meth:`Sensitivity.as_json` made a document of; UsageError, which begins with `where`."""
    if document.get("schema") != SCHEMA:
        raise UsageError(f"{where}: has the schema {document.get('schema')!r}, expected {SCHEMA}")
    body = {name: value for name, value in document.items() if name != "schema"}
    found: Sensitivity = read(Sensitivity, body, where)
    restore_signs(row.comparison for row in found.rows)
    return found


def restore_signs(comparisons: Iterable[Comparison | None]) -> None:
    """Put back the signs of infinite ratios of `comparisons`, which JSON has none of."""
    for each in comparisons:
        if each is not None and each.snr == math.inf and each.largest_difference:
            object.__setattr__(each, "snr", -math.inf)


def read_rows(path: Path, content: str) -> dict[tuple[str, str], Row]:
    """Return the rows of the file `path` by layer and scheme, none where it is of other content."""
    if not path.exists():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        head = (document["schema"], document["version"], document["content"])
        if head != (SCHEMA, onnxcompress.__version__, content):
            return {}
        rows = read_sensitivity(document, str(path)).rows
    except (OSError, ValueError, KeyError, TypeError, UsageError) as error:
        raise UsageError(f"{path}: is there and no report of sensitivity, expected another file") from error
    return {(row.layer, row.scheme): row for row in rows}


def sensitivity(
    model: str | Path | onnx.ModelProto | ir.Model,
    schemes: str | Sequence[Pass],
    *,
    data: Any = None,
    evaluation: Any = None,
    preprocess: str | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    runtime: str = "onnxruntime",
    exclude: str | Sequence[str] = (),
    seed: int = 0,
    threads: int = 0,
    report_file: str | Path | None = None,
    progress: Callable[[int, int | None, str], None] = silent,
) -> Sensitivity:
    """Return what `model` loses when each of `schemes` is applied to each of its layers alone.

    `schemes` are lossy passes, or text such as ``quant|cluster(bits=4)``. `data` are calibration inputs,
    `evaluation` what the loss is measured on, with or without labels; without it that is `data`, without any
    it is random inputs. For every layer and scheme the whole model is run once. `report_file`, JSON, is
    written at the end; rows that it holds already, of the same model, data, schemes and seed, are taken from
    it. Raises as :func:`onnxcompress.compress` does.
    """
    chosen = parse_schemes(schemes) if isinstance(schemes, str) else check_schemes(schemes)
    current = load(model)
    given = shapes or {}
    calibration = None if data is None else load_data(data, current, preprocess=preprocess, shapes=given)
    judged = evaluation if evaluation is not None else data
    samples = (
        random_data(current, shapes=given, seed=seed)
        if judged is None
        else load_data(judged, current, preprocess=preprocess, shapes=given, batch=BATCH)
    )
    context = Context(
        calibration=calibration,
        runtime=find_runtime(runtime).make(threads=threads),
        seed=seed,
        threads=threads,
        exclude=(exclude,) if isinstance(exclude, str) else tuple(exclude),
        progress=progress,
    )
    content = fingerprint(current, [each for each in (calibration, samples) if each], f"{runtime} {seed}")
    known = {} if report_file is None else read_rows(Path(report_file), content)
    rows = tuple(Trials(current, context, samples).rows(chosen, known))
    found = Sensitivity(onnxcompress.__version__, content, weight_bytes(current), rows)
    if report_file is not None:
        write_text(report_file, found.as_json() + "\n")
    return found


def fingerprint(model: ir.Model, data: Sequence[Data], more: str) -> str:
    """Return a hash of all that losses depend on besides the schemes; `more` is what isn't in the others."""
    digest = hashlib.sha256(to_proto(model).SerializeToString(deterministic=True))
    digest.update(more.encode())
    for each in data:
        for feeds in each:
            for name, array in feeds.items():
                digest.update(f"{name} {array.dtype} {array.shape}".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(b"" if each.labels is None else each.labels.tobytes())
    return digest.hexdigest()
