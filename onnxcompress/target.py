"""The machines to compile for, by name: what passes need to know of them."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from onnxcompress.errors import UsageError, unknown


@dataclass(frozen=True)
class Target:
    """A machine to compile for.

    `multiple` is how many channels its engine computes at a time: a layer with some over takes as long as
    with a whole block more, or a slower path. `vnni` says that products of 8-bit numbers are summed in more
    than 16 bits (VNNI, AMX, dot products), so that full-range int8 weights don't saturate.
    """

    name: str
    multiple: int
    vnni: bool
    what: str

    def step(self, channels: int) -> int:
        """Return the number a multiple of which a layer of `channels` should keep.

        It is `multiple`, halved until it is at most a quarter of the layer, so that narrow ones aren't left
        whole and any quarters can go. What this gives away: benchmarks/widths.py.
        """
        found = self.multiple
        while found > 1 and 4 * found > channels:
            found //= 2
        return found


# Blocks of onnxruntime 1.17 to 1.31 (mlas/lib/platform.cpp, optimizer/nchwc_transformer.cc): 16 channels with
# AVX-512, 8 without; on 64-bit ARM 16 where it is built so, else matrix products packed by 16 columns. A
# convolution whose input channels are more than a block and no multiple of it is computed the slow way.
# CMSIS-NN: fast int8 convolutions take multiples of 4 input channels. TensorRT: float16 in blocks of 8.
TARGETS = {
    each.name: each
    for each in (
        Target("cpu", 16, False, "any processor that runs onnxruntime"),
        Target("avx2", 8, False, "x86-64 without AVX-512"),
        Target("avx2-vnni", 8, True, "x86-64 without AVX-512, with AVX-VNNI"),
        Target("avx512", 16, False, "x86-64 with AVX-512"),
        Target("avx512-vnni", 16, True, "x86-64 with AVX-512 and VNNI or AMX"),
        Target("arm64", 16, True, "64-bit ARM"),
        Target("mcu", 4, True, "microcontrollers, with kernels such as CMSIS-NN"),
        Target("gpu", 8, True, "graphics processors with matrix units"),
    )
}
NAMES = ("host", *TARGETS)


def find_target(name: str | None) -> Target:
    """Return the target called `name`; that of this machine for "host" and None. UsageError for others."""
    if name in (None, "host"):
        return TARGETS[kind(platform.machine(), host_features())]
    if name not in TARGETS:
        raise UsageError(unknown("target", str(name), NAMES))
    return TARGETS[name]


def kind(machine: str, features: Iterable[str]) -> str:
    """Return the name of the target with these `features`, words as Linux or macOS spell them.

    `machine` is what ``platform.machine()`` returns. Where features aren't known it is "cpu".
    """
    if machine.lower() in ("arm64", "aarch64"):
        return "arm64"
    words = {each.lower().replace("_", "") for each in features}
    if machine.lower() not in ("x86_64", "amd64") or not words:
        return "cpu"
    sums = words & {"avx512vnni", "avxvnni", "amxint8"}
    return ("avx512" if "avx512f" in words else "avx2") + ("-vnni" if sums else "")


def host_features() -> list[str]:
    """Return the words this system uses for what its processor can do; none where it doesn't say."""
    listed = Path("/proc/cpuinfo")
    if listed.is_file():
        lines = listed.read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    if platform.system() == "Darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.features", "machdep.cpu.leaf7_features"]
        return subprocess.run(command, capture_output=True, text=True).stdout.split()
    return []
