"""Which way to compute a product with a weight in blocks: by latency and error measured here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxcompress.base import Context, Number
from onnxcompress.blocks import Blocks
from onnxcompress.blockwise import FLOAT, PORTABLE, Form, alone, set_level, sizes, write
from onnxcompress.edit import Edit
from onnxcompress.errors import CompressError
from onnxcompress.layers import Layer
from onnxcompress.measure import Latency
from onnxcompress.model import clone, materialise
from onnxcompress.parts import Stopwatch, faster

EXCERPT = 2**22  # elements of a weight that tell what rounding activations does
ROWS = 256  # of activations, at most, that products are timed with


@dataclass
class Fastest:
    """Chooses among `forms` for the engine of `context`, measuring for about `seconds` in all.

    The first of `forms` is taken where there is no engine; without times, the first that is exact enough.
    Rounding may make a relative difference of `max_error`; with `only_faster`, what isn't faster than the
    float product is refused.
    """

    context: Context
    forms: Sequence[Form]
    max_error: float
    only_faster: bool
    seconds: float
    _watch: Stopwatch | None = field(default=None, init=False)
    _known: dict[tuple[object, ...], dict[Form, Latency]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if self.context.runtime is not None:
            self._watch = Stopwatch(self.context, self.seconds)

    def best(
        self, layer: Layer, blocks: Blocks, rows: np.ndarray | None, numbers: dict[str, Number]
    ) -> Form | str:
        """Return the form to write `layer` in, or why it must stay; `numbers` are filled in.

        `rows` [rows, inputs] are what the layer reads; None: as many as its input declares, or one, drawn.
        """
        if self._watch is None or not self._open:
            return self.forms[0]
        given = _drawn(layer, self.context.seed) if rows is None else np.ascontiguousarray(rows)
        found: dict[Form, Latency | None] = dict.fromkeys(self.forms)
        try:
            found.update(self._measured(layer, blocks, given))
        except CompressError as error:
            if self.only_faster:
                return str(error)
        for form, latency in sorted(found.items(), key=lambda pair: pair[1].ratio if pair[1] else 0.0):
            off = 0.0 if form is FLOAT else self._error(layer, blocks, form, given)
            if off <= self.max_error:
                numbers.update({} if form is FLOAT else {"error": off})
                numbers.update(latency.numbers if latency else {})
                slow = self.only_faster and latency is not None and not faster(latency)
                return "not faster in blocks" if slow else form
        numbers["error"] = off
        return f"rounding its input makes a relative difference above {self.max_error:g}"

    @property
    def _open(self) -> bool:
        """Whether there is anything to find out."""
        return self.only_faster or any(form is not FLOAT for form in self.forms)

    def _measured(self, layer: Layer, blocks: Blocks, rows: np.ndarray) -> dict[Form, Latency]:
        """Return the latency of each form, the float product being 1; the same for products of one shape."""
        assert self._watch is not None
        turned = layer.op, layer.node.attributes.get_int("transB", 0)
        key = *turned, layer.tensor.dtype, layer.shape, rows.shape, blocks
        if key not in self._known:
            whole = alone(layer, len(rows))
            part = _part(whole, blocks, self.forms[0])
            parts = [part, *(set_level(part, form) for form in self.forms[1:])]
            found = self._watch.times([whole, *parts], {"x": rows})[1:]
            self._known[key] = dict(zip(self.forms, found, strict=True))
        return self._known[key]

    def _error(self, layer: Layer, blocks: Blocks, form: Form, rows: np.ndarray) -> float:
        """Return how far `layer` in `form`, which may round `rows`, is from the product of floats.

        0 where the engine can't run them.
        """
        assert self.context.runtime is not None
        engine = type(self.context.runtime).make(threads=self.context.threads)
        whole = alone(layer, len(rows), EXCERPT)
        part = _part(whole, blocks, form)
        floats = _part(whole, blocks, FLOAT) if form is PORTABLE else set_level(part, FLOAT)
        try:
            exact, found = (
                engine.prepare(each).run({"x": rows})["y"].astype(np.float64) for each in (floats, part)
            )
        except CompressError:
            return 0.0
        size = float(np.linalg.norm(exact))
        return float(np.linalg.norm(found - exact)) / size if size else 0.0


def _part(whole: ir.Model, blocks: Blocks, form: Form) -> ir.Model:
    """Return the one product of `whole` in `form`."""
    part = clone(whole)
    write(Edit(part), [Layer(part.graph[0], 1)], blocks, form)
    materialise(part)
    return part


def _drawn(layer: Layer, seed: int) -> np.ndarray:
    """Return normally distributed rows for `layer`, as many as its input declares; open sizes count as 1."""
    value = layer.node.inputs[0]
    dims = value.shape[:-1] if value is not None and value.shape is not None else ()
    count = int(np.prod([dim for dim in dims if isinstance(dim, int)], dtype=np.int64))
    draw = np.random.default_rng(seed)
    return draw.standard_normal((max(1, min(count, ROWS)), sizes(layer)[0])).astype(
        layer.tensor.dtype.numpy()
    )
