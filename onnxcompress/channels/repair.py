"""Repair after a removal: the layers that are left learn from calibration data what the whole ones computed.

Layers are taken in order, each on what the repaired ones before it compute, with the outputs of the unchanged
model as the aim. Source: He et al., Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from onnxcompress.base import Runnable, Runtime
from onnxcompress.channels.find import Channels, Plan
from onnxcompress.channels.labels import matched
from onnxcompress.edit import Edit
from onnxcompress.layers import Layer, constant, put_constant
from onnxcompress.linear import put_bias

Feeds = Mapping[str, np.ndarray]
Places = tuple[np.ndarray, ...]
REPAIRS = ("none", "bias", "least-squares")
SAMPLES = 256  # of the calibration data that a repair looks at
POSITIONS = 32  # of each sample of a convolution that a repair looks at, at least
EQUATIONS = 32  # for each weight that a fit finds
RIDGE = 3e-4  # how strongly a fit holds on to the weights there are, relative to the inputs' mean square
ROUNDS = 20  # of a fit before a Relu
BATCH = 32  # samples a run takes where the model leaves their number open


@dataclass(frozen=True)
class Aim:
    """A layer to repair, and which outputs of the whole layer `kept` of its own there are."""

    layer: Layer
    kept: np.ndarray | None
    fewer_inputs: bool

    @property
    def names(self) -> tuple[str, str]:
        """The names of what it reads and what it computes."""
        node = self.layer.node
        given = node.inputs[0]
        assert given is not None
        return given.name or "", node.outputs[0].name or ""


def aims(channels: Channels, plan: Plan) -> list[Aim]:
    """Return the layers that `plan` changes or that come after one that it changes, in order."""
    found: list[Aim] = []
    flow, removal = channels.flow, plan.removal
    outs = {ride.node: key for key, ride in flow.rides.items() if ride.role == "out"}
    reads = {
        ride.node for ride in flow.rides.values() if ride.role == "in" and not removal.kept[ride.labels].all()
    }
    for node in channels.model.graph:
        if node.op_type not in ("Conv", "Gemm", "MatMul") or node.domain not in ("", "ai.onnx"):
            continue
        layer = Layer(node, 1)
        if constant(node.inputs[1]) is None or len(layer.weight.uses()) > 1:
            continue
        kept = None
        if node in outs and not removal.kept[flow.rides[outs[node]].labels].all():
            kept = matched(removal.rides[outs[node]].labels, flow.rides[outs[node]].labels)
        if found or kept is not None or node in reads:
            found.append(Aim(layer, kept, node in reads))
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
    """Repair `layers` of `model` after those of the `whole` model it came from; return what was done to each.

    "bias" gives each output its mean back, by the bias or by the statistics of a BatchNormalization that
    follows. "least-squares" also fits the weights of layers that read fewer inputs.
    """
    done: dict[str, str] = {}
    layers = list(layers)
    feeds = list(batched(islice(data, SAMPLES), model))
    targets = _targets(layers, feeds, runtime.prepare(whole, outputs=[aim.names[1] for aim in layers]), seed)
    for number, (aim, target) in enumerate(zip(layers, targets, strict=True)):
        if progress:
            progress(number, len(layers), "repairing")
        wanted = kind == "least-squares" and aim.fewer_inputs and fits(aim.layer)
        sample = _sampled(aim, target, feeds, runtime.prepare(model, outputs=list(aim.names)), wanted)
        if wanted:
            _fit(model, aim, sample)
        if _recentre(model, aim, sample) or wanted:
            done[aim.layer.name] = "weights fitted" if wanted else "mean corrected"
    return done


def batched(data: Iterable[Feeds], model: ir.Model) -> Iterator[Feeds]:
    """Yield the feeds, some at a time where every input of `model` leaves their number open."""
    shapes = [value.shape for value in model.graph.inputs]
    free = all(shape is not None and len(shape) and not isinstance(shape[0], int) for shape in shapes)
    waiting: list[Feeds] = []
    for feed in data:
        waiting.append(feed)
        if not free or len(waiting) == BATCH:
            yield {name: np.concatenate([each[name] for each in waiting]) for name in feed}
            waiting = []
    if waiting:
        yield {name: np.concatenate([each[name] for each in waiting]) for name in waiting[0]}


class _Target(NamedTuple):
    """What a whole layer computes: for each run the places looked at, and [places, outputs] in float32."""

    places: list[Places]
    values: list[np.ndarray]


@dataclass
class _Sample:
    """A layer at some positions of all samples: what it reads, what the whole layer computes, what it does.

    `inputs` [positions, weights of an output], `wanted` and `found` [positions, outputs], all float64.
    """

    inputs: np.ndarray
    wanted: np.ndarray
    found: np.ndarray


def _targets(layers: Sequence[Aim], feeds: Sequence[Feeds], whole: Runnable, seed: int) -> list[_Target]:
    """Return what each whole layer computes at random positions, in one pass over the feeds."""
    draw = np.random.default_rng(seed)
    samples = sum(len(next(iter(feed.values()))) for feed in feeds)
    found = [_Target([], []) for _ in layers]
    for feed in feeds:
        made = whole.run(feed)
        for aim, target in zip(layers, found, strict=True):
            array = made[aim.names[1]]
            axis = _axis(aim, array)
            array = array if aim.kept is None else array.take(aim.kept, axis)
            unknown = aim.layer.size // array.shape[axis] if aim.fewer_inputs else 0
            count = max(POSITIONS, EQUATIONS * unknown // max(samples, 1))
            target.places.append(_positions(array, axis, count, draw))
            target.values.append(_at(array, axis, target.places[-1]))
    return found


def _sampled(aim: Aim, target: _Target, feeds: Sequence[Feeds], runnable: Runnable, wanted: bool) -> _Sample:
    """Return what a layer reads (where that is `wanted`) and computes where the whole one was looked at."""
    given, made = aim.names
    inputs, found = [np.zeros((0, 0))], []
    for feed, places in zip(feeds, target.places, strict=True):
        now = runnable.run(feed)
        found.append(_at(now[made], _axis(aim, now[made]), places))
        if wanted and aim.layer.op == "Conv":
            inputs.append(_patches(aim.layer, now[given], places))
        elif wanted:
            inputs.append(_at(now[given], now[given].ndim - 1, places))
    read = np.concatenate(inputs[1:] or inputs).astype(np.float64)
    return _Sample(
        read, np.concatenate(target.values).astype(np.float64), np.concatenate(found).astype(np.float64)
    )


def _axis(aim: Aim, array: np.ndarray) -> int:
    """Return the axis of a layer's output along which its channels lie."""
    return 1 if aim.layer.op == "Conv" else array.ndim - 1


