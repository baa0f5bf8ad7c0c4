"""Energy of an inference: what multiply-adds and moving data cost, in picojoules.

The defaults are those of a 45 nm process at 0.9 V (Horowitz, ISSCC 2014): a multiplication and an addition of
float32 take 3.7 + 0.9 pJ, of float16 1.1 + 0.4, of int8 0.2 + 0.1 (the sum being of 32 bits); reading a word
of 32 bits from a small SRAM takes 5 pJ, from DRAM 640. What matters is how they relate: newer processes take
less of each.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace

from onnxcompress.errors import UsageError, unknown

WORD = 4  # bytes


@dataclass(frozen=True)
class Energy:
    """Picojoules of a multiply-add by the bits of its operands, and of a word of 32 bits moved."""

    mac32: float = 4.6
    mac16: float = 1.5
    mac8: float = 0.3
    sram: float = 5.0
    dram: float = 640.0

    def compute(self, macs: int, bits: int) -> float:
        """Return the picojoules of `macs` of numbers of `bits`; those in between cost as the next larger."""
        return macs * (self.mac32 if bits > 16 else self.mac16 if bits > 8 else self.mac8)

    def moving(self, on_chip: int, off_chip: int) -> tuple[float, float]:
        """Return the picojoules of bytes that pass the memory on the chip, and of those that pass DRAM."""
        return on_chip / WORD * self.sram, off_chip / WORD * self.dram

    def with_figures(self, text: str) -> Energy:
        """Return these figures with those that `text` gives, such as "mac8=0.2,dram=320"; UsageError."""
        found = {}
        for part in text.split(","):
            name, _, figure = part.partition("=")
            known = [each.name for each in fields(self)]
            if name.strip() not in known:
                raise UsageError(unknown("figure of energy", name.strip(), known))
            try:
                found[name.strip()] = float(figure)
            except ValueError:
                found[name.strip()] = math.nan
            if not 0 <= found[name.strip()] < math.inf:
                raise UsageError(f"energy: {name.strip()} is {figure!r}, expected picojoules")
        return replace(self, **found)

    @property
    def numbers(self) -> dict[str, float]:
        """The figures by name."""
        return asdict(self)


@dataclass(frozen=True)
class Spent:
    """The picojoules that all `nodes` of a `kind` take for one inference; None where nobody counts them.

    `compute` are those of multiply-adds, `sram` and `dram` those of moving data within the chip and from
    outside.
    """

    kind: str
    nodes: int
    compute: float | None
    sram: float | None
    dram: float | None

    @property
    def total(self) -> float:
        """All picojoules that are known."""
        return (self.compute or 0.0) + (self.sram or 0.0) + (self.dram or 0.0)
