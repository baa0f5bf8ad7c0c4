"""Weights kept as int8: expanded to float when the engine loads the model, or multiplied as they are.

Expansion is Cast and Mul, not DequantizeLinear: onnxruntime folds the former when a session is created (the
layer then runs at its usual speed) and keeps the latter, to be computed at every run. The product is
written the way onnxruntime fuses into one DynamicQuantizeMatMul; in other engines it runs as the standard
operators it is made of.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxcompress.edit import Edit, drop, home, replace_uses, substitute
from onnxcompress.layers import Layer
from onnxcompress.model import lazy
from onnxcompress.quantize import FULL, to_int8, weight_scale

_FLOAT = ir.DataType.FLOAT
DYNAMIC_OPSET = 11  # DynamicQuantizeLinear


@dataclass
class Integers:
    """Rewrites the weights of one model; what is made on the way is shared by all that read it."""

    edit: Edit
    _activations: dict[tuple[ir.Value, ir.Graph | None], ir.Node] = field(default_factory=dict)
    _constants: dict[tuple[ir.Graph, str, tuple[int, ...], bytes], ir.Value] = field(default_factory=dict)

    def constant(self, graph: ir.Graph, wanted: str, content: np.ndarray) -> ir.Value:
        """Return a constant of `graph` that holds `content`, which calls with equal content share.

        For scales and zero points, many of which are alike.
        """
        key = (graph, content.dtype.str, content.shape, content.tobytes())
        if key not in self._constants:
            self._constants[key] = self.edit.constant(graph, wanted, content)
        return self._constants[key]

    def store(
        self,
        readers: list[Layer],
        dynamic: Collection[Layer],
        per_channel: bool,
        levels: int = FULL,
        clip: bool = False,
        then: Callable[[np.ndarray, np.ndarray], None] | None = None,
    ) -> list[Layer]:
        """Keep the weight that all of `readers` read as int8; return those that multiply integers.

        These are the readers among `dynamic` that can; all other nodes that read the weight get it expanded.
        Integers that are multiplied are of `levels` steps on each side. With `clip` scales are those
        that round best. `then` is handed weight and scale, where integers aren't multiplied. Reads the weight
        once, for its scale.
        """
        value, tensor = readers[0].weight, readers[0].tensor
        products = [layer for layer in readers if layer in dynamic and multiplies_integers(layer)]
        products = [
            layer for layer in products if layer.node.graph not in self.edit.bodies
        ]  # of opsets of their own
        products = [layer for layer in products if layer.channel_axes == products[0].channel_axes]
        axes = (products or readers)[0].channel_axes if per_channel else ()
        levels = levels if products else FULL
        weight = readers[0].value()
        scale = weight_scale(weight, axes, levels, clip)
        if then is not None and not products:
            then(weight, scale)
        others = len(value.uses()) > len(products) or value.is_graph_output()
        turn = bool(products) and not others and all(_transposed(layer) for layer in products)
        stored = self.stored(value, tensor, scale, levels, turn)
        for layer in products:
            turned = stored if turn or not _transposed(layer) else self._turn(stored, value)
            self._product(layer, turned, scale)
        if others:
            self.expand(value, stored, scale, tensor.dtype)
        drop(value)
        return products

    def stored(
        self,
        value: ir.Value,
        tensor: ir.TensorProtocol,
        scale: np.ndarray,
        levels: int = FULL,
        turn: bool = False,
    ) -> ir.Value:
        """Return a constant with `tensor`, what `value` holds, in steps of `scale`; transposed if `turn`."""
        dims = tuple(tensor.shape.numpy())

        def integers(weight: np.ndarray) -> np.ndarray:
            steps = to_int8(weight, scale, levels)
            return np.ascontiguousarray(steps.T) if turn else steps

        shape = tuple(reversed(dims)) if turn else dims
        content = lazy(tensor, integers, dtype=ir.DataType.INT8, shape=shape)
        return self.edit.constant(home(value), f"{value.name}_int8", content)

    def zeros(self, shape: ir.Shape | None) -> ir.Value:
        """Return an int8 constant of the main graph that holds zeros: the zero points of weights.

        They may be left out by the standard, but onnxruntime's rule for Gemm wants them.
        """
        assert shape is not None
        return self.constant(self.edit.model.graph, "zero_points", np.zeros(tuple(shape.numpy()), np.int8))

    def expand(self, value: ir.Value, stored: ir.Value, scale: np.ndarray, dtype: ir.DataType) -> None:
        """Let all that reads `value` read ``stored * scale`` instead."""
        graph = home(value)
        steps = self.constant(graph, f"{value.name}_scale", scale)
        attribute = {"to": int(_FLOAT)}
        cast = self.edit.node(
            "Cast", [stored], f"{value.name}_cast", attribute, dtype=_FLOAT, shape=stored.shape
        )
        scaled = self.edit.node(
            "Mul", [cast.outputs[0], steps], f"{value.name}_expanded", dtype=_FLOAT, shape=stored.shape
        )
        nodes = [cast, scaled]
        if dtype != _FLOAT:
            last = self.edit.node(
                "Cast",
                nodes[-1].outputs,
                f"{value.name}_{dtype}",
                {"to": int(dtype)},
                shape=stored.shape,
                dtype=dtype,
            )
            nodes.append(last)
        self.edit.after(value, nodes, graph)
        replace_uses(value, nodes[-1].outputs[0])

    def _turn(self, stored: ir.Value, value: ir.Value) -> ir.Value:
        """Return `stored` [n, k] as [k, n], transposed when the model is loaded."""
        node = self.edit.node(
            "Transpose", [stored], f"{value.name}_turned", {"perm": [1, 0]}, dtype=stored.dtype
        )
        self.edit.after(value, [node], home(value))
        return node.outputs[0]

    def _product(self, layer: Layer, stored: ir.Value, scale: np.ndarray) -> None:
        """Put an integer product with `stored` [..., k, n] in place of the MatMul or Gemm of `layer`."""
        node, edit = layer.node, self.edit
        graph, name, output = node.graph, layer.name, node.outputs[0]
        assert isinstance(graph, ir.Graph)
        assert node.inputs[0] is not None
        alpha = node.attributes.get_float("alpha", 1.0)
        columns = scale.reshape(-1) if len(layer.shape) == 2 else scale  # [n], or [..., 1, n] for a stack
        steps = self.constant(graph, f"{name}_scale", (columns * np.float32(alpha)).astype(np.float32))
        quantized, its_scale, zero_point = self._quantized(node.inputs[0], graph).outputs
        sums = edit.node(
            "MatMulInteger", [quantized, stored, zero_point], f"{name}_sums", dtype=ir.DataType.INT32
        )
        cast = edit.node("Cast", sums.outputs, f"{name}_cast", {"to": int(_FLOAT)}, dtype=_FLOAT)
        factor = edit.node("Mul", [its_scale, steps], f"{name}_factor", dtype=_FLOAT)
        product = edit.node("Mul", [cast.outputs[0], factor.outputs[0]], f"{name}_int8", dtype=_FLOAT)
        nodes = [sums, cast, factor, product]
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        beta = node.attributes.get_float("beta", 1.0)
        if bias is not None and beta != 1.0:
            factors = self.constant(graph, f"{name}_beta", np.asarray(beta, np.float32))
            nodes.append(edit.node("Mul", [bias, factors], f"{name}_bias", dtype=_FLOAT))
            bias = nodes[-1].outputs[0]
        if bias is not None:
            nodes.append(edit.node("Add", [product.outputs[0], bias], f"{name}_biased", dtype=_FLOAT))
        graph.insert_before(node, nodes)
        substitute(output, nodes[-1].outputs[0])

    def _quantized(self, value: ir.Value, graph: ir.Graph) -> ir.Node:
        """Return the node that quantizes the activation `value` in `graph`, made once behind its producer."""
        key = (value, graph)
        if key not in self._activations:
            node = self.edit.node("DynamicQuantizeLinear", [value], f"{value.name}_uint8", outputs=3)
            for output, kind in zip(
                node.outputs, (ir.DataType.UINT8, _FLOAT, ir.DataType.UINT8), strict=True
            ):
                output.dtype = kind
            self.edit.after(value, [node], graph)
            self._activations[key] = node
        return self._activations[key]


def multiplies_integers(layer: Layer) -> bool:
    """Return whether the node of `layer` can be an integer product with a quantized activation."""
    if layer.position != 1 or layer.tensor.dtype != _FLOAT or layer.op not in ("MatMul", "Gemm"):
        return False
    return len(layer.shape) >= 2 and not layer.node.attributes.get_int("transA", 0)


def _transposed(layer: Layer) -> bool:
    return bool(layer.node.attributes.get_int("transB", 0))