def fits(layer: Layer) -> bool:
    """Return whether the weights of `layer` can be fitted by least squares here."""
    node = layer.node
    if node.op_type == "Conv":
        spelled = node.attributes.get_string("auto_pad", "NOTSET") == "NOTSET"
        return spelled and layer.bias() is not None
    if node.op_type == "Gemm":
        plain = not node.attributes.get_int("transA", 0) and node.attributes.get_float("alpha", 1.0) == 1
        return plain and layer.bias() is not None
    return len(layer.shape) == 2


def _positions(array: np.ndarray, axis: int, wanted: int, draw: np.random.Generator) -> Places:
    """Return indices along all axes but `axis`: `wanted` of each sample of a convolution, of a matrix all."""
    sizes = [size for place, size in enumerate(array.shape) if place != axis]
    count = int(np.prod(sizes))
    if axis == array.ndim - 1 and array.ndim == 2:
        flat = np.arange(count)
    else:
        flat = np.sort(draw.choice(count, min(count, wanted * array.shape[0]), replace=False))
    return np.unravel_index(flat, sizes)


def _at(array: np.ndarray, axis: int, places: Places) -> np.ndarray:
    """Return what lies at `places` of the other axes, [places, size of `axis`]."""
    return np.asarray(np.moveaxis(array, axis, -1)[places])


def _patches(layer: Layer, array: np.ndarray, places: Places) -> np.ndarray:
    """Return the windows of `array` [N, C, ...] that a Conv reads at `places`, [places, inputs]."""
    node, kernel = layer.node, layer.shape[2:]
    rank = len(kernel)
    strides, steps = (node.attributes.get_ints(name, (1,) * rank) for name in ("strides", "dilations"))
    pads = node.attributes.get_ints("pads", (0,) * 2 * rank)
    padded = np.pad(array, [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)])
    padded = np.moveaxis(padded, 1, -1)
    windows = []
    for offset in product(*map(range, kernel)):
        where = [
            place * stride + each * step
            for place, stride, each, step in zip(places[1:], strides, offset, steps, strict=True)
        ]
        windows.append(padded[(places[0], *where)])
    return np.stack(windows, axis=-1).reshape(len(places[0]), -1)


def _matrix(layer: Layer, weight: np.ndarray) -> np.ndarray:
    """Return the weight of `layer` as [outputs, inputs]."""
    if layer.op == "Conv":
        return weight.reshape(len(weight), -1)
    return weight if layer.channel_axes == (0,) else weight.T


