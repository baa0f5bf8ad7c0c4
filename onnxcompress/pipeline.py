"""Run a recipe on a model: each pass, its check, the record of it, and the file at the end."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

import onnxcompress
from onnxcompress.base import Context, Effect, Need, Pass, silent
from onnxcompress.check import Check, difference
from onnxcompress.data import Data, load_data, random_data, split_slice
from onnxcompress.details import details, noises, origin
from onnxcompress.drop import Limit, Metric, metric_name
from onnxcompress.edit import tidy
from onnxcompress.errors import BoundError, CompressError, UsageError
from onnxcompress.formats.inlining import inline as write_in_line
from onnxcompress.formats.unpack import unpack as decode
from onnxcompress.layers import layers
from onnxcompress.measure import latencies
from onnxcompress.mixing import Search
from onnxcompress.model import (
    clone,
    external_files,
    load,
    materialise,
    nonzeros,
    notes,
    opset,
    save,
    signature,
    tensors,
    to_proto,
    weight_bytes,
    write_text,
)
from onnxcompress.page import page, page_template
from onnxcompress.recipe import Mix, Recipe, as_recipe, parse
from onnxcompress.registry import find_runtime
from onnxcompress.report import Report, Size, Step, spread
from onnxcompress.target import Target, find_target
from onnxcompress.verify import (
    Tolerance,
    check_metric,
    check_valid,
    compare,
)

if TYPE_CHECKING:
    import onnx

log = logging.getLogger("onnxcompress")

VERIFY = ("each", "end", "off")
LARGE = 500_000_000  # bytes of weights; above, weights stay on disk and outputs are compared once, at the end
CHECK_SAMPLES = 32  # of the calibration data, for the comparison after each pass
MOST_THREADS = 1024  # an engine asked for many more may never start
RANDOM_WARNING = (
    "no data was given: outputs were compared on random inputs, which tell nothing about accuracy"
)


@dataclass(frozen=True)
class Compressed:
    """A compressed model and the report of how it came about."""

    model: ir.Model
    report: Report

    def save(self, path: str | Path, *, external_data: bool = False, jobs: int = 0) -> None:
        """Write the model to `path`; see :func:`onnxcompress.model.save`."""
        save(self.model, path, external_data=external_data, jobs=jobs)


def compress(
    model: str | Path | onnx.ModelProto | ir.Model,
    passes: str | Recipe | Mix | Pass | Sequence[Pass | str],
    *,
    output: str | Path | None = None,
    report_file: str | Path | None = None,
    html_file: str | Path | None = None,
    data: Any = None,
    evaluation: Any = None,
    metric: Metric | None = None,
    max_drop: float | None = None,
    confidence: float | None = None,
    max_size: float | None = None,
    max_latency: float | None = None,
    preprocess: str | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    runtime: str = "onnxruntime",
    target: str | None = None,
    verify: str | None = None,
    tolerance: Tolerance = Tolerance(),  # noqa: B008  frozen
    exclude: str | Sequence[str] = (),
    seed: int = 0,
    threads: int = 0,
    jobs: int = 0,
    external_data: bool = False,
    inline: bool = False,
    measure_latency: bool = True,
    command: str | None = None,
    progress: Callable[[int, int | None, str], None] = silent,
) -> Compressed:
    """Return `model` rewritten by `passes`, every rewrite verified; what is passed in is not changed.

    `data` are calibration inputs and `evaluation` inputs with labels, in any form
    :func:`onnxcompress.data.load_data` takes; `shapes` gives inputs the shapes that the model leaves open.
    `metric` is what is watched on the evaluation data: one of METRICS, or a function of a model that is ready
    to run, the larger the better. `max_drop` is how many points of it may be lost
    (:class:`onnxcompress.drop.Drop`), with `confidence` also on other data alike; `max_size` is the most the
    file may take and `max_latency` the most a run may, as shares of what they did (a ratio is too much where
    its whole 95 % interval is). Text with a choice, such as ``simplify,quant|cluster,encode``,
    is made a plain recipe by these bounds: for each layer one of the passes, or none.
    `target` names the machine to compile for (:mod:`onnxcompress.target`; None: this one).
    `verify` is "each" (outputs compared after every pass; the default up to 500 MB of weights), "end" or
    "off". `exclude` are regular expressions of layers no pass may touch. `inline` writes the bodies of all
    functions in place of their calls, for engines that have no functions. `jobs` weights are computed at a
    time, one for each core if 0. `output` is written once all checks are passed, `report_file`, JSON, and
    `html_file`, a page for people, after it; `command` is what they say the run can be repeated with.

    Raises UsageError for a wrong request, BoundError where a check fails, CompressError for a model that
    can't be handled; nothing is written then.
    """
    wanted = (
        passes if isinstance(passes, Mix) else parse(passes) if isinstance(passes, str) else as_recipe(passes)
    )
    if html_file is not None:
        page_template()  # what is missing for the page is told now
    limit = None if max_drop is None else Limit(metric or "top1", max_drop, confidence)
    _check_request(wanted, verify, metric, evaluation, seed, threads)
    _check_bounds(wanted, limit, confidence, max_size, max_latency, evaluation)
    watched = metric if metric is None or isinstance(metric, str) else metric_name(metric)
    machine = find_target(target)
    current = load(model)
    source = Path(model) if isinstance(model, str | Path) else None
    apart = external_files(current, source) if source else {}
    told = report_file is not None or html_file is not None
    loaded = _bytes(current, told and output is not None)
    if encoded := decode(current):
        notes(current).append(
            f"{len(encoded)} weights were encoded: they were unpacked before the first pass"
        )
    _check_targets([output, report_file, html_file], [source, *apart, *_paths(data, evaluation)])
    large = weight_bytes(current) > LARGE
    verify = verify or ("end" if large else "each")
    expected = signature(current)
    engine = find_runtime(runtime).make(threads=threads, frugal=large)
    calibration, judged, samples = _read_data(current, data, evaluation, preprocess, shapes or {}, seed)
    if (metric == "top1" or (limit and limit.metric == "top1")) and (judged is None or judged.labels is None):
        raise UsageError("top1: the evaluation data has no labels, expected an array or a labels.csv")
    context = Context(
        calibration=calibration,
        target=machine.name,
        metric=watched,
        runtime=engine,
        seed=seed,
        threads=threads,
        exclude=(exclude,) if isinstance(exclude, str) else tuple(exclude),
        progress=progress,
    )
    stored = source.stat().st_size + sum(apart.values()) if source else None
    mixed, most = None, max_size and max_size * (stored or to_proto(current).ByteSize())
    if isinstance(wanted, Mix):
        recipe, mixed = Search(wanted, current, context, samples, judged, limit, most, max_latency).run()
    else:
        recipe = wanted
    for each in recipe.passes:
        each.require(context)

    size = weight_bytes(current)
    report = Report(
        version=onnxcompress.__version__,
        recipe=str(recipe),
        verify=verify,
        source=str(source or ""),
        before=_size(current, stored if stored and output else size, jobs),
        notes=[*_unmatched(current, context), *_data_notes(verify, samples, calibration, judged)],
        metric=watched,
        mixed=mixed,
        target=machine.name,
    )
    given = clone(current) if told and not large else None
    ahead = report.before.bytes - loaded
    if told:
        report.decoded = ahead + _bytes(current, output is not None)
        report.origin = origin(command, seed, threads)
    compared = judged is not None or limit is not None or max_latency is not None or verify != "off"
    check = Check(engine, samples, tolerance, report, judged, compared, limit)
    check.start(source if large and source else clone(current))
    untouched: ir.Model | None = None  # what the first lossy pass was given
    done: list[Pass] = []  # what does the same again, wherever it runs
    for number, each in enumerate(recipe.passes):
        progress(number, len(recipe.passes), each.name)
        unchanged = clone(current) if verify == "each" else None
        if untouched is None and each.effect is Effect.LOSSY and not large:
            untouched = clone(current)
        with _naming(each):
            current, replay = _run(each, current, context, report)
            done.append(replay)
            tidy(current)
            if not large:
                materialise(current)
            check_valid(current, expected)
            if told:
                report.steps[-1].bytes = ahead + _bytes(current, output is not None)
            if unchanged is not None:
                check.step(each, unchanged, current)
    if inline:
        write_in_line(current)
        check_valid(current, expected)
    _stamp(current, Recipe(tuple(done)), verify, machine)
    report.notes += [note for note in notes(current) if note not in report.notes]
    if most and (taken := to_proto(current).ByteSize()) > most:
        raise BoundError(f"max-size: {taken:,} bytes, expected {most:,.0f} at most")

    def finish(path: Path | None) -> None:
        progress(len(recipe.passes), len(recipe.passes), "checking the whole")
        try:
            check.whole(recipe, path or current, verify)
        except BoundError:
            if verify == "end" and not large:  # find the pass and the node
                compress(
                    model,
                    Recipe(tuple(done)),
                    data=data,
                    shapes=shapes,
                    target=machine.name,
                    verify="each",
                    tolerance=tolerance,
                    seed=seed,
                )
            raise
        if untouched is not None:
            lossy = [each for each in done if each.effect is Effect.LOSSY]
            check.blame(lossy, untouched, current, context)
        check.bound()
        if ((measure_latency and not large) or max_latency is not None) and check.first and check.last:
            report.latency = latencies([check.first, check.last], next(iter(samples)))[1]
            if max_latency is not None and report.latency.low > max_latency:
                raise BoundError(f"max-latency: {spread(report.latency)}, expected {max_latency:g} at most")

    if output is None:
        finish(None)
        size = weight_bytes(current)
    else:
        size = save(
            current,
            output,
            external_data=external_data or bool(apart),
            jobs=jobs,
            check=finish,
            progress=progress,
        )
        report.output = str(output)
    report.after = _size(load(output) if large and output else current, size, jobs)
    if told:
        last = Path(output) if output is not None else None if large else current
        around = [] if given is None or verify == "off" else noises(given, current, engine, samples)
        report.details = details(source or given, last, (given, current) if given else None, around)
    if report_file is not None:
        write_text(report_file, report.as_json() + "\n")
    if html_file is not None:
        write_text(html_file, page([(str(output or source or "model"), report)]))
    return Compressed(current, report)


def unpack(source: str | Path, output: str | Path, *, external_data: bool = False) -> list[str]:
    """Write the plain dense model of the encoded one in the file `source`; return the weights' names.

    The file is written once onnxruntime computes the same from it. Raises as :func:`compress` does.
    """
    model = load(source)
    given, apart = clone(model), external_files(model, source)
    _check_targets([output], [Path(source), *apart])
    names = decode(model, sparse=True)
    engine = find_runtime("onnxruntime").make(frugal=weight_bytes(model) > LARGE)
    samples = random_data(model, count=1)

    def check(path: Path) -> None:
        found = compare(engine.prepare(given), engine.prepare(path), samples, tolerance=Tolerance(0, 0))
        if not found.exact:
            raise BoundError(f"{source}: outputs differ: {difference(found)}")

    save(model, output, external_data=external_data or bool(apart), check=check)
    return names


def _check_bounds(
    recipe: Recipe | Mix,
    limit: Limit | None,
    confidence: float | None,
    max_size: float | None,
    max_latency: float | None,
    evaluation: object,
) -> None:
    """Raise UsageError where bounds are missing, or what they are measured on is."""
    if limit is not None and isinstance(limit.metric, str) and evaluation is None:
        raise UsageError("max-drop: needs evaluation data, none was given")
    if confidence is not None and limit is None:
        raise UsageError("confidence: is about max-drop, which was not given")
    for name, share in (("max-size", max_size), ("max-latency", max_latency)):
        if share is not None and not 0 < share <= 1:
            raise UsageError(f"{name} is {share:g}, expected more than 0, 1 at most")
    if isinstance(recipe, Mix) and limit is None and max_size is None and max_latency is None:
        raise UsageError(
            f"{recipe}: has a choice to be made, expected max-drop, max-size or max-latency to choose by"
        )


def _check_request(
    recipe: Recipe | Mix,
    verify: str | None,
    metric: Metric | None,
    evaluation: object,
    seed: int,
    threads: int,
) -> None:
    """Raise UsageError for what can be told to be wrong before the model is read."""
    if verify is not None and verify not in VERIFY:
        raise UsageError(f"verify is {verify!r}, expected one of {', '.join(VERIFY)}")
    if isinstance(metric, str):
        check_metric(metric)
        if evaluation is None:
            raise UsageError(f"{metric}: needs evaluation data, none was given")
    if isinstance(recipe, Recipe) and not recipe.passes:
        raise UsageError("recipe: names no pass, expected at least one")
    if seed < 0:
        raise UsageError(f"seed is {seed}, expected 0 or more")
    if not 0 <= threads <= MOST_THREADS:
        raise UsageError(f"threads is {threads}, expected 0 to {MOST_THREADS}")


def _check_targets(written: Sequence[str | Path | None], read: Sequence[Path | None]) -> None:
    """Raise UsageError where a file can't be `written`, or is among those `read`."""
    targets = [Path(each) for each in written if each is not None]
    for path in targets:
        if path.is_dir():
            raise UsageError(f"{path}: is a folder, expected a file")
        if not path.parent.is_dir():
            raise UsageError(f"{path}: its folder does not exist")
    if len({path.absolute() for path in targets}) < len(targets):
        raise UsageError(f"{targets[0]}: is the report too, expected another file")
    beside = [path.with_name(f"{path.name}.data") for path in targets]
    for path in (*targets, *beside):
        if path.exists() and any(each and each.exists() and path.samefile(each) for each in read):
            raise UsageError(f"{path}: is read by this run too, expected another file")


