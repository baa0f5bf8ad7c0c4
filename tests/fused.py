"""Small networks, and what fuse makes of them."""

from pathlib import Path

import models
import numpy as np
import onnx_ir as ir

from onnxcompress import Context
from onnxcompress.base import Record
from onnxcompress.model import clone
from onnxcompress.passes import Fuse

TESTDATA = Path(__file__).parent.parent / "testdata"


NORM = ", float[4] scale = {}, float[4] shift = {}, float[4] mean = {}, float[4] variance = {1, 2, 1, 3}"


def image(body: str, weights: str = "", channels: int = 4, size: int = 8) -> ir.Model:
    """A network from x [N, channels, size, size] to y."""
    text = f"net (float[N, {channels}, {size}, {size}] x) => (float[N, C, H, W] y) <{weights}> {{ {body} }}"
    return models.model(text)


def rows(body: str, weights: str = "", dims: str = "N, 8") -> ir.Model:
    """A network from x [N, 8], or of other dims, to y."""
    rank = len(dims.split(","))
    outputs = ", ".join("NMK"[:rank])
    return models.model(f"net (float[{dims}] x) => (float[{outputs}] y) <{weights}> {{ {body} }}")


def draw(made: ir.Model, seed: int = 1) -> dict[str, np.ndarray]:
    """Return random inputs of `made`, three samples where that is open."""
    found = {}
    for value in made.graph.inputs:
        assert value.shape is not None
        dims = tuple(dim if isinstance(dim, int) else 3 for dim in value.shape)
        array = np.random.default_rng(seed).normal(0, 1, dims)
        assert value.dtype is not None
        found[value.name or ""] = array.astype(value.dtype.numpy())
    return found


def fuse(
    made: ir.Model, when: str = "always", tolerance: float = 1e-4, context: Context | None = None
) -> list[Record]:
    """Fuse `made`, check that its outputs stay and that a second run is idle, and return the records."""
    feeds = draw(made)
    expected = models.run(clone(made), feeds)
    records = Fuse(when=when).call(made, context or Context()).records
    for before, after in zip(expected, models.run(made, feeds), strict=True):
        assert before.dtype == after.dtype
        assert before.shape == after.shape
        assert np.abs(after - before).max(initial=0) <= tolerance * np.abs(before).max(initial=1e-9)
    again = Fuse(when=when).call(made, context or Context())
    assert not again.modified
    left = [record.what for record in records if not record.changed]
    assert [record.what for record in again.records] == (left or ["nothing to fuse"])
    return records


def operators(made: ir.Model) -> str:
    """Return the operators of `made` in their order."""
    return " ".join(node.op_type for node in made.graph)