def _fit(model: ir.Model, aim: Aim, sample: _Sample) -> None:
    """Fit weight and bias of a layer, and what the sample says it computes.

    Where a Relu follows, outputs that are to be negative only need to be. Source: Zhang et al., Accelerating
    Very Deep Convolutional Networks for Classification and Detection, PAMI 2016.
    """
    layer = aim.layer
    groups = layer.node.attributes.get_int("group", 1) if layer.op == "Conv" else 1
    old = np.split(_matrix(layer, layer.value().astype(np.float64)), groups)
    inputs, wanted = (np.split(each, groups, axis=1) for each in (sample.inputs, sample.wanted))
    bias = layer.bias() if layer.op != "MatMul" else None
    if bias is not None:
        ones = np.ones((len(sample.inputs), 1))
        inputs = [np.concatenate([each, ones], axis=1) for each in inputs]
        parts = zip(old, np.split(bias, groups), strict=True)
        old = [np.concatenate([each, part[:, None]], axis=1) for each, part in parts]
    rounds = ROUNDS if _rectified(layer.node) else 0
    new = np.concatenate([_fitted(*each, rounds) for each in zip(old, inputs, wanted, strict=True)])
    found = zip(inputs, np.split(new, groups), strict=True)
    sample.found = np.concatenate([each @ part.T for each, part in found], axis=1)
    weight = new if bias is None else new[:, :-1]
    made = weight.reshape(layer.shape) if layer.op == "Conv" else _matrix(layer, weight)
    put_constant(layer.weight, ir.tensor(made.astype(layer.tensor.dtype.numpy()), name=layer.weight.name))
    if bias is not None:
        put_bias(Edit(model), layer, new[:, -1])


def _fitted(old: np.ndarray, inputs: np.ndarray, wanted: np.ndarray, rounds: int) -> np.ndarray:
    """Return weights [outputs, n] near `old` that make `wanted` [m, outputs] of `inputs` [m, n].

    In each of so many `rounds` more, what is wanted to be negative is taken as met where it is.
    """
    solve = solver(inputs)
    new: np.ndarray = old + solve(wanted - inputs @ old.T)
    for _ in range(rounds):
        found = inputs @ new.T
        aim_at = np.where(wanted > 0, wanted, np.minimum(found, 0))
        new = new + solve(aim_at - found)
    return new


def solver(inputs: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function from what is missing [m, outputs] to what to add to weights [outputs, n].

    With it `inputs` [m, n] make up for what is missing: ridge regression, the smaller of two changes that do
    as well is taken.
    """
    gram = inputs.T @ inputs
    gram[np.diag_indices_from(gram)] += RIDGE * np.trace(gram) / len(gram) + 1e-12
    inverse = np.linalg.inv(gram)
    return lambda missing: np.asarray((inverse @ (inputs.T @ missing)).T)


def _rectified(node: ir.Node) -> bool:
    """Return whether nothing but Relu reads what `node` computes: how far it is below zero is all one."""
    return {use.node.op_type for use in node.outputs[0].uses()} == {"Relu"}


def _recentre(model: ir.Model, aim: Aim, sample: _Sample) -> bool:
    """Give the outputs of a layer their means back; False where there is no place for it."""
    layer = aim.layer
    follower = _normalization(layer.node)
    if follower is not None:
        _renormalise(model, follower, sample.found)
        return True
    bias = layer.bias() if layer.op != "MatMul" else None
    if bias is None or (_rectified(layer.node) and sample.inputs.size):
        return False
    put_bias(Edit(model), layer, bias + (sample.wanted - sample.found).mean(axis=0))
    return True


def _normalization(node: ir.Node) -> ir.Node | None:
    """Return the BatchNormalization with constant statistics that alone reads `node`'s output, or None."""
    readers: list[ir.Node] = [use.node for use in node.outputs[0].uses()]
    if [each.op_type for each in readers] != ["BatchNormalization"]:
        return None
    reader = readers[0]
    return reader if all(constant(value) is not None for value in reader.inputs[1:]) else None


def _renormalise(model: ir.Model, node: ir.Node, found: np.ndarray) -> None:
    """Give a BatchNormalization the mean and variance of what it reads now, `found` [samples, channels]."""
    edit = Edit(model)
    for place, figures in ((3, found.mean(axis=0)), (4, found.var(axis=0))):
        old = node.inputs[place]
        tensor = constant(old)
        assert old is not None
        assert tensor is not None
        made = figures.astype(tensor.dtype.numpy())
        node.replace_input_with(place, edit.constant(model.graph, f"{old.name}_repaired", made))
