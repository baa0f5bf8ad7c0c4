"""Repair after a change: the layers that are left learn from calibration data what the whole ones computed.

Layers are taken in order, each on what the repaired ones before it compute, with what the unchanged model
makes there as the aim, sums with shortcuts included: what is missing there is made up for as well. Source:
He et al., Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir

from onnxcompress.base import Runtime
from onnxcompress.channels.comparison import Comparison, comparison
from onnxcompress.channels.find import Channels, Plan
from onnxcompress.channels.fitting import fit, recentre
from onnxcompress.channels.labels import matched
from onnxcompress.channels.sampling import batched
from onnxcompress.channels.stages import Feeds, read_by, staged
from onnxcompress.edit import Edit
from onnxcompress.errors import UsageError
from onnxcompress.layers import Layer, constant
from onnxcompress.linear import Linear, linear

REPAIRS = ("none", "bias", "least-squares")


@dataclass(frozen=True)
class Aim:
    """A layer to repair, which outputs of the whole layer `kept` of its own there are (None: all), and why.

    `inputs_changed` says that it reads other inputs than the whole layer, or has other weights for them.
    Without that its outputs are those of the whole layer, and it needs no repair.
    """

    layer: Layer
    kept: np.ndarray | None
    inputs_changed: bool = True


def aims(channels: Channels, plan: Plan) -> list[Aim]:
    """Return the layers whose inputs `plan` changes, in order; to be called before it is carried out."""
    found: list[Aim] = []
    flow, removal = channels.flow, plan.removal
    fewer = {
        ride.node for ride in flow.rides.values() if ride.role == "in" and not removal.kept[ride.labels].all()
    }
    changed: set[ir.Value] = set()
    for node in channels.model.graph:
        touched = node in fewer or any(value in changed for value in read_by(node, channels.model.graph))
        if touched:
            changed.update(node.outputs)
        if node.op_type not in ("Conv", "Gemm", "MatMul") or node.domain not in ("", "ai.onnx"):
            continue
        layer = Layer(node, 1)
        if node in flow.refusals or constant(node.inputs[1]) is None or len(layer.weight.uses()) > 1:
            continue
        labels = flow.labels(node.outputs[0]).reshape(-1)
        kept = None
        if not removal.kept[labels].all():
            kept = matched(removal.labels(node.outputs[0]).reshape(-1), labels)
        if touched:
            found.append(Aim(layer, kept))
    return found


def repair(
    whole: ir.Model,
    model: ir.Model,
    layers: Iterable[Aim],
    data: Iterable[Feeds],
    runtime: Runtime,
    kind: str,
    *,
    seed: int = 0,
    progress: Callable[[int, int | None, str], None] | None = None,
) -> dict[str, str]:
    """Repair `layers` of `model`, in the order of its nodes; return what was done to each, or why nothing.

    What layers compute has the same name in `model` and in the `whole` model it came from. "bias" gives each
    output its mean back, by the bias or by the statistics of a BatchNormalization that follows.
    "least-squares" fits the weights as well. Both models run once, part by part. UsageError where there are
    no data; CompressError where activations aren't finite.
    """
    feeds = list(batched(data, model))
    if not feeds:
        raise UsageError("calibration: there are no data, expected at least one sample")
    known = {value.name for node in whole.graph for value in node.outputs}
    comparisons, done = _comparisons(model, layers, kind, _shapes(whole, feeds[0], runtime), known)
    draw, edit, runtime = np.random.default_rng(seed), Edit(model), runtime.patient()
    targets = staged(whole, [[each.end.name or ""] for each in comparisons], feeds, runtime)
    states = staged(model, [each.reads for each in comparisons], feeds, runtime)
    for number, (each, target, state) in enumerate(zip(comparisons, targets, states, strict=True)):
        if progress:
            progress(number, len(comparisons), "repairing")
        inputs, wanted = each.sample(target, state, draw)
        if kind == "least-squares":
            what, weights = "weights fitted", fit(each.weights(), inputs, wanted, each.biased)
        elif each.normalization is not None:
            what, weights = "statistics renewed", each.weights()
            each.renormalise(edit, weights.apply(inputs))
        else:
            what, weights = "mean corrected", recentre(each.weights(), inputs, wanted)
        done[each.line.layer.name] = (
            what if each.put(edit, weights) else "its dtype can't hold what is fitted"
        )
    return done


def _shapes(whole: ir.Model, feed: Feeds, runtime: Runtime) -> dict[str | None, tuple[int, ...]]:
    """Return the shapes of what is added up in the main graph of `whole`, by name."""
    names = {
        value.name or "" for node in whole.graph if node.op_type == "Add" for value in node.inputs if value
    }
    made = {value.name: value for node in whole.graph for value in node.outputs}
    names &= {name for name, value in made.items() if constant(value) is None}
    if not names:
        return {}
    found = runtime.prepare(whole, outputs=sorted(names)).run(feed)
    return {name: array.shape for name, array in found.items()}


def _comparisons(
    model: ir.Model,
    layers: Iterable[Aim],
    kind: str,
    shapes: Mapping[str | None, tuple[int, ...]],
    known: Collection[str | None],
) -> tuple[list[Comparison], dict[str, str]]:
    """Return where to compare each of `layers` that can be repaired, in node order, and why others can't.

    `shapes` are those of what is added up, `known` are the names of what the whole model computes.
    """
    lines: dict[ir.Node, tuple[Linear, np.ndarray | None]] = {}
    left: dict[str, str] = {}
    for aim in layers:
        line = linear(aim.layer) if aim.inputs_changed else "it computes what it did"
        if isinstance(line, str):
            left[aim.layer.name] = f"none: {line}"
        else:
            lines[aim.layer.node] = line, aim.kept
    found: list[Comparison] = []
    last: dict[ir.Value, int] = {}  # the number of the last layer to repair that a value depends on
    order = {node: number for number, node in enumerate(node for node in model.graph if node in lines)}
    for node in model.graph:
        reads = (last.get(value, -1) for value in read_by(node, model.graph))
        last.update(dict.fromkeys(node.outputs, max(order.get(node, -1), *reads, -1)))

    def added(number: int, end: ir.Value, other: ir.Value) -> bool:
        same = shapes.get(end.name) == shapes.get(other.name) is not None
        return same and last.get(other, -1) < number

    for node, number in order.items():
        each = comparison(*lines[node], partial(added, number))
        if kind == "bias" and not each.biased:
            left[each.line.layer.name] = "none: there is no place for a bias"
        elif each.end.name not in known:
            left[each.line.layer.name] = f"none: the whole model computes nothing called {each.end.name}"
        else:
            found.append(each)
    return found, left
