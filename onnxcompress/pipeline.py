"""Run a recipe on a model: each pass, its check, the record of it, and the file at the end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

import onnxcompress
from onnxcompress.base import Context, Effect, Pass, Runtime, silent
from onnxcompress.data import Data, load_data, random_data
from onnxcompress.errors import BoundError, CompressError, UsageError
from onnxcompress.measure import latencies
from onnxcompress.model import (
    MappedTensor,
    clone,
    external_bytes,
    graphs,
    load,
    materialise,
    notes,
    opset,
    save,
    signature,
    weight_bytes,
)
from onnxcompress.recipe import Recipe, as_recipe
from onnxcompress.registry import find_runtime
from onnxcompress.report import Report, Size, Step
from onnxcompress.verify import METRICS, Comparison, Tolerance, check_valid, compare, first_difference

if TYPE_CHECKING:
    import onnx

VERIFY = ("each", "end", "off")
LARGE = 500_000_000  # bytes of weights; above, weights stay on disk and outputs are compared once, at the end
CHECK_SAMPLES = 32  # of the calibration data, for the comparison after each pass
COLLAPSE = 0.9  # share of predictions that stay the same; below, the report warns
RANDOM_WARNING = (
    "no data was given: outputs were compared on random inputs, which tell nothing about accuracy"
)


@dataclass(frozen=True)
class Compressed:
    """A compressed model and the report of how it came about."""

    model: ir.Model
    report: Report

    def save(self, path: str | Path, *, external_data: bool = False, jobs: int = 1) -> None:
        """Write the model to `path`; see :func:`onnxcompress.model.save`."""
        save(self.model, path, external_data=external_data, jobs=jobs)


def compress(
    model: str | Path | onnx.ModelProto | ir.Model,
    passes: str | Recipe | Pass | Sequence[Pass | str],
    *,
    output: str | Path | None = None,
    data: Any = None,
    evaluation: Any = None,
    metric: str | None = None,
    preprocess: str | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    runtime: str = "onnxruntime",
    verify: str | None = None,
    tolerance: Tolerance = Tolerance(),  # noqa: B008  frozen
    exclude: Sequence[str] = (),
    seed: int = 0,
    threads: int = 0,
    jobs: int = 1,
    external_data: bool = False,
    measure_latency: bool = True,
    progress: Callable[[int, int | None, str], None] = silent,
) -> Compressed:
    """Return `model` rewritten by `passes`, every rewrite verified; what is passed in is not changed.

    `data` are calibration inputs and `evaluation` inputs with labels, in any form
    :func:`onnxcompress.data.load_data` takes; `shapes` gives inputs the shapes that the model leaves open.
    `verify` is "each" (outputs compared after every pass; the default up to 500 MB of weights), "end" or
    "off". `exclude` are regular expressions of layers no pass may touch. With `output`, the file is written
    once all checks are passed, and read back.

    Raises UsageError for a wrong request, BoundError where a check fails, CompressError for a model that
    can't be handled; nothing is written then.
    """
    recipe = as_recipe(passes)
    _check_request(model, output, verify, metric, evaluation, recipe)
    current = load(model)
    source = Path(model) if isinstance(model, str | Path) else None
    apart = external_bytes(current, source) if source else 0
    large = weight_bytes(current) > LARGE
    verify = verify or ("end" if large else "each")
    expected = signature(current)
    engine = find_runtime(runtime).make(threads=threads, frugal=large)
    calibration, judged, samples = _read_data(current, data, evaluation, preprocess, shapes or {}, seed)
    context = Context(
        calibration=calibration,
        metric=metric,
        runtime=engine,
        seed=seed,
        threads=threads,
        exclude=tuple(exclude),
        progress=progress,
    )
    for each in recipe.passes:
        each.require(context)

    report = Report(
        version=onnxcompress.__version__,
        recipe=str(recipe),
        verify=verify,
        source=str(source or ""),
        before=_size(current, source.stat().st_size + apart if source and output else weight_bytes(current)),
        notes=list(notes(current)),
        metric=metric,
    )
    if samples.random and verify != "off":
        report.notes.append(RANDOM_WARNING)
    report.notes += dict.fromkeys(
        note for each in (samples, calibration, judged) if each is not None for note in each.notes
    )
    first = None
    if verify != "off":
        first = engine.prepare(source if large and source else clone(current))
    before = first
    steady = first is None or compare(first, first, samples.take(1), tolerance=tolerance).exact
    if not steady:
        report.notes.append(
            "the model's outputs differ from run to run: exact passes can't be held to their bound"
        )

    for number, each in enumerate(recipe.passes):
        progress(number, len(recipe.passes), each.name)
        unchanged = clone(current) if verify == "each" and each.effect is Effect.EXACT else None
        with _naming(each):
            step, current = _run(each, current, context)
            report.steps.append(step)
            _tidy(current)
            if not large:
                materialise(current)
            check_valid(current, expected)
            if verify == "each" and before is not None:
                after = engine.prepare(current)
                step.comparison = compare(before, after, samples, tolerance=tolerance, random=samples.random)
                if steady:
                    _require_exact(step.comparison, unchanged, current, engine, samples, tolerance)
                report.notes += _collapse(each, step.comparison)
                before = after
    progress(len(recipe.passes), len(recipe.passes), "checking the whole")
    _stamp(current, recipe, verify)

    def finish(path: Path | None) -> None:
        """Compare the last model, or the file it was written to, with the first."""
        if first is None:
            return
        last = engine.prepare(path if path is not None else current)
        report.comparison = compare(first, last, samples, tolerance=tolerance, random=samples.random)
        if steady and recipe.effect is Effect.EXACT and not report.comparison.exact:
            raise BoundError(f"{recipe}: outputs differ: {_difference(report.comparison)}")
        if judged is not None:
            report.metric = metric or ("top1" if judged.labels is not None else "agreement")
            report.evaluation = compare(first, last, judged, labels=judged.labels, tolerance=tolerance)
        if measure_latency and not large:
            feeds = next(iter(samples))
            report.latency = latencies([first, last], feeds)[1]

    size = weight_bytes(current)
    if output is None:
        finish(None)
    else:
        size = save(current, output, external_data=external_data or apart > 0, jobs=jobs, check=finish)
        report.output = str(output)
    report.after = _size(load(output) if large and output else current, size)
    return Compressed(current, report)


def _check_request(
    model: object,
    output: str | Path | None,
    verify: str | None,
    metric: str | None,
    evaluation: object,
    recipe: Recipe,
) -> None:
    """Raise UsageError for what can be told to be wrong before the model is read."""
    if verify is not None and verify not in VERIFY:
        raise UsageError(f"verify is {verify!r}, expected one of {', '.join(VERIFY)}")
    if metric is not None and metric not in METRICS:
        raise UsageError(f"metric is {metric!r}, expected one of {', '.join(METRICS)}")
    if metric is not None and evaluation is None:
        raise UsageError(
            f"{metric}: needs evaluation data{' with labels' if metric == 'top1' else ''}, none was given"
        )
    if not recipe.passes:
        raise UsageError("recipe: names no pass, expected at least one")
    if output is None:
        return
    path = Path(output)
    if (
        isinstance(model, str | Path)
        and path.exists()
        and Path(model).exists()
        and os.path.samefile(model, path)
    ):
        raise UsageError(f"{path}: is the input too, expected another file")
    if path.is_dir():
        raise UsageError(f"{path}: is a folder, expected a file")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: its folder does not exist")


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
    return (
        calibration,
        judged,
        judged.take(1) if judged is not None else random_data(model, shapes=shapes, seed=seed),
    )


def _run(each: Pass, model: ir.Model, context: Context) -> tuple[Step, ir.Model]:
    began = time.perf_counter()
    earlier = opset(model)
    result = each.call(model, context)
    if opset(result.model) != earlier:
        result.changed("model", f"opset raised from {earlier} to {opset(result.model)}")
    return Step(str(each), each.effect.value, time.perf_counter() - began, result.records), result.model


@contextmanager
def _naming(each: Pass) -> Iterator[None]:
    """Put the name of the pass before the message of an error that doesn't start with it."""
    try:
        yield
    except CompressError as error:
        if str(error).startswith(f"{each.name}: "):
            raise
        raise type(error)(f"{each.name}: {error}") from error