def _paths(*sources: object) -> Iterator[Path]:
    """Yield the files among the sources of data."""
    for each in sources:
        if isinstance(each, str | Path):
            yield split_slice(str(each))[0]


def _read_data(
    model: ir.Model,
    data: object,
    evaluation: object,
    preprocess: str | None,
    shapes: Mapping[str, tuple[int, ...]],
    seed: int,
) -> tuple[Data | None, Data | None, Data]:
    """Return calibration data, evaluation data, and the samples outputs are compared on."""
    calibration = judged = None
    if data is not None:
        calibration = load_data(data, model, preprocess=preprocess, shapes=shapes)
    if evaluation is not None:
        judged = load_data(evaluation, model, preprocess=preprocess, shapes=shapes, batch=CHECK_SAMPLES)
    if calibration is not None:
        return calibration, judged, calibration.take(CHECK_SAMPLES)
    if judged is not None:
        samples = load_data(evaluation, model, preprocess=preprocess, shapes=shapes)
        return calibration, judged, samples.take(CHECK_SAMPLES)
    return calibration, judged, random_data(model, shapes=shapes, seed=seed)


def _data_notes(verify: str, *data: Data | None) -> Iterator[str]:
    """Yield what a user must know of the data that outputs are compared on."""
    if data[0] is not None and data[0].random and verify != "off":
        yield RANDOM_WARNING
    yield from dict.fromkeys(note for each in data if each is not None for note in each.notes)


