"""Arithmetic on panels: parts of a weight cut into blocks, [blocks, size, outputs] of float16 or float32."""

from __future__ import annotations

import numpy as np

_HALF = np.array(0x8FFFE000, np.uint32).view(np.int32)  # sign, exponent and fraction of float16 in float32
_TURNED = 512  # columns that are made rows together


def turned(part: np.ndarray) -> np.ndarray:
    """Return `part` [inputs, outputs], of which each column lies together, row by row."""
    result = np.empty(part.shape, part.dtype)
    for start in range(0, part.shape[1], _TURNED):
        near = slice(start, start + _TURNED)
        result[:, near] = part[:, near].T.copy().T
    return result


def reciprocal(scale: np.ndarray) -> np.ndarray:
    """Return 1 / `scale` [float32], 0 for 0."""
    return np.float32(1) / np.where(scale == 0, np.float32(np.inf), scale)


def extremes(panel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and largest of 0 and the numbers of each block of `panel`: float32 [blocks, outputs].

    Bits of larger numbers of one sign are larger integers, which numpy compares faster: as integers with a
    sign the positive ones are above the others, without one the negative ones.
    """
    width = panel.dtype.itemsize
    highest, lowest = (panel.view(f"{kind}{width}").max(axis=1).view(panel.dtype) for kind in "iu")
    low, high = (widened(each) for each in (lowest, highest))
    return np.minimum(low, 0), np.maximum(high, 0)


def widened(numbers: np.ndarray) -> np.ndarray:
    """Return `numbers` [any shape, float16 or float32, finite] as float32.

    Of float16, bits are put where float32 has them, which numpy does by one number at a time: the exponent is
    too small by 112 then.
    """
    if numbers.dtype != np.float16:
        return numbers
    bits = numbers.view(np.int16).astype(np.int32)
    bits <<= 13
    bits &= _HALF
    result = bits.view(np.float32)
    result *= np.float32(2.0**112)
    return result


def joined(steps: np.ndarray, zero: np.ndarray, bits: int) -> np.ndarray:
    """Return ``pack(steps + zero, bits, axis=1)`` of float32 [blocks, size, outputs] that fill bytes.

    `zero` is [blocks, outputs]. What is below zero on the way is what it is modulo 256.
    """
    each = 8 // bits
    whole = steps.astype(np.int16).astype(np.uint8)
    result = whole[:, ::each]
    for place in range(1, each):
        result = result + whole[:, place::each] * np.uint8(1 << place * bits)
    ones = np.uint8(sum(1 << place * bits for place in range(each)))
    return result + (zero.astype(np.uint8) * ones)[:, None]


def energy(numbers: np.ndarray) -> float:
    """Return the sum of squares of `numbers` [any shape, float32]."""
    flat = numbers.ravel()
    with np.errstate(over="ignore"):
        found = float(np.dot(flat, flat))
    if 1e-30 < found < np.inf or not flat.any():
        return found
    wide = flat.astype(np.float64)  # squares are too small or too large for float32
    return float(np.dot(wide, wide))


def one_magnitude(panel: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """Return which blocks of `panel` hold nothing but zeros and numbers as large as `largest`."""
    same = _met(panel[:, 0], largest)
    if 2 * np.count_nonzero(same) > same.size:
        return np.stack([_met(*each).all(axis=0) for each in zip(panel, largest, strict=True)])
    places = np.nonzero(same)  # most blocks of many magnitudes are out by their first number
    same[places] = _met(panel[places[0], :, places[1]], largest[places][:, None]).all(axis=1)
    return same


def _met(numbers: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """Return which `numbers` [float16 or float32] are 0 or of the magnitude of `largest` [float32]."""
    kind = f"u{numbers.dtype.itemsize}"  # the sign is the first bit, which is shifted out
    sizes = numbers.view(kind) << 1
    return np.asarray((sizes == largest.astype(numbers.dtype).view(kind) << 1) | (sizes == 0))
