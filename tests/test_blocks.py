import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcompress.blocks import BITS, SIZES, Blocks, expand, pack, unpack

shapes = st.tuples(st.integers(1, 70), st.integers(1, 9))


def drawn(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def restored(blocks: Blocks, weight: np.ndarray) -> np.ndarray:
    """The weight as MatMulNBits reads it from its packed form."""
    fit = blocks.fit(weight)
    packed = blocks.store(weight, fit).steps
    zero = blocks.middle if fit.zero is None else fit.zero
    steps = unpack(packed, blocks.bits, blocks.size)
    return expand(steps, fit.scale.astype(np.float32), zero, len(weight))


@given(st.sampled_from(BITS), st.lists(st.integers(0, 5), min_size=0, max_size=3), st.integers(0, 40))
def test_packing_round_trips_with_odd_tails(bits: int, outer: list[int], count: int) -> None:
    steps = np.random.default_rng(count).integers(0, 1 << bits, (*outer, count)).astype(np.uint8)
    packed = pack(steps, bits)
    assert packed.shape == (*outer, -(-count * bits // 8))
    np.testing.assert_array_equal(unpack(packed, bits, count), steps)


def test_packed_numbers_lie_in_the_low_bits_first() -> None:
    assert pack(np.array([1, 2, 3], np.uint8), 4).tolist() == [0x21, 0x03]
    assert pack(np.array([1, 2, 3, 0, 2], np.uint8), 2).tolist() == [0b00111001, 2]


@given(shapes, st.sampled_from(BITS), st.sampled_from(SIZES), st.booleans(), st.booleans(), st.booleans())
def test_no_number_is_further_off_than_its_blocks_step(
    shape: tuple[int, int], bits: int, size: int, symmetric: bool, turned: bool, half: bool
) -> None:
    weight = drawn(shape[::-1]).T if turned else drawn(shape)
    blocks = Blocks(bits, size, symmetric, dtype=np.float16 if half else np.float32)
    steps = np.abs(blocks.fit(weight).scale.astype(np.float32))  # [outputs, blocks]
    bound = np.repeat(steps, size, axis=1)[:, : len(weight)].T
    # the largest number may be a whole step above the highest, and a zero be rounded, too
    assert (np.abs(restored(blocks, weight) - weight) <= 1.01 * bound + 1e-6).all()


@given(shapes, st.sampled_from(BITS), st.sampled_from(SIZES), st.booleans(), st.booleans())
def test_weights_of_one_magnitude_and_zeros_are_met_exactly(
    shape: tuple[int, int], bits: int, size: int, symmetric: bool, searched: bool
) -> None:
    magnitude = np.float32(
        2.0**-5
    )  # 7 and 127 steps of a power of two aren't exact, for rounding of the scale
    weight = np.sign(np.round(drawn(shape))) * magnitude
    blocks = Blocks(bits, size, symmetric, searched)
    np.testing.assert_allclose(restored(blocks, weight), weight, rtol=2e-7, atol=0)
    if bits == 2:
        np.testing.assert_array_equal(restored(blocks, weight), weight)
        assert blocks.store(weight, blocks.fit(weight)).snr == 999


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_searched_scale_loses_less_and_the_ratio_told_is_the_one_found(bits: int, symmetric: bool) -> None:
    weight = drawn((300, 70))
    told = []
    for searched in (False, True):
        blocks = Blocks(bits, 32, symmetric, searched)
        noise = float(np.square(restored(blocks, weight) - weight, dtype=np.float64).sum())
        snr = 10 * np.log10(float(np.square(weight, dtype=np.float64).sum()) / noise)
        told.append(blocks.store(weight, blocks.fit(weight)).snr)
        assert told[-1] == pytest.approx(snr, abs=1e-3)
    assert told[0] < told[1]


@pytest.mark.parametrize("scale", [0.0, 1e-45, 1e-38, 1e38])
@pytest.mark.parametrize("symmetric", [True, False])
def test_blocks_of_zeros_and_of_the_smallest_and_largest_numbers_stay_finite(
    scale: float, symmetric: bool
) -> None:
    weight = drawn((40, 5)) * np.float32(scale)
    found = restored(Blocks(4, 16, symmetric), weight)
    assert np.isfinite(found).all()
    assert np.abs(found - weight).max() <= max(scale, 1e-37)


def test_half_precision_weights_are_cut_as_they_are() -> None:
    weight = drawn((33, 3)).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(
        restored(Blocks(8, 16), weight), restored(Blocks(8, 16), weight.astype(np.float32))
    )


@given(shapes, st.sampled_from(BITS), st.booleans(), st.booleans(), st.booleans())
def test_finding_scales_and_steps_at_once_gives_the_same(
    shape: tuple[int, int], bits: int, symmetric: bool, searched: bool, packed: bool
) -> None:
    weight, blocks = drawn(shape), Blocks(bits, 16, symmetric, searched)
    fit, stored = blocks.quantize(weight, packed)
    alone = blocks.fit(weight)
    np.testing.assert_array_equal(fit.scale, alone.scale)
    np.testing.assert_array_equal(fit.zero, alone.zero)
    other = blocks.store(weight, alone, packed)
    np.testing.assert_array_equal(stored.steps, other.steps)
    assert stored.snr == other.snr


@pytest.mark.parametrize("bits", BITS)
def test_half_precision_is_read_as_it_is(bits: int) -> None:
    patterns = np.arange(2**16, dtype=np.uint16).view(np.float16)
    weight = patterns[np.isfinite(patterns)].reshape(-1, 16)
    for each in (weight, weight.T):
        plain, half = (Blocks(bits, 16).quantize(given) for given in (each.astype(np.float32), each))
        np.testing.assert_array_equal(half[0].scale, plain[0].scale)
        np.testing.assert_array_equal(half[1].steps, plain[1].steps)
        np.testing.assert_array_equal(
            half[1].steps, pack(Blocks(bits, 16).store(each, half[0], packed=False).steps, bits)
        )
