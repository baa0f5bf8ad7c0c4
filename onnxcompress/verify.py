"""Compare two models on data, and check that a rewritten model is still a model with the same signature."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxcompress.base import Runnable, Runtime
from onnxcompress.errors import BoundError, CompressError, UsageError
from onnxcompress.model import Signature, check, graphs, signature

METRICS = ("top1", "agreement", "cosine", "snr")

# Exact rewrites may reorder float sums. An output agrees where |a - b| <= atol + rtol * max|a|; others must
# be equal.
TOLERANCES = {
    "float64": (1e-9, 1e-12),
    "float32": (1e-4, 1e-6),
    "float16": (1e-2, 1e-4),
    "bfloat16": (5e-2, 1e-3),
}


@dataclass(frozen=True)
class Tolerance:
    """Bounds for outputs that must agree; None stands for the one of the output's dtype (TOLERANCES)."""

    rtol: float | None = None
    atol: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("rtol", self.rtol), ("atol", self.atol)):
            if value is not None and not value >= 0:
                raise UsageError(f"{name} is {value}, expected 0 or more")

    def allows(self, a: np.ndarray, b: np.ndarray) -> bool:
        """Return whether `b` is `a` [any shape] within the bounds, NaN and infinity at the same places."""
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        if a.dtype.name not in TOLERANCES:
            return bool(np.array_equal(a, b))
        rtol, atol = (
            given if given is not None else own
            for given, own in zip((self.rtol, self.atol), TOLERANCES[a.dtype.name], strict=True)
        )
        a, b = a.astype(np.float64), b.astype(np.float64)
        proper = np.isfinite(a)
        if not np.array_equal(a[~proper], b[~proper], equal_nan=True):
            return False
        a, b = a[proper], b[proper]
        return a.size == 0 or bool(np.max(np.abs(a - b)) <= atol + rtol * np.max(np.abs(a)))


@dataclass
class Likeness:
    """How far one output of a model is from the same output of another, summed up over samples."""

    signal: float = 0.0  # sum of squares of the first
    other: float = 0.0  # sum of squares of the second
    noise: float = 0.0  # sum of squares of the difference
    product: float = 0.0
    worst: float = 0.0  # largest absolute difference

    def add(self, a: np.ndarray, b: np.ndarray) -> None:
        """Take in one pair of outputs [same shape, numbers]."""
        a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
        proper = np.isfinite(a) & np.isfinite(b)
        a, b = a[proper], b[proper]
        self.signal += float(a @ a)
        self.other += float(b @ b)
        self.product += float(a @ b)
        difference = a - b
        self.noise += float(difference @ difference)
        self.worst = max(self.worst, float(np.max(np.abs(difference), initial=0.0)))

    @property
    def snr(self) -> float:
        """Signal-to-noise ratio in dB; infinity where there is no difference."""
        if self.noise == 0:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal else -math.inf

    @property
    def cosine(self) -> float:
        """Cosine of the angle between the two; 1 where both are zero."""
        if self.signal == 0 or self.other == 0:
            return 1.0 if self.signal == self.other else 0.0
        return self.product / math.sqrt(self.signal * self.other)


@dataclass(frozen=True)
class Comparison:
    """How two models agree on data.

    `snr` (dB) and `cosine` are those of the output that agrees least, `agreement` the share of predictions
    (arg max over the classes) that are the same, `top1` the accuracies of both where labels are known, `lost`
    how many samples only the first model has right and `gained` how many only the second. Where outputs of
    the first model hold NaN or infinity (`unsound`), the figures are those of the rest.
    """

    samples: int
    exact: bool
    snr: float
    cosine: float
    largest_difference: float
    worst_output: str
    agreement: float | None = None
    changed_predictions: int | None = None
    predictions: int | None = None
    top1: tuple[float, float] | None = None
    lost: int | None = None
    gained: int | None = None
    random: bool = False
    unsound: bool = False


def check_metric(metric: str | None) -> None:
    """Raise UsageError where `metric` is given and is none of METRICS."""
    if metric is not None and metric not in METRICS:
        raise UsageError(f"metric is {metric!r}, expected one of {', '.join(METRICS)}")


@dataclass
class _Tally:
    """Predictions counted over samples."""

    seen: int = 0
    same: int = 0
    lost: int = 0
    gained: int = 0
    hits: list[int] = field(default_factory=lambda: [0, 0])


