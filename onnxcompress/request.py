"""What a run is asked for: refused where it can't be had, and the data it names, read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from onnxcompress.base import Context
from onnxcompress.data import Data, load_data, random_data, split_slice
from onnxcompress.drop import Limit, Metric
from onnxcompress.errors import UsageError
from onnxcompress.layers import layers
from onnxcompress.recipe import Mix, Recipe
from onnxcompress.verify import check_metric

VERIFY = ("each", "end", "off")
CHECK_SAMPLES = 32  # of the calibration data, for the comparison after each pass
MOST_THREADS = 1024  # an engine asked for many more may never start
RANDOM_WARNING = (
    "no data was given: outputs were compared on random inputs, which tell nothing about accuracy"
)


def check_request(
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


def check_bounds(
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


def check_targets(written: Sequence[str | Path | None], read: Sequence[Path | None]) -> None:
    """Raise UsageError where a file can't be `written`, or is among those `read`."""
    targets = [Path(each) for each in written if each is not None]
    for path in targets:
        if path.is_dir():
            raise UsageError(f"{path}: is a folder, expected a file")
        if not path.parent.is_dir():
            raise UsageError(f"{path}: its folder does not exist")
    for number, path in enumerate(targets):
        if path.absolute() in {each.absolute() for each in targets[:number]}:
            raise UsageError(f"{path}: is written twice by this run, expected another file")
    beside = [path.with_name(f"{path.name}.data") for path in targets]
    for path in (*targets, *beside):
        if path.exists() and any(each and each.exists() and path.samefile(each) for each in read):
            raise UsageError(f"{path}: is read by this run too, expected another file")


def files(*sources: object) -> Iterator[Path]:
    """Yield the files among the sources of data."""
    for each in sources:
        if isinstance(each, str | Path):
            yield split_slice(str(each))[0]


def read_data(
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


def data_notes(verify: str, *data: Data | None) -> Iterator[str]:
    """Yield what a user must know of the data that outputs are compared on."""
    if data[0] is not None and data[0].random and verify != "off":
        yield RANDOM_WARNING
    yield from dict.fromkeys(note for each in data if each is not None for note in each.notes)


def unmatched(model: ir.Model, context: Context) -> Iterator[str]:
    """Yield a note for each pattern of layers to leave alone that matches none."""
    names = {name for layer in layers(model, Context()) for name in (layer.name, layer.weight.name or "")}
    for pattern in context.exclude:
        if not any(re.fullmatch(pattern, name) for name in names):
            yield f"exclude: {pattern!r} matches no layer"
