"""What a report file tells beyond the summary: bytes and values of weights, and what repeats the run."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxcompress.analysis import analyze
from onnxcompress.analysis.rows import spent_by_kind
from onnxcompress.base import Context, Runtime
from onnxcompress.data import Data
from onnxcompress.drop import noise
from onnxcompress.energy import Spent
from onnxcompress.errors import CompressError
from onnxcompress.evaluate import array, run_node
from onnxcompress.formats.unpack import Row, ledger, unpack
from onnxcompress.histogram import BINS, Histogram
from onnxcompress.layers import constant, layers
from onnxcompress.layerwise import passages
from onnxcompress.model import clone, opset

SHOWN = 48  # bins of a weight's histogram at most
SAMPLES = 8  # whose values are looked at layer by layer
_PACKAGES = ("onnxcompress", "onnxruntime", "onnx", "onnx-ir", "onnxsim", "numpy")


@dataclass(frozen=True)
class Values:
    """How the elements of a weight are spread.

    `counts` are of those that aren't zero, in bins of one `width`, the first from `low` on.
    """

    elements: int
    zeros: int
    low: float
    width: float
    counts: list[int]


@dataclass(frozen=True)
class Weight:
    """What a layer multiplies by, decoded: `before` the run and `after`.

    None where the layer is not there or its weight is no constant of float numbers. `error` is the root of
    the sum of squares of the difference, as a share of that of the weight before; None where shapes differ.
    """

    layer: str
    before: Values | None
    after: Values | None
    error: float | None


@dataclass(frozen=True)
class Noise:
    """The power of the noise that enters and leaves a layer, as shares of the signal's; 0: none.

    None: nothing in the last model could be matched to it, or no signal is left.
    """

    layer: str
    entering: float | None
    leaving: float | None


@dataclass(frozen=True)
class Details:
    """The bytes of each part of the file `before` and `after`, and by layer the `weights` and the `noise`.

    `energy_before` and `energy_after` are what an inference takes on the machine compiled for, as its engine
    computes: with decoded weights. Where weights take more than 500 MB, all but the bytes is empty; the
    ledger of a model that has no file, too. Where outputs weren't compared, there is no noise.
    """

    before: list[Row] = field(default_factory=list)
    after: list[Row] = field(default_factory=list)
    weights: list[Weight] = field(default_factory=list)
    noise: list[Noise] = field(default_factory=list)
    energy_before: list[Spent] = field(default_factory=list)
    energy_after: list[Spent] = field(default_factory=list)


@dataclass(frozen=True)
class Origin:
    """What repeats a run: the `command`, where there was one, `versions` by package, and the machine.

    `threads` are those asked for, 0 being the engine's own choice.
    """

    command: str | None
    seed: int
    threads: int
    versions: dict[str, str]
    system: str
    processor: str


def origin(command: str | None, seed: int, threads: int) -> Origin:
    """Return what repeats a run on this machine."""
    versions = {"Python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # run from its sources
            continue
    return Origin(command, seed, threads, versions, platform.platform(), _processor())


def _processor() -> str:
    """Return the name of the processor, where the system tells one, and how many there are."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text(errors="replace").splitlines() if listed.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} threads"


def details(
    before: ir.Model | Path | None,
    after: ir.Model | Path | None,
    models: tuple[ir.Model, ir.Model] | None,
    around: list[Noise],
    target: str,
    shapes: Mapping[str, tuple[int, ...]],
) -> Details:
    """Return what the files `before` and `after`, or models, take, the weights of `models`, and the noise.

    `models` are the one before the first pass, decoded, and the one after the last; both stay as they are.
    Their energy is that of the machine `target` with inputs of `shapes`. None: not to be told.
    """
    rows = [ledger(each) if each is not None else [] for each in (before, after)]
    spent = [energy(each, target, shapes) for each in models or ()] or [[], []]
    return Details(rows[0], rows[1], list(weights(*models)) if models else [], around, spent[0], spent[1])


def energy(model: ir.Model, target: str, shapes: Mapping[str, tuple[int, ...]]) -> list[Spent]:
    """Return the energy of an inference on the machine `target`; nothing where the model can't be counted."""
    try:
        return spent_by_kind(analyze(model, target=target, shapes=shapes).rows)
    except CompressError:
        return []


def weights(before: ir.Model, after: ir.Model) -> Iterator[Weight]:
    """Yield the weights of the layers of `before`, and what became of them; then those of new layers."""
    after = clone(after)
    unpack(after)
    first, second = (dict(_named(each)) for each in (before, after))
    for name in [*first, *(each for each in second if each not in first)]:
        a, b = (_value(model.get(name), owner) for model, owner in ((first, before), (second, after)))
        if a is None and b is None:
            continue
        error = None
        if a is not None and b is not None and a.shape == b.shape:
            error = _error(a, b)
        yield Weight(name, None if a is None else spread(a), None if b is None else spread(b), error)


def noises(before: ir.Model, after: ir.Model, runtime: Runtime, data: Data) -> list[Noise]:
    """Return the noise around the layers of `before` on a few samples; none where the engine can't tell."""
    try:
        found = passages(before, after, runtime, data.take(SAMPLES))
    except CompressError:
        return []
    return [Noise(each.layer, _noise(each.entering), _noise(each.leaving)) for each in found]


def _noise(snr: float | None) -> float | None:
    return None if snr is None or snr == -math.inf else noise(snr)


def _named(model: ir.Model) -> Iterator[tuple[str, ir.Value]]:
    for layer in layers(model, Context()):
        yield layer.name, layer.weight


def _value(value: ir.Value | None, model: ir.Model) -> np.ndarray | None:
    """Return a weight [its shape, float32], computed from constants where it must be; None where it can't."""
    try:
        found = None if value is None else _computed(value, opset(model))
    except CompressError:
        return None
    return None if found is None else found.astype(np.float32)


def _computed(value: ir.Value, version: int) -> np.ndarray | None:
    tensor, node = constant(value), value.producer()
    if tensor is not None:
        return array(tensor)
    if node is None or node.domain not in ("", "ai.onnx"):
        return None
    inputs = [None if each is None else _computed(each, version) for each in node.inputs]
    if any(found is None and each is not None for found, each in zip(inputs, node.inputs, strict=True)):
        return None
    return run_node(node, inputs, version)[value.index() or 0]


def spread(weight: np.ndarray) -> Values:
    """Return how the elements of `weight` [any shape, float32] are spread, but NaN and infinity."""
    histogram = Histogram()
    histogram.add(weight[np.isfinite(weight) & (weight != 0)])
    filled = np.flatnonzero(histogram.counts)
    first, last = (int(filled[0]), int(filled[-1]) + 1) if filled.size else (BINS, BINS + 1)
    group = -(-(last - first) // SHOWN)
    first -= (first - BINS) % group  # an edge stays at zero
    counts = histogram.counts[max(first, 0) : last]
    counts = np.pad(counts, (max(-first, 0), -(last - first) % group)).reshape(-1, group).sum(axis=1)
    zeros = weight.size - int(np.count_nonzero(weight))
    low, width = (first - BINS) * histogram.width, group * histogram.width
    return Values(weight.size, zeros, low, width, counts.tolist())


def _error(before: np.ndarray, after: np.ndarray) -> float | None:
    with np.errstate(all="ignore"):
        signal = float(np.linalg.norm(before.ravel().astype(np.float64)))
        noise = float(np.linalg.norm(before.ravel().astype(np.float64) - after.ravel()))
    return noise / signal if signal and np.isfinite(noise / signal) else None