def compare(
    before: Runnable,
    after: Runnable,
    data: Iterable[Mapping[str, np.ndarray]],
    *,
    labels: np.ndarray | None = None,
    tolerance: Tolerance = Tolerance(),
    random: bool = False,
) -> Comparison:
    """Run both models on `data` and return how their outputs agree.

    `labels` [samples, integers] are the true classes in the order of the samples. Raises BoundError where an
    output is missing, has another shape, or holds NaN or infinity that the first model's does not.
    """
    likeness: dict[str, Likeness] = {}
    exact, unsound, samples, tally = True, False, 0, _Tally()
    for feeds in data:
        first, second = before.run(feeds), after.run(feeds)
        for name, a in first.items():
            if name not in second:
                raise BoundError(f"output {name}: is missing, expected {a.dtype} {list(a.shape)}")
            b = second[name]
            if a.shape != b.shape:
                raise BoundError(f"output {name}: has shape {list(b.shape)}, expected {list(a.shape)}")
            exact = exact and tolerance.allows(a, b)
            if a.dtype.kind in "fiub" or a.dtype.name == "bfloat16":
                unsound = unsound or not _finite(a)
                if newly_broken(a, b):
                    raise BoundError(f"output {name}: holds NaN or infinity, expected finite numbers")
                likeness.setdefault(name, Likeness()).add(a, b)
        batch = _batch(feeds)
        chosen = _classes(first)
        if chosen is not None:
            _count(
                tally,
                first[chosen],
                second[chosen],
                None if labels is None else labels[samples : samples + batch],
            )
        samples += batch
    if labels is not None and tally.seen == 0:
        raise UsageError("top1: no output has a class axis, expected one of shape [batch, classes]")
    worst = min(likeness, key=lambda name: likeness[name].snr, default="")
    least = likeness.get(worst, Likeness())
    return Comparison(
        samples=samples,
        exact=exact,
        snr=least.snr,
        cosine=min((each.cosine for each in likeness.values()), default=1.0),
        largest_difference=max((each.worst for each in likeness.values()), default=0.0),
        worst_output=worst,
        agreement=tally.same / tally.seen if tally.seen else None,
        changed_predictions=tally.seen - tally.same if tally.seen else None,
        predictions=tally.seen or None,
        top1=(tally.hits[0] / tally.seen, tally.hits[1] / tally.seen) if labels is not None else None,
        lost=tally.lost if labels is not None else None,
        gained=tally.gained if labels is not None else None,
        random=random,
        unsound=unsound,
    )


def newly_broken(a: np.ndarray, b: np.ndarray) -> bool:
    """Return whether `b` holds NaN or infinity and `a` [any shapes] does not."""
    return _finite(a) and not _finite(b)


def _finite(array: np.ndarray) -> bool:
    return array.dtype.kind in "iub" or bool(np.isfinite(array.astype(np.float32, copy=False)).all())


def _batch(feeds: Mapping[str, np.ndarray]) -> int:
    """Return how many samples a feed holds: the first axis of its first array that has one."""
    return next((len(each) for each in feeds.values() if each.ndim), 1)


def _classes(outputs: Mapping[str, np.ndarray]) -> str | None:
    """Return the name of the first output with a class axis: [batch, classes > 1], floats of any rank."""
    for name, each in outputs.items():
        kinds = "fiu" if each.ndim == 2 else "f"
        if each.ndim >= 2 and each.dtype.kind in kinds and each.shape[1] > 1 and each.size:
            return name
    return None


def _count(tally: _Tally, first: np.ndarray, second: np.ndarray, labels: np.ndarray | None) -> None:
    a, b = first.argmax(1), second.argmax(1)
    tally.seen += a.size
    tally.same += int((a == b).sum())
    if labels is not None:
        a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
        if len(labels) != len(a) or a.shape[1] != 1:
            raise UsageError(
                f"top1: predictions of shape {list(first.shape)} for {len(labels)} labels, expected one each"
            )
        first_right, second_right = a[:, 0] == labels, b[:, 0] == labels
        tally.hits[0] += int(first_right.sum())
        tally.hits[1] += int(second_right.sum())
        tally.lost += int((first_right & ~second_right).sum())
        tally.gained += int((second_right & ~first_right).sum())


def check_valid(model: ir.Model, expected: Signature) -> None:
    """Raise CompressError where `model` is not valid or its inputs and outputs aren't the `expected` ones."""
    for graph in graphs(model):
        for node in graph:
            for value in node.inputs:
                if value is not None and _is_lost(value):
                    raise CompressError(
                        f"value {value.name}, read by {node.name or node.op_type}, is made by nothing"
                    )
    check(model)
    found = signature(model)
    for kind, before, after in (
        ("input", expected.inputs, found.inputs),
        ("output", expected.outputs, found.outputs),
    ):
        if before != after:
            raise CompressError(f"the {kind}s are {_spelt(after)}, expected {_spelt(before)}")


def _spelt(entries: Sequence[object]) -> str:
    return ", ".join(map(str, entries)) or "none"


def _is_lost(value: ir.Value) -> bool:
    """Return whether no node makes `value` and no initializer or input holds it."""
    return value.producer() is None and not value.is_graph_input() and not value.is_initializer()


def first_difference(
    before: ir.Model,
    after: ir.Model,
    runtime: Runtime,
    feeds: Mapping[str, np.ndarray],
    differ: Callable[[np.ndarray, np.ndarray], bool],
) -> str | None:
    """Return the first node of `after` whose output does `differ` from `before`'s, or None.

    Values that both models name alike are compared; the place where they start to differ is found by
    bisection along `after`'s order of nodes, a run of both models a step.
    """
    known = {value.name for node in before.graph for value in node.outputs if value.name}
    makers = [
        (value.name, node)
        for node in after.graph
        for value in node.outputs
        if value.name and value.name in known and isinstance(value.type, ir.TensorType | None)
    ]
    low, high, found = 0, len(makers) - 1, None
    while low <= high:
        middle = (low + high) // 2
        name, node = makers[middle]
        a = runtime.prepare(before, [name]).run(feeds)[name]
        b = runtime.prepare(after, [name]).run(feeds)[name]
        if differ(a, b):
            found, high = node, middle - 1
        else:
            low = middle + 1
    if found is None:
        return None
    return f"{found.name or found.outputs[0].name} ({found.op_type})"