def _unmatched(model: ir.Model, context: Context) -> Iterator[str]:
    """Yield a note for each pattern of layers to leave alone that matches none."""
    names = {name for layer in layers(model, Context()) for name in (layer.name, layer.weight.name or "")}
    for pattern in context.exclude:
        if not any(re.fullmatch(pattern, name) for name in names):
            yield f"exclude: {pattern!r} matches no layer"


def _run(each: Pass, model: ir.Model, context: Context, report: Report) -> tuple[ir.Model, Pass]:
    """Return what `each` makes of `model`, and the pass that makes the same of it again on any machine."""
    began, earlier = time.perf_counter(), opset(model)
    log.info("%s: starts", each)
    result = each.call(model, context)
    if opset(result.model) != earlier:
        report.notes.append(f"{each.name}: opset raised from {earlier} to {opset(result.model)}")
    seconds = time.perf_counter() - began
    log.info("%s: done in %.2f s, %s", each, seconds, result.counts(True) or "nothing changed")
    report.steps.append(Step(str(each), each.effect.value, seconds, result.records, numbers=result.numbers))
    return result.model, result.replay or each


@contextmanager
def _naming(each: Pass) -> Iterator[None]:
    """Put the name of the pass before the message of an error that doesn't start with it."""
    try:
        yield
    except CompressError as error:
        if str(error).startswith(f"{each.name}: "):
            raise
        raise type(error)(f"{each.name}: {error}") from error


