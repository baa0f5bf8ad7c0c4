"""Run a recipe on a model: each pass, its check, the record of it, and the file at the end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

import onnxcompress
from onnxcompress.base import Context, Effect, Need, Pass, silent
from onnxcompress.check import Check, difference
from onnxcompress.data import random_data
from onnxcompress.details import details, noises, origin
from onnxcompress.drop import Limit, Metric, metric_name
from onnxcompress.edit import tidy
from onnxcompress.errors import BoundError, CompressError, UsageError
from onnxcompress.formats.inlining import inline as write_in_line
from onnxcompress.formats.unpack import unpack as decode
from onnxcompress.measure import latencies
from onnxcompress.mixing import Search
from onnxcompress.model import (
    Signature,
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
from onnxcompress.request import (
    check_bounds,
    check_request,
    check_targets,
    data_notes,
    files,
    read_data,
    unmatched,
)
from onnxcompress.target import Target, find_target
from onnxcompress.verify import (
    Tolerance,
    check_valid,
    compare,
)

if TYPE_CHECKING:
    import onnx

log = logging.getLogger("onnxcompress")

LARGE = 500_000_000  # bytes of weights; above, weights stay on disk and outputs are compared once, at the end


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
    check_request(wanted, verify, metric, evaluation, seed, threads)
    check_bounds(wanted, limit, confidence, max_size, max_latency, evaluation)
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
    check_targets([output, report_file, html_file], [source, *apart, *files(data, evaluation)])
    large = weight_bytes(current) > LARGE
    verify = verify or ("end" if large else "each")
    engine = find_runtime(runtime).make(threads=threads, frugal=large)
    calibration, judged, samples = read_data(current, data, evaluation, preprocess, shapes or {}, seed)
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
        notes=[*unmatched(current, context), *data_notes(verify, samples, calibration, judged)],
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
    run = _Run(current, context, check, verify, large, signature(current))
    for number, each in enumerate(recipe.passes):
        progress(number, len(recipe.passes), each.name)
        run.apply(each)
        if told:
            report.steps[-1].bytes = ahead + _bytes(run.current, output is not None)
    run.end(inline, machine)
    current = run.current
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
                    Recipe(tuple(run.done)),
                    data=data,
                    preprocess=preprocess,
                    shapes=shapes,
                    runtime=runtime,
                    target=machine.name,
                    verify="each",
                    tolerance=tolerance,
                    exclude=exclude,
                    seed=seed,
                    threads=threads,
                    measure_latency=False,
                )
            raise
        run.judge()
        if (measure_latency and not large) or max_latency is not None:
            run.time(max_latency)

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
        pair = (given, current) if given else None
        report.details = details(source or given, last, pair, around, machine.name, shapes or {})
    if report_file is not None:
        write_text(report_file, report.as_json() + "\n")
    if html_file is not None:
        write_text(html_file, page([(str(output or source or "model"), report)]))
    return Compressed(current, report)


@dataclass
class _Run:
    """The model on its way through a recipe: as it stands, and what was done to it.

    `expected` is the signature it must keep; a `large` model is never copied or held in memory.
    """

    current: ir.Model
    context: Context
    check: Check
    verify: str
    large: bool
    expected: Signature
    done: list[Pass] = field(default_factory=list)  # what does the same again, wherever it runs
    untouched: ir.Model | None = None  # what the first lossy pass was given

    def apply(self, each: Pass) -> None:
        """Run one pass, and check what it made."""
        given = clone(self.current) if self.verify == "each" else None
        if self.untouched is None and each.effect is Effect.LOSSY and not self.large:
            self.untouched = clone(self.current)
        with _naming(each):
            self._rewrite(each)
            tidy(self.current)
            if not self.large:
                materialise(self.current)
            check_valid(self.current, self.expected)
            if given is not None:
                self.check.step(each, given, self.current)

    def _rewrite(self, each: Pass) -> None:
        """Replace the model by what `each` makes of it, and record that."""
        began, earlier, report = time.perf_counter(), opset(self.current), self.check.report
        log.info("%s: starts", each)
        result = each.call(self.current, self.context)
        if opset(result.model) != earlier:
            report.notes.append(f"{each.name}: opset raised from {earlier} to {opset(result.model)}")
        seconds = time.perf_counter() - began
        log.info("%s: done in %.2f s, %s", each, seconds, result.counts(True) or "nothing changed")
        report.steps.append(
            Step(
                str(each),
                each.effect.value,
                seconds,
                result.records,
                numbers=result.numbers,
                widths=result.widths,
            )
        )
        self.current = result.model
        self.done.append(result.replay or each)

    def end(self, inline: bool, machine: Target) -> None:
        """Write functions in line where wanted, and into the model what was done to it."""
        if inline:
            write_in_line(self.current)
            check_valid(self.current, self.expected)
        _stamp(self.current, Recipe(tuple(self.done)), self.verify, machine)
        report = self.check.report
        report.notes += [note for note in notes(self.current) if note not in report.notes]

    def judge(self) -> None:
        """Find the layer that hurts where the checked model lost much; BoundError where it lost too much."""
        if self.untouched is not None:
            lossy = [each for each in self.done if each.effect is Effect.LOSSY]
            self.check.blame(lossy, self.untouched, self.current, self.context)
        self.check.bound()

    def time(self, slowest: float | None) -> None:
        """Time the model beside the first; BoundError where it surely takes more than `slowest` of it."""
        check = self.check
        if check.first is None or check.last is None:
            return
        found = latencies([check.first, check.last], next(iter(check.samples)))[1]
        check.report.latency = found
        if slowest is not None and found.low > slowest:
            raise BoundError(f"max-latency: {spread(found)}, expected {slowest:g} at most")


def unpack(source: str | Path, output: str | Path, *, external_data: bool = False) -> list[str]:
    """Write the plain dense model of the encoded one in the file `source`; return the weights' names.

    The file is written once onnxruntime computes the same from it. Raises as :func:`compress` does.
    """
    model = load(source)
    given, apart = clone(model), external_files(model, source)
    check_targets([output], [Path(source), *apart])
    names = decode(model, sparse=True)
    engine = find_runtime("onnxruntime").make(frugal=weight_bytes(model) > LARGE)
    samples = random_data(model, count=1)

    def check(path: Path) -> None:
        found = compare(engine.prepare(given), engine.prepare(path), samples, tolerance=Tolerance(0, 0))
        if not found.exact:
            raise BoundError(f"{source}: outputs differ: {difference(found)}")

    save(model, output, external_data=external_data or bool(apart), check=check)
    return names


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
