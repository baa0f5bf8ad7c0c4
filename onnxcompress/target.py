"""The machines to compile for, by name: what passes need to know of them."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from onnxcompress.errors import UsageError, unknown


@dataclass(frozen=True)
class Machine:
    """How fast a processor can be at best: what a roofline needs.

    Multiply-adds a second of all its cores by the bits of their operands, bytes a second from main memory
    (a microcontroller's flash), and the bytes of memory on the chip that this leaves alone. `what` names the
    processor. Source: Williams et al., Roofline, CACM 2009.
    """

    macs32: float
    macs16: float
    macs8: float
    bandwidth: float
    on_chip: int
    what: str

    def seconds(self, macs: int, bits: int, moved: int) -> tuple[float, float]:
        """Return the least seconds to compute `macs` of numbers of `bits`, and to move `moved` bytes.

        The time of a layer is at least the larger of both. Numbers of more than 16 bits count as 32, of more
        than 8 as 16, and all others as 8.
        """
        rate = self.macs32 if bits > 16 else self.macs16 if bits > 8 else self.macs8
        return macs / rate, moved / self.bandwidth


@dataclass(frozen=True)
class Target:
    """A machine to compile for.

    `multiple` is how many channels its engine computes at a time: a layer with some over takes as long as
    with a whole block more, or a slower path. `vnni` says that products of 8-bit numbers are summed in more
    than 16 bits (VNNI, AMX, dot products), so that full-range int8 weights don't saturate. `machine` is a
    processor of the kind; None where there is no typical one.
    """

    name: str
    multiple: int
    vnni: bool
    what: str
    machine: Machine | None = None

    def step(self, channels: int) -> int:
        """Return the number a multiple of which a layer of `channels` should keep.

        It is `multiple`, halved until it is at most a quarter of the layer, so that narrow ones aren't left
        whole and any quarters can go. What this gives away: benchmarks/widths.py.
        """
        found = self.multiple
        while found > 1 and 4 * found > channels:
            found //= 2
        return found


def _desktop(macs32: int, macs8: int) -> Machine:
    """Return four cores at 3 GHz that do so many multiply-adds a cycle each, with two channels of DDR4-3200.

    Two vector units of 256 (512) bits do 16 (32) in float32. In int8 a unit holds four times as many, half
    of which is lost without VNNI to widening the sums.
    """
    rate = 4 * 3e9
    return Machine(
        rate * macs32, rate * macs32, rate * macs8, 51.2e9, 8_000_000, "four cores at 3 GHz, DDR4-3200 x 2"
    )


# Raspberry Pi 5 product brief: four Cortex-A76 at 2.4 GHz, 2 MB of shared and 512 kB of own cache, 32 bits of
# LPDDR4X-4267; Cortex-A76 optimisation guide: two units of 128 bits, with SDOT.
_PI = Machine(4 * 2.4e9 * 8, 4 * 2.4e9 * 16, 4 * 2.4e9 * 32, 17.1e9, 4_000_000, "Raspberry Pi 5")
# STM32F746 datasheet: Cortex-M7 at 216 MHz, 320 kB of SRAM, flash read at 64 bits a cycle at best through
# the accelerator; one VFMA or SMLAD (two products of 16 bits) a cycle.
_STM32 = Machine(216e6, 2 * 216e6, 2 * 216e6, 8 * 216e6, 320_000, "STM32F746, 216 MHz")
# NVIDIA T4 datasheet: 8.1 TFLOPS in float32, 65 in float16, 130 TOPS in int8, 320 GB/s; 4 MB of cache.
_T4 = Machine(4.05e12, 32.5e12, 65e12, 320e9, 4_000_000, "NVIDIA T4")

# Blocks of onnxruntime 1.17 to 1.31 (mlas/lib/platform.cpp, optimizer/nchwc_transformer.cc): 16 channels with
# AVX-512, 8 without; on 64-bit ARM 16 where it is built so, else matrix products packed by 16 columns. A
# convolution whose input channels are more than a block and no multiple of it is computed the slow way.
# CMSIS-NN: fast int8 convolutions take multiples of 4 input channels. TensorRT: float16 in blocks of 8.
TARGETS = {
    each.name: each
    for each in (
        Target("cpu", 16, False, "any processor that runs onnxruntime"),
        Target("avx2", 8, False, "x86-64 without AVX-512", _desktop(16, 32)),
        Target("avx2-vnni", 8, True, "x86-64 without AVX-512, with AVX-VNNI", _desktop(16, 64)),
        Target("avx512", 16, False, "x86-64 with AVX-512", _desktop(32, 64)),
        Target("avx512-vnni", 16, True, "x86-64 with AVX-512 and VNNI or AMX", _desktop(32, 128)),
        Target("arm64", 16, True, "64-bit ARM", _PI),
        Target("mcu", 4, True, "microcontrollers, with kernels such as CMSIS-NN", _STM32),
        Target("gpu", 8, True, "graphics processors with matrix units", _T4),
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


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