def _stamp(model: ir.Model, recipe: Recipe, verify: str, target: Target) -> None:
    """Record in the model what was done to it; a model that was compressed before keeps that recipe too."""
    props = model.metadata_props
    earlier = props.get("onnxcompress.recipe")
    props["onnxcompress.recipe"] = f"{earlier},{recipe}" if earlier else str(recipe)
    props["onnxcompress.version"] = onnxcompress.__version__
    props["onnxcompress.verify"] = verify
    if any(Need.TARGET in each.needs | each.uses for each in recipe.passes):
        props["onnxcompress.target"] = target.name


def _bytes(model: ir.Model, whole: bool) -> int:
    """Return the bytes of the file that `model` would be, of its weights where not the `whole` or large."""
    weights = weight_bytes(model)
    return to_proto(model).ByteSize() if whole and weights <= LARGE else weights


def _size(model: ir.Model, size: int, jobs: int) -> Size:
    """Count the elements of all tensors and those that aren't zero; `size` is in bytes."""
    counted = [tensor for tensor in tensors(model) if tensor.dtype is not ir.DataType.STRING]
    parameters = sum(int(np.prod(tensor.shape.numpy(), dtype=np.int64)) for tensor in counted)
    with ThreadPoolExecutor(jobs or None) as pool:
        return Size(size, parameters, sum(pool.map(nonzeros, counted)))
