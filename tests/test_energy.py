import pytest

from onnxcompress.energy import Energy
from onnxcompress.errors import UsageError
from onnxcompress.target import TARGETS, Machine


def test_a_multiply_add_costs_by_the_bits_of_its_operands() -> None:
    table = Energy()
    assert [table.compute(1000, bits) for bits in (32, 16, 8, 4)] == [4600, 1500, 300, 300]
    assert table.moving(8, 4) == (10, 640)


def test_figures_can_be_given() -> None:
    assert Energy().with_figures("mac8=0.2, dram=320") == Energy(mac8=0.2, dram=320)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dramm=1", "did you mean dram"),
        ("dram=much", "picojoules"),
        ("dram=-1", "picojoules"),
        ("dram", "''"),
    ],
)
def test_figures_that_are_none_are_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Energy().with_figures(text)


def test_a_roofline_is_the_slower_of_computing_and_moving() -> None:
    machine = Machine(100.0, 200.0, 400.0, 10.0, 0, "")
    assert machine.seconds(1000, 32, 50) == (10, 5)
    assert machine.seconds(1000, 16, 50) == (5, 5)
    assert machine.seconds(1000, 8, 50) == (2.5, 5)


def test_every_target_but_any_processor_has_a_machine() -> None:
    assert [name for name, each in TARGETS.items() if each.machine is None] == ["cpu"]
