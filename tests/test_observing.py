import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import models
import numpy as np
import onnx_ir as ir
import pytest

from onnxcompress.edit import Edit
from onnxcompress.errors import UsageError
from onnxcompress.model import clone
from onnxcompress.observing import by_name, pooled, watched
from onnxcompress.runtimes.interpreter import Interpreter
from onnxcompress.runtimes.onnxruntime import OnnxRuntime, Session
from onnxcompress.target import processors

MODEL = models.model("""net (float[N, 2, 6, 6] x) => (float[N, 3, 2, 2] y)
<float[3, 2, 3, 3] w = {}, float[3, 3, 3, 3] v = {}>
{
    c = Conv(x, w)
    r = Relu(c)
    y = Conv(r, v)
}""")


def feeds(count: int) -> list[dict[str, np.ndarray]]:
    draw = np.random.default_rng(1)
    return [{"x": draw.standard_normal((2, 2, 6, 6)).astype(np.float32)} for _ in range(count)]


@dataclass
class Meeting:
    """onnxruntime, whose runs wait until two are under way."""

    name: ClassVar[str] = "meeting"
    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(2, timeout=20))

    def abreast(self) -> "tuple[Meeting, int]":
        return self, 2

    def prepare(self, model: ir.Model | Path, outputs: Sequence[str] | None = None) -> "Meeting.Run":
        return Meeting.Run(OnnxRuntime().prepare(model, outputs), self.barrier)

    @dataclass
    class Run:
        session: Session
        barrier: threading.Barrier

        def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            self.barrier.wait()
            return self.session.run(feeds)


def test_runs_meet_and_their_results_come_in_order() -> None:
    given = feeds(6)
    runnable = OnnxRuntime().prepare(MODEL, ["r", "y"])
    found = list(watched(MODEL, ["r", "y"], iter(given), Meeting()))  # type: ignore[arg-type]
    assert len(found) == 6
    for feed, arrays in zip(given, found, strict=True):
        for name, expected in runnable.run(feed).items():
            np.testing.assert_array_equal(arrays[name], expected)


@pytest.mark.parametrize("apart", [False, True])
def test_any_engine_is_watched_with_the_same_results(apart: bool) -> None:
    given = feeds(3)
    for first, second in zip(
        watched(MODEL, ["r"], given, OnnxRuntime(threads=3), apart=apart),
        watched(MODEL, ["r"], given, Interpreter(), apart=apart),
        strict=True,
    ):
        np.testing.assert_allclose(first["r"], second["r"], atol=1e-5)


def test_no_feeds_give_no_results() -> None:
    assert not list(watched(MODEL, ["r"], [], OnnxRuntime()))


def test_what_fails_in_a_run_reaches_the_caller() -> None:
    wrong = [{"x": np.zeros((2, 2, 6, 6), np.float32)}, {"x": np.zeros((2, 5, 6, 6), np.float32)}]
    with pytest.raises(UsageError, match="Expected: 2"):
        list(watched(MODEL, ["r"], wrong, OnnxRuntime(threads=2)))


@pytest.mark.parametrize(("threads", "each", "abreast"), [(1, 1, 1), (2, 1, 2), (3, 1, 2), (8, 4, 2)])
def test_two_runs_share_the_threads(threads: int, each: int, abreast: int) -> None:
    engine, count = OnnxRuntime(threads=threads).abreast()
    assert (engine.threads, count) == (each, abreast)
    assert not engine.spinning
    assert OnnxRuntime().abreast()[1] == min(processors(), 2)


def test_channels_of_images_are_pooled_where_they_are_computed() -> None:
    made = clone(MODEL)
    edit, known = Edit(made), by_name(made.graph)
    names = {
        (name, kind): pooled(edit, known[name], kind)
        for name in ("x", "r")
        for kind in ("Max", "Average", "Magnitude")
    }
    assert pooled(edit, known["y"], "Max") == "y"  # no convolution reads it
    feed = feeds(1)[0]
    values = {"x": feed["x"], **OnnxRuntime().prepare(MODEL, ["r"]).run(feed)}
    found = OnnxRuntime().prepare(made, list(dict.fromkeys(names.values()))).run(feed)
    for (name, kind), output in names.items():
        array = np.abs(values[name]) if kind == "Magnitude" else values[name]
        expected = array.mean(axis=(2, 3)) if kind == "Average" else array.max(axis=(2, 3))
        np.testing.assert_allclose(found[output].reshape(expected.shape), expected, atol=1e-6)
