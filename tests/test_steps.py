from dataclasses import replace

import numpy as np
import pytest
from test_drop import comparison

from onnxcompress.drop import Drop, Limit, noise, standard_error
from onnxcompress.mixing import SPARE
from onnxcompress.steps import BLOCKS, Step, Steps, everywhere, largest, steps
from onnxcompress.trials import Row


def row(layer: str, scheme: str, snr: float, saved: int) -> Row:
    return Row(layer, (), scheme, "changed", saved, comparison(snr=snr))


def ladder(count: int) -> Steps:
    return tuple(Step(f"layer{place}", "quant", 0.01, 100.0) for place in range(count))


def test_steps_go_along_the_convex_hull_cheapest_first() -> None:
    rows = [
        row("a", "mild", 40, 100),
        row("a", "middling", 12, 110),  # beyond the line from mild to harsh
        row("a", "harsh", 20, 200),
        row("a", "bad", 10, 50),
        row("b", "mild", 35, 1000),
        Row("b", (), "none", "too small", 0, None),
        row("c", "larger", 50, -10),
    ]
    found = steps(rows)
    assert [(each.layer, each.scheme) for each in found] == [("b", "mild"), ("a", "mild"), ("a", "harsh")]
    assert found[2].noise == pytest.approx(noise(20) - noise(40))
    assert found[2].saved == 100


def test_where_time_is_bounded_steps_are_those_that_surely_save_some() -> None:
    rows = [
        replace(row("a", "mild", 40, 100), gained=1e-6),
        replace(row("b", "mild", 40, 100), gained=4e-6),
        replace(row("c", "mild", 40, 100), gained=0.0),
    ]
    assert [(each.layer, each.saved) for each in steps(rows, timed=True)] == [("b", 4e-6), ("a", 1e-6)]


def test_from_a_scheme_for_all_layers_steps_only_go_to_smaller_ones_and_less_noise_comes_first() -> None:
    rows = [
        row("a", "mild", 40, 100),
        row("a", "harsh", 20, 200),
        row("b", "mild", 20, 100),
        row("b", "harsh", 30, 150),  # smaller, and better
        row("c", "harsh", 10, 9000),
        Row("d", (), "mild", "too small", 0, None),
    ]
    start = everywhere(rows)["mild"]
    assert [(each.layer, each.scheme) for each in start] == [("a", "mild"), ("b", "mild")]
    found = steps(rows, start=start)
    assert [(each.layer, each.scheme) for each in found] == [("b", "harsh"), ("c", "harsh"), ("a", "harsh")]
    assert [each.saved for each in found] == [50, 9000, 100]
    assert found[0].noise < 0


def test_steps_are_taken_up_to_the_bound() -> None:
    for bound in (0, 1, 5, 24, 25, 47, 48, 49):
        tried: list[Steps] = []

        def allows(choice: Steps, bound: int = bound, tried: list[Steps] = tried) -> bool:
            tried.append(choice)
            return len(choice) <= bound

        assert len(largest(ladder(49), allows)) == bound
        assert len(set(tried)) == len(tried) <= BLOCKS + 4
    assert largest((), lambda choice: True) == ()


def test_what_is_allowed_by_luck_after_more_than_enough_was_lost_is_not_looked_at() -> None:
    tried: list[int] = []

    def allows(choice: Steps) -> bool:
        tried.append(len(choice))
        return len(choice) <= 20 or len(choice) >= 40

    assert len(largest(ladder(60), allows)) == 20
    assert max(tried) == 30


def test_the_bound_holds_on_other_samples_within_a_standard_error() -> None:
    draw = np.random.default_rng(0)
    limit, every, missed = Limit("top1", 0.5), ladder(40), 0
    lost, gained = np.linspace(0, 0.04, 41), np.linspace(0, 0.03, 41)  # true shares after so many steps
    for _ in range(200):
        chance, other = draw.uniform(size=(2, 1000))

        def drop(count: int, chance: np.ndarray) -> Drop:
            b, c = int((chance < lost[count]).sum()), int((chance > 1 - gained[count]).sum())
            return Drop("top1", 100 * (b - c) / 1000, 100 * standard_error(b, c, 1000))

        def allows(choice: Steps, chance: np.ndarray = chance) -> bool:
            return limit.allows(drop(len(choice), chance), SPARE)

        count = len(largest(every, allows))
        assert limit.allows(drop(count, chance))
        missed += drop(count, other).points > 0.5 + (drop(count, chance).error or 0.0)
    assert missed <= 12  # one in sixteen; without anything to spare it is one in four
