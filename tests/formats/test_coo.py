"""Sparse initializers: on demand only, and dense again when unpacked."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from models import model

from onnxcompress import Context
from onnxcompress.formats import ENCODERS, Weight
from onnxcompress.formats.unpack import Row, ledger, unpack
from onnxcompress.model import load, save, to_proto
from onnxcompress.passes import Encode

TEXT = """agraph (float[N, 64] x) => (float[N, 64] y) <float[64, 64] w = {}, float[64, 64] v = {}>
{ a = MatMul(x, w)  b = MatMul(a, v)  y = Add(b, a) }"""
DRAW = np.random.default_rng(0)
SPARSE = (DRAW.standard_normal((64, 64)) * (DRAW.random((64, 64)) < 0.05)).astype(np.float32)
SPARSE[SPARSE == 0] = 0
SPARSE[3, 3], SPARSE[4, 4], SPARSE[5, 5] = -0.0, 1e-45, np.inf
FEEDS = {"x": DRAW.standard_normal((2, 64)).astype(np.float32)}


def made() -> ir.Model:
    target = model(TEXT)
    for name in "wv":
        target.graph.initializers[name].const_value = ir.tensor(SPARSE, name=name)
    return target


def outputs(target: ir.Model) -> np.ndarray:
    """What onnxruntime makes of a model that the full check of onnx would reject."""
    session = onnxruntime.InferenceSession(
        to_proto(target).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, FEEDS)[0]


def test_weights_become_sparse_initializers_that_the_engine_reads(tmp_path: Path) -> None:
    target = made()
    before = outputs(target)
    result = Encode(format="coo").call(target, Context())
    assert [record.what for record in result.records if record.changed] == ["encoded", "encoded"]
    np.testing.assert_array_equal(outputs(target), before)
    save(target, tmp_path / "a.onnx")
    proto = onnx.load(tmp_path / "a.onnx")
    assert sorted(each.values.name for each in proto.graph.sparse_initializer) == ["v", "w"]
    assert not proto.functions
    rows = {row.name: row for row in ledger(tmp_path / "a.onnx")}
    assert rows["w"] == Row("w", "COO", 12 * np.count_nonzero(SPARSE.view(np.uint32)))
    assert sum(row.bytes for row in rows.values()) == (tmp_path / "a.onnx").stat().st_size
    again = load(tmp_path / "a.onnx")
    assert not Encode(format="coo").call(again, Context()).modified
    assert sorted(unpack(again, sparse=True)) == ["v", "w"]
    assert again.graph.initializers["w"].const_value.numpy().tobytes() == SPARSE.tobytes()  # type: ignore[union-attr]


def test_it_is_never_chosen_unasked() -> None:
    one = np.zeros((64, 64), np.float32)
    one[3, 4] = 1.5
    target = made()
    for name in "wv":
        target.graph.initializers[name].const_value = ir.tensor(one, name=name)
    records = Encode().call(target, Context()).records
    assert all("COO" not in str(record.numbers.get("formats", "")) for record in records)
    assert list(ENCODERS["coo"].encode(Weight(one)))


def test_arrays_that_would_not_shrink_are_left() -> None:
    for shape in ((), (0,), (300,), (300, 300)):
        assert not list(ENCODERS["coo"].encode(Weight(np.zeros(shape, np.float32))))
    assert not list(ENCODERS["coo"].encode(Weight(np.ones((30, 30), np.float32))))
    one = np.zeros((300, 300), np.float32)
    one[0, 0] = 1
    assert not list(ENCODERS["coo"].encode(Weight(one)))
