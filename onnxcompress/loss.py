"""How far a weight is from the one it stands for."""

import math
import sys

import numpy as np

_CHUNK = 1 << 20


def decibels(weight: np.ndarray, result: np.ndarray) -> float:
    """Return the signal-to-noise ratio, in dB, of `result` in place of `weight` [its shape, not all 0]."""
    peak = float(np.abs(weight).max())
    signal = noise = 0.0
    before, after = weight.reshape(-1), result.reshape(-1)
    for start in range(0, weight.size, _CHUNK):
        exact = before[start : start + _CHUNK].astype(np.float64) / peak
        signal += float(exact @ exact)
        exact -= after[start : start + _CHUNK].astype(np.float64) / peak
        noise += float(exact @ exact)
    return 10 * (math.log10(signal) - math.log10(max(noise, sys.float_info.min)))
