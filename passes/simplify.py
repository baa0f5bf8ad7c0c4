"""Clean-up: constants folded, nodes fused, dead and duplicate ones dropped."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
import onnx_ir.passes.common as common

from onnxcompress.base import Context, Effect, Pass, Result, option
from onnxcompress.edit import drop, drop_identities, replace_uses, same_ports
from onnxcompress.errors import CompressError
from onnxcompress.layers import constant
from onnxcompress.model import IN_LINE_LIMIT, MappedTensor, graphs, load, to_proto, weight_bytes

# Expand, Tile and ConstantOfShape stay nodes where folding them would store more than this.
FOLD_LIMIT = "1KB"
# Each of these draws anew, which onnxsim's merging of equal nodes overlooks.
RANDOM = {
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
}


@dataclass(frozen=True, kw_only=True)
class Simplify(Pass):
    """Fold constants, fuse what is one operation, drop what nothing reads, merge what is there twice.

    Before: ``b = BatchNormalization(Conv(x, W), ...); y = Identity(b)``
    After:  ``y = Conv(x, W', bias)``

    onnxsim does the first half, a clean-up with parts of onnx_ir's the second. Constants that are cheap to
    compute and large to store stay computed. A model above 2 GB gets the clean-up alone: onnxsim needs it in
    one protobuf message. Source: the onnxsim and onnx_ir projects.
    """

    name: ClassVar[str] = "simplify"
    effect: ClassVar[Effect] = Effect.EXACT

    fold: bool = option(True, "fold and fuse with onnxsim before the clean-up")

    def call(self, model: ir.Model, context: Context) -> Result:
        """Simplify `model` in place."""
        result = Result(model)
        before = census(model)
        with same_ports(model):
            if not self.fold:
                result.left("model", "folding is switched off")
            elif weight_bytes(model) > IN_LINE_LIMIT:
                result.left("model", "above 2 GB, so cleaned up without folding")
            elif name := packed_weight(model):
                result.left(name, "stored as integers, which folding would make floats again")
            else:
                replace_contents(model, folded(model))
            clean_up(model)
        after = census(model)
        for kind in sorted(before.keys() | after.keys()):
            if before[kind] != after[kind]:
                result.changed(
                    kind, f"{kind} {before[kind]} -> {after[kind]}", before=before[kind], after=after[kind]
                )
        if not result.modified:
            result.left("model", "nothing to simplify")
        return result


def packed_weight(model: ir.Model) -> str | None:
    """Return the name of a weight that is stored in 8 bits or fewer and cast when it is read, or None."""
    for graph in graphs(model):
        for node in graph:
            tensor = constant(node.inputs[0]) if node.op_type == "Cast" else None
            if tensor is not None and tensor.dtype.is_integer() and tensor.dtype.bitwidth <= 8:
                return node.inputs[0].name if node.inputs[0] is not None else None
    return None


def clean_up(model: ir.Model) -> None:
    """Drop from `model` what nothing reads, merge what is there twice, and make initializers of constants."""
    common.LiftConstantsToInitializersPass()(model)
    drop_identities(model)
    if all(map(comparable, model.graph)):
        common.CommonSubexpressionEliminationPass()(model)
    merge_initializers(model)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    common.RemoveUnusedOpsetsPass()(model)


def comparable(node: ir.Node) -> bool:
    """Return whether onnx_ir can tell if another node does the same as `node`."""
    kinds = ir.AttributeType
    plain = (kinds.INT, kinds.INTS, kinds.FLOAT, kinds.FLOATS, kinds.STRING, kinds.STRINGS, kinds.TENSOR)
    bodies = (kinds.GRAPH, kinds.GRAPHS)
    fits = all(attribute.type in (*plain, *bodies) for attribute in node.attributes.values())
    return fits and node.op_type != "Bernoulli"  # which it takes for no random one


def merge_initializers(model: ir.Model) -> None:
    """Let the readers of equal initializers of a graph read the first of them; the others go."""
    for graph in graphs(model):
        alike: dict[tuple[object, ...], list[ir.Value]] = {}
        for value in graph.initializers.values() if isinstance(graph, ir.Graph) else ():
            tensor = value.const_value
            if tensor is not None and not value.is_graph_input() and not value.is_graph_output():
                alike.setdefault((tensor.dtype, *tensor.shape.numpy()), []).append(value)
        for values in alike.values():
            first: dict[bytes, ir.Value] = {}
            for value in values if len(values) > 1 else ():
                kept = first.setdefault(digest(value), value)
                if kept is not value:
                    replace_uses(value, kept)
                    drop(value)


def digest(value: ir.Value) -> bytes:
    """Return a hash of what the initializer `value` holds."""
    tensor = value.const_value
    assert tensor is not None
    if isinstance(tensor, ir.StringTensor):
        return hashlib.sha256(repr(tensor.string_data()).encode()).digest()
    found = hashlib.sha256(tensor.tobytes()).digest()
    if isinstance(tensor, MappedTensor):
        tensor.release()
    return found


def folded(model: ir.Model) -> ir.Model:
    """Return `model` as onnxsim leaves it, standard operators only; CompressError where onnxsim fails."""
    import onnxsim  # takes a second to import

    skipped = ["fuse_attention"]  # into an operator of onnxruntime's own
    if any(kind in RANDOM for kind in census(model)):
        skipped.append("eliminate_common_subexpression")
    overridable = any(value.is_graph_input() for value in model.graph.initializers.values())
    try:
        proto, _ = onnxsim.simplify(
            to_proto(model),
            include_subgraph=True,
            skipped_optimizers=skipped,
            tensor_size_threshold=FOLD_LIMIT,
            mutable_initializer=overridable,
            initializers_as_constants=not overridable,
        )
    except (RuntimeError, ValueError) as error:
        raise CompressError(f"simplify: onnxsim failed: {error}") from error
    brought = {entry.domain for entry in proto.opset_import} - set(model.opset_imports)
    if brought:
        raise CompressError(f"simplify: onnxsim brought in operators of {', '.join(sorted(brought))}")
    return load(proto)


def replace_contents(model: ir.Model, other: ir.Model) -> None:
    """Make `model` hold the graph and the functions of `other`."""
    model.graph = other.graph
    model.ir_version = other.ir_version
    model.functions.clear()
    model.functions.update(other.functions)


def census(model: ir.Model) -> Counter[str]:
    """Return how many nodes of each operator, and how many initializers, `model` has."""
    counts: Counter[str] = Counter()
    for graph in graphs(model):
        counts.update(node.op_type for node in graph)
        if isinstance(graph, ir.Graph):
            counts["initializers"] += len(graph.initializers)
    return counts