def _require_exact(
    comparison: Comparison,
    given: ir.Model | None,
    current: ir.Model,
    engine: Runtime,
    samples: Data,
    tolerance: Tolerance,
) -> None:
    """Raise BoundError, naming the first node that differs, where an EXACT pass changed the outputs."""
    if given is None or comparison.exact:
        return
    node = first_difference(given, current, engine, next(iter(samples)), tolerance)
    where = f", first at node {node}" if node else ""
    raise BoundError(f"outputs differ: {_difference(comparison)}{where}")


def _collapse(each: Pass, comparison: Comparison) -> Iterator[str]:
    """Yield a warning where a pass changed so many predictions that the model may be of no use."""
    kept = comparison.agreement
    if kept is not None and kept < COLLAPSE and not comparison.random:
        yield f"{each.name}: only {kept:.1%} of predictions stayed the same; milder options keep more"


def _difference(comparison: Comparison) -> str:
    return (
        f"{comparison.worst_output} by {comparison.largest_difference:.3g} at most, {comparison.snr:.1f} dB"
    )


def _tidy(model: ir.Model) -> None:
    """Drop the nodes, initializers and functions that nothing uses any more."""
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]


def _stamp(model: ir.Model, recipe: Recipe, verify: str) -> None:
    """Record in the model what was done to it; a model that was compressed before keeps that recipe too."""
    props = model.metadata_props
    earlier = props.get("onnxcompress.recipe")
    props["onnxcompress.recipe"] = f"{earlier},{recipe}" if earlier else str(recipe)
    props["onnxcompress.version"] = onnxcompress.__version__
    props["onnxcompress.verify"] = verify


def _size(model: ir.Model, size: int) -> Size:
    """Count the elements of initializers and those that aren't zero; `size` is in bytes."""
    parameters = nonzeros = 0
    for graph in graphs(model):
        if not isinstance(graph, ir.Graph):
            continue
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is None or tensor.dtype is ir.DataType.STRING:
                continue
            parameters += int(np.prod(tensor.shape.numpy(), dtype=np.int64))
            nonzeros += int(np.count_nonzero(tensor.numpy()))
            if isinstance(tensor, MappedTensor):
                tensor.release()
    return Size(size, parameters, nonzeros)
