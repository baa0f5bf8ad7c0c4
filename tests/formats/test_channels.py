"""Formats by channel find the channels and groups that weights were made with."""

import numpy as np
import pytest
from encoded import BFLOAT16, computed, grouped, offset, powers, same, scaled
from models import model, run

from onnxcompress import Context
from onnxcompress.formats import ENCODERS, Weight
from onnxcompress.formats.channels import back, grids, rows
from onnxcompress.formats.storing import Way, ways
from onnxcompress.passes import Cluster, Encode


@pytest.mark.parametrize("shape", [(7,), (), (4, 6), (5, 3, 3, 3), (2, 30, 40), (1, 1, 20, 20)])
def test_every_grid_gives_the_array_back(shape: tuple[int, ...]) -> None:
    array = np.arange(int(np.prod(shape))).reshape(shape)
    for grid in grids(shape):
        matrix = rows(array, grid)
        np.testing.assert_array_equal(back(matrix, grid), array.reshape(-1))
        np.testing.assert_array_equal(rows(array, grid, 2), matrix[:2])


@pytest.mark.parametrize(
    ("weight", "grid", "group"),
    [
        (grouped(1, (40, 32, 3, 3), 0, 1, 16), (40, 288, 1, 1), 1),
        (grouped(2, (43, 32, 3, 3), 0, 5, 32), (43, 288, 1, 1), 5),
        (grouped(3, (32, 24, 5, 5), 1, 1, 16), (1, 32, 24, 25), 1),
        (grouped(4, (200, 60), 1, 12, 32), (1, 200, 60, 1), 12),
        (grouped(5, (128, 1, 3, 3), 0, 16, 32), (128, 9, 1, 1), 16),
        (grouped(6, (60, 400), 0, 6, 31, 0.1), (60, 400, 1, 1), 6),
        (grouped(7, (4, 100, 32), 2, 1, 8), (1, 400, 32, 1), 1),
    ],
)
def test_groups_of_channels_are_found(weight: np.ndarray, grid: tuple[int, ...], group: int) -> None:
    for call in ENCODERS["codebooks"].encode(Weight(weight)):
        assert (call.attributes["grid"], call.attributes["group"]) == (grid, group)
    codebook = min((each.bytes for each in smallest("codebook", weight)), default=weight.nbytes)
    assert min(each.bytes for each in smallest("codebooks", weight)) < codebook


def smallest(word: str, weight: np.ndarray) -> list[Way]:
    return [way for call in ENCODERS[word].encode(Weight(weight)) for way in ways(call, 64)]


@pytest.mark.parametrize(
    "weight",
    [
        np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        for shape in ((64, 900), (64, 9), (9,))
    ],
)
def test_plain_weights_are_no_case_for_formats_by_channel(weight: np.ndarray) -> None:
    for word in ("codebooks", "affine", "logscale"):
        assert not list(ENCODERS[word].encode(Weight(weight)))


@pytest.mark.parametrize(
    ("word", "weight"),
    [
        ("affine", scaled(1, (50, 90), 0, 8)),
        ("affine", scaled(2, (50, 90), 1, 8)),
        ("affine", scaled(3, (64, 1, 3, 3), 0, 8)),
        ("affine", scaled(4, (50, 90), None, 3, np.float16)),
        ("affine", scaled(5, (50, 90), 0, 4, BFLOAT16)),
        ("affine", offset(6, (30, 200))),
        ("logscale", powers(7, (40, 90), 0.8)),
        ("logscale", powers(8, (40, 90), 0.8, np.float16) * np.float16(2**-2)),
        ("logscale", powers(9, (40, 90), 0.8) * np.float32(2**-100)),
    ],
)
def test_scales_are_found_and_every_bit_is_kept(word: str, weight: np.ndarray) -> None:
    found = smallest(word, weight)
    assert min(each.bytes for each in found) < 1.2 * weight.size + 500
    assert all(same(computed(each.make()), weight) for each in found)


@pytest.mark.parametrize(
    ("word", "change"),
    [(word, change) for word in ("affine", "logscale") for change in (np.nan, np.inf, 0.123)]
    + [("affine", -0.0)],
)
def test_one_element_that_does_not_fit_is_enough_for_another_format(word: str, change: float) -> None:
    weight = scaled(1, (50, 90), 0, 8) if word == "affine" else powers(7, (50, 90), 0.8)
    weight[49, 89] = change
    assert not list(ENCODERS[word].encode(Weight(weight)))


@pytest.mark.parametrize(("scope", "group"), [("channel", 1), ("group", 3)])
def test_what_cluster_makes_by_channel_is_stored_by_channel(scope: str, group: int) -> None:
    target = model("agraph (float[N, 96] x) => (float[N, 40] y) <float[96, 40] w = {}> { y = MatMul(x, w) }")
    Cluster(bits=3, scope=scope, group=group, min_size=0).call(target, Context())
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 96)).astype(np.float32)}
    before = run(target, feeds)
    result = Encode().call(target, Context())
    assert "Codebooks" in str(result.records[0].numbers["formats"])
    np.testing.assert_array_equal(run(target, feeds)[0], before[0])
