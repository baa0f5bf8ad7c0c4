"""Exact storage: each weight in the fewest bytes from which the engine makes it again."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import onnx_ir as ir

from onnxcompress.base import Context, Effect, Pass, Result, option
from onnxcompress.edit import home
from onnxcompress.formats import DOMAIN, ENCODERS, Weight
from onnxcompress.formats.base import OLDEST
from onnxcompress.formats.blockcsr import scattered
from onnxcompress.formats.huffman import BLOCKS
from onnxcompress.formats.storing import Way, choose, promising, store, ways
from onnxcompress.layers import constant
from onnxcompress.model import ComputedTensor, MappedTensor, SparseTensor, apply, convert_up, graphs

KINDS = (
    ir.DataType.FLOAT,
    ir.DataType.FLOAT16,
    ir.DataType.BFLOAT16,
    ir.DataType.DOUBLE,
    ir.DataType.INT8,
    ir.DataType.UINT8,
)


LARGE = 2**20  # elements
HUGE = 2**25  # elements of a weight in a file that isn't read without need
WORTH = 0.1  # share of its bytes that must be saved, then
COPIES = 2  # of the dense weights in memory, while onnxruntime loads them
# words of `sparse_format` -> words of `format`
SPARSE = {
    "relative": {"relative", "joint"},
    "csr": {"csr"},
    "block": {"block"},
    "bitmask": {"bitmask"},
    "coo": {"coo"},
}


@dataclass(frozen=True, kw_only=True)
class Encode(Pass):
    """Store each weight in the format that takes the fewest bytes, exactly; the file extracts itself.

    Before: an initializer ``W``
    After: ``W = onnxcompress.Codebook(codes, table)``, for example: a function of standard operators in the
    model itself, which the engine computes once, when it loads the model

    Every format that gives back the same bits is tried, with and without a Huffman code, and the smallest is
    kept, the functions it needs included. All Huffman codes of a model are decoded at once. This pays for
    weights that are pruned, share values or are integers; others stay as they are. It is the last pass of a
    recipe: other passes see no constants in what it wrote.

    Weights of 2^25 or more elements that stay in a file, and blocks that `quant-blocks` makes of a model
    above 500 MB, are only read or computed where an excerpt tells that a tenth or more can be saved. What is
    encoded is held in memory.

    An engine that computes the weights when it loads the model keeps intermediate results until all are done.
    ``load_memory`` bounds the memory this takes, at the price of a larger file: an engine is taken to hold
    the dense weights twice while it loads them, as onnxruntime does, and what it does besides is not counted.
    Source: Han et al., Deep Compression, ICLR 2016.
    """

    name: ClassVar[str] = "encode"
    effect: ClassVar[Effect] = Effect.EXACT

    format: str = option("auto", "the format to use, where it is exact", choices=("auto", *ENCODERS))
    sparse_format: str = option(
        "auto", "the format of weights of which half or more is zero", choices=("auto", *SPARSE)
    )
    load_memory: float = option(
        0.0,
        "most memory while the model is loaded, as a multiple of what the dense model takes; 0: any",
        within=(0.0, 1e6),
    )
    min_size: int = option(64, "leave tensors with fewer elements alone", within=(1, 2**62))
    block: int = option(
        64,
        "symbols in a block of a Huffman code; more make a smaller file that loads slower",
        choices=BLOCKS,
    )

    def call(self, model: ir.Model, context: Context) -> Result:
        """Encode the weights of `model` in place."""
        result = Result(model)
        options: dict[Key, tuple[int, list[Way]]] = {}
        first: dict[object, Key] = {}
        tied: dict[Key, Key] = {}
        found = weights(model)
        alike = Counter(form(tensor) for _, tensor in found.values())
        for key, (value, tensor) in found.items():
            if reason := self.refusal(value, tensor, context) or self.unpromising(tensor):
                result.left(key.name, reason)
                continue
            weight = Weight(tensor.numpy())
            shared = home(value) is model.graph and "coo" not in (self.format, self.sparse_format)
            owner = first.setdefault(weight.key, key) if shared and alike[form(tensor)] > 1 else key
            if owner is key:
                options[key] = weight.array.nbytes, self.ways(weight)
            else:
                tied[key] = owner
        chosen = choose(options, self.budget(model))
        for key, (size, _) in options.items():
            if key in chosen:
                way = chosen[key]
                result.changed(key.name, "encoded", bytes=size, stored=int(way.bytes), formats=way.text)
            else:
                result.left(key.name, "no format is smaller", bytes=size)
        for key, owner in tied.items():
            if owner in chosen:
                result.changed(key.name, f"tied to {owner.name}", bytes=options[owner][0], stored=0)
            else:
                result.left(key.name, "no format is smaller", bytes=options[owner][0])
        if chosen:
            convert_up(model, OLDEST)
            values = {key: value for key, (value, _) in weights(model).items()}
            store(
                model,
                {values[key]: way.make() for key, way in chosen.items()},
                {values[key]: values[owner] for key, owner in tied.items() if owner in chosen},
                self.block,
            )
        return result

    def refusal(self, value: ir.Value, tensor: ir.TensorProtocol, context: Context) -> str | None:
        """Return why the constant `value` must stay, or None."""
        if value.is_graph_output():
            return "an output of the model"
        if self.format == "coo" and isinstance(tensor, SparseTensor):
            return "encoded already"
        if any(node.domain == DOMAIN for node, _ in value.uses()):
            return "encoded already"
        if any(
            context.excludes(each or "") for each in (value.name, *(node.name for node, _ in value.uses()))
        ):
            return "excluded"
        return f"fewer than {self.min_size} elements" if tensor.size < self.min_size else None

    def unpromising(self, tensor: ir.TensorProtocol) -> str | None:
        """Return why it is not worth it to have all of `tensor` in memory, by an excerpt, or None."""
        few = excerpt(tensor)
        if few is None:
            return None
        least = min((way.bytes for way in self.ways(Weight(few))), default=few.nbytes)
        return None if least <= (1 - WORTH) * few.nbytes else f"an excerpt has less than {WORTH:.0%} to save"

    def budget(self, model: ir.Model) -> float | None:
        """Return how many bytes intermediate results may take, or None."""
        if not self.load_memory:
            return None
        dense = sum(tensor.nbytes for _, tensor in weights(model).values())
        return COPIES * dense * max(0.0, self.load_memory - 1)

    def ways(self, weight: Weight) -> list[Way]:
        """Return the ways to store `weight` that may be the best."""
        automatic = {word for word, each in ENCODERS.items() if each.automatic}
        if weight.bits.size >= LARGE and weight.codes is not None:
            automatic -= {"affine", "logscale"}  # they could save the table of the values, and take long
            automatic -= {"block"} if scattered(weight) else set()
        words = {self.format} if self.format != "auto" else automatic
        if self.sparse_format != "auto" and 2 * weight.zeros >= weight.bits.size:
            words = SPARSE[self.sparse_format]
        weigh = self.load_memory > 0
        found = [
            way
            for word, each in ENCODERS.items()
            if word in words
            for call in each.encode(weight)
            for way in ways(call, self.block, weigh)
        ]
        return found if weigh else promising(found)


def excerpt(tensor: ir.TensorProtocol) -> np.ndarray | None:
    """Return a small part of a `tensor` that is large in a file, or yet to be computed; None for others."""
    if isinstance(tensor, ComputedTensor) and tensor.excerpt is not None:
        return tensor.excerpt()
    if not isinstance(tensor, MappedTensor) or tensor.size < HUGE:
        return None
    rows = len(tensor.shape) > 1 and tensor.shape.numpy()[0]
    count = max(1, LARGE * rows // tensor.size) if rows else LARGE
    kept = np.linspace(0, (rows or tensor.size) - 1, count, dtype=np.int64)
    return apply(tensor, lambda whole: whole[kept])


def form(tensor: ir.TensorProtocol) -> tuple[ir.DataType, tuple[int, ...]]:
    """Return what tensors that are tied have in common without a look at their values."""
    return tensor.dtype, tuple(tensor.shape.numpy())


class Key(NamedTuple):
    """A constant, before and after the operator set is raised: its name, and which one of that name it is."""

    name: str
    place: int


def weights(model: ir.Model) -> dict[Key, tuple[ir.Value, ir.TensorProtocol]]:
    """Return the constants of `model` and its subgraphs that may be weights, and their tensors."""
    found: dict[Key, tuple[ir.Value, ir.TensorProtocol]] = {}
    seen: Counter[str] = Counter()
    inside = {graph for each in model.functions.values() for graph in each.subgraphs()}
    for graph in graphs(model):
        if isinstance(graph, ir.Function) or graph in inside:
            continue
        constants = [node.outputs[0] for node in graph if node.op_type == "Constant"]
        for value in [*graph.initializers.values(), *constants]:
            tensor = constant(value)
            if tensor is not None and tensor.dtype in KINDS:
                name = value.name or ""
                found[Key(name, seen[name])] = value, tensor
                seen[name] += 1
    return found
