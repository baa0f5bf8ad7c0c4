"""How large the numbers of values get on calibration data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxcompress.base import Context

_AT_ONCE = 64  # values that leave the engine in one run


def largest(model: ir.Model, names: Sequence[str], context: Context) -> dict[str, float]:
    """Return the largest magnitude of each value of `names` on the calibration data of `context`.

    `names` are float values of the main graph of `model`. NaN and infinity don't count. Where there are no
    data, nothing is returned.
    """
    data, runtime = context.calibration, context.runtime
    found: dict[str, float] = {}
    if data is None or runtime is None:
        return found
    for start in range(0, len(names), _AT_ONCE):
        part = list(names[start : start + _AT_ONCE])
        runnable = runtime.patient().prepare(model, outputs=part)
        for done, feed in enumerate(data, 1):
            for name, values in runnable.run(feed).items():
                sizes = np.abs(values, out=values) if values.flags.writeable else np.abs(values)
                found[name] = max(found.get(name, 0.0), float(sizes.max(initial=0, where=np.isfinite(sizes))))
            context.progress(done, data.count, "calibrating")
    return found
