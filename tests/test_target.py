import platform
from pathlib import Path

import pytest

from onnxcompress.errors import UsageError
from onnxcompress.target import NAMES, TARGETS, find_target, kind


@pytest.mark.parametrize(
    ("machine", "features", "name"),
    [
        ("x86_64", "fpu sse4_1 avx f16c avx2 bmi2", "avx2"),
        ("x86_64", "fpu sse4_1 avx f16c avx2 avx_vnni", "avx2-vnni"),
        ("x86_64", "avx2 avx512f avx512dq avx512bw avx512vl", "avx512"),
        ("x86_64", "avx2 avx512f avx512bw avx512vl avx512_vnni amx_tile amx_int8", "avx512-vnni"),
        ("x86_64", "FPU SSE4.1 AVX1.0 AVX2 AVX512F AVX512BW AVX512VNNI", "avx512-vnni"),  # as macOS spells it
        ("AMD64", "", "cpu"),
        ("aarch64", "", "arm64"),
        ("arm64", "", "arm64"),
        ("riscv64", "", "cpu"),
    ],
)
def test_a_machine_is_known_by_its_features(machine: str, features: str, name: str) -> None:
    assert kind(machine, features.split()) == name


def test_the_host_is_what_this_machine_says_it_is() -> None:
    found = find_target("host")
    assert found == find_target(None) == TARGETS[found.name]
    listed = Path("/proc/cpuinfo")
    if platform.machine() == "x86_64" and listed.is_file():
        assert (found.multiple == 16) == ("avx512f" in listed.read_text())
        assert found.vnni == ("vnni" in listed.read_text())


def test_every_name_is_found() -> None:
    assert {find_target(name).name for name in NAMES} == set(TARGETS)


def test_an_unknown_name_gets_a_suggestion() -> None:
    with pytest.raises(UsageError, match="avx51: no such target; did you mean avx512"):
        find_target("avx51")


@pytest.mark.parametrize(
    ("channels", "kept"),
    [(1, 1), (4, 1), (7, 1), (8, 2), (16, 4), (24, 4), (32, 8), (63, 8), (64, 16), (100, 16), (2048, 16)],
)
def test_narrow_layers_go_by_at_most_a_quarter_of_them(channels: int, kept: int) -> None:
    assert TARGETS["avx512"].step(channels) == kept
    assert TARGETS["mcu"].step(channels) == min(kept, 4)
