"""Repair after a removal: the layers that are left learn from calibration data what the whole ones computed.

Layers are taken in order, each on what the repaired ones before it compute, with the outputs of the unchanged
model as the aim. Source: He et al., Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
import onnx_ir as ir

from onnxcompress.base import Runtime
from onnxcompress.channels.find import Channels, Plan
from onnxcompress.channels.labels import matched
from onnxcompress.edit import Edit
from onnxcompress.folding import put_bias
from onnxcompress.layers import Layer, constant, put_constant

Feeds = Mapping[str, np.ndarray]
REPAIRS = ("none", "bias", "least-squares")
POSITIONS = 64  # of each sample of a convolution that a fit looks at
RIDGE = 1e-3  # how strongly a fit holds on to the weights there are, relative to the inputs' mean square
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
    feeds = list(batched(data, model))
    for number, aim in enumerate(layers):
        if progress:
            progress(number, len(layers), "repairing")
        sample = _Sample(aim, feeds, whole, model, runtime, np.random.default_rng([seed, number]))
        fits = kind == "least-squares" and aim.fewer_inputs and sample.fits
        if fits:
            _fit(model, aim, sample)
        if _recentre(model, aim, sample) or fits:
            done[aim.layer.name] = "weights fitted" if fits else "mean corrected"
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


class _Sample:
    """What a layer reads and what the whole layer computes of it, at some positions of all samples.

    `inputs` [samples, weights of an output], `wanted` and `found` [samples, outputs], all float64.
    """

    def __init__(
        self,
        aim: Aim,
        feeds: Iterable[Feeds],
        whole: ir.Model,
        model: ir.Model,
        runtime: Runtime,
        draw: np.random.Generator,
    ) -> None:
        node, (given, made) = aim.layer.node, aim.names
        self.fits = fits(aim.layer)
        first, second = runtime.prepare(whole, outputs=[made]), runtime.prepare(model, outputs=[given, made])
        inputs, wanted, found = [], [], []
        for feed in feeds:
            now = second.run(feed)
            target = first.run(feed)[made]
            axis = 1 if node.op_type == "Conv" else target.ndim - 1
            target = target if aim.kept is None else target.take(aim.kept, axis)
            places = _positions(target, axis, draw)
            wanted.append(_at(target, axis, places))
            found.append(_at(now[made], axis, places))
            if self.fits and aim.fewer_inputs:
                read = _patches(node, now[given], aim.layer.shape, places) if axis == 1 else None
                inputs.append(_at(now[given], now[given].ndim - 1, places) if read is None else read)
        self.wanted, self.found = np.concatenate(wanted), np.concatenate(found)
        self.inputs = np.concatenate(inputs) if inputs else np.zeros((0, 0))


def fits(layer: Layer) -> bool:
    """Return whether the weights of `layer` can be fitted by least squares here."""
    node = layer.node
    if node.op_type == "Conv":
        spelled = node.attributes.get_string("auto_pad", "NOTSET") == "NOTSET"
        return node.attributes.get_int("group", 1) == 1 and spelled and layer.bias() is not None
    if node.op_type == "Gemm":
        plain = not node.attributes.get_int("transA", 0) and node.attributes.get_float("alpha", 1.0) == 1
        return plain and layer.bias() is not None
    return len(layer.shape) == 2


def _positions(array: np.ndarray, axis: int, draw: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Return indices along all axes but `axis`: of a convolution's output some, of a matrix all."""
    sizes = [size for place, size in enumerate(array.shape) if place != axis]
    count = int(np.prod(sizes))
    if axis == array.ndim - 1 and array.ndim == 2:
        flat = np.arange(count)
    else:
        flat = np.sort(draw.choice(count, min(count, POSITIONS * array.shape[0]), replace=False))
    return np.unravel_index(flat, sizes)


def _at(array: np.ndarray, axis: int, places: tuple[np.ndarray, ...]) -> np.ndarray:
    """Return what lies at `places` of the other axes, float64 [places, size of `axis`]."""
    return np.asarray(np.moveaxis(array, axis, -1)[places], np.float64)


def _patches(
    node: ir.Node, array: np.ndarray, shape: tuple[int, ...], places: tuple[np.ndarray, ...]
) -> np.ndarray:
    """Return the windows of `array` [N, C, ...] that a Conv reads at `places`, float64 [places, inputs]."""
    kernel = shape[2:]
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
    return np.stack(windows, axis=-1).reshape(len(places[0]), -1).astype(np.float64)


def _matrix(layer: Layer, weight: np.ndarray) -> np.ndarray:
    """Return the weight of `layer` as [outputs, inputs]."""
    if layer.op == "Conv":
        return weight.reshape(len(weight), -1)
    return weight if layer.channel_axes == (0,) else weight.T


def _fit(model: ir.Model, aim: Aim, sample: _Sample) -> None:
    """Fit weight and bias of a layer, and what the sample says it computes."""
    layer = aim.layer
    old = _matrix(layer, layer.value().astype(np.float64))
    bias = layer.bias() if layer.op != "MatMul" else None
    inputs = sample.inputs
    if bias is not None:
        old = np.concatenate([old, bias[:, None]], axis=1)
        inputs = np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1)
    new = old + improvement(inputs, sample.wanted - inputs @ old.T)
    sample.found = inputs @ new.T
    weight = new if bias is None else new[:, :-1]
    made = weight.reshape(layer.shape) if layer.op == "Conv" else _matrix(layer, weight)
    put_constant(layer.weight, ir.tensor(made.astype(layer.tensor.dtype.numpy()), name=layer.weight.name))
    if bias is not None:
        put_bias(Edit(model), layer, new[:, -1])


def improvement(inputs: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Return what to add to weights [outputs, n] so that `inputs` [m, n] make up for `missing` [m, outputs].

    Ridge regression: the smaller of two changes that do as well is taken.
    """
    gram = inputs.T @ inputs
    gram[np.diag_indices_from(gram)] += RIDGE * np.trace(gram) / len(gram) + 1e-12
    return np.asarray(np.linalg.solve(gram, inputs.T @ missing).T)


def _recentre(model: ir.Model, aim: Aim, sample: _Sample) -> bool:
    """Give the outputs of a layer their means back; False where there is no place for it."""
    layer = aim.layer
    follower = _normalization(layer.node)
    if follower is not None:
        _renormalise(model, follower, sample.found)
        return True
    bias = layer.bias() if layer.op != "MatMul" else None
    if bias is None:
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
