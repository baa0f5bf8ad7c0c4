from collections.abc import Sequence

import numpy as np
import pytest

from onnxcompress.base import Number
from onnxcompress.chains import Chain
from onnxcompress.choice import Choice, Timed
from onnxcompress.convolve import Window
from onnxcompress.cost import chain_cost
from onnxcompress.factors import Separable, Svd
from onnxcompress.measure import Latency

WHOLE = Window(96, 96, 1, (3, 3), (1, 1), (1, 1), (1, 1), (1, 1))
WEIGHT = np.random.default_rng(0).standard_normal((96, 96, 3, 3))


def choice(**options: object) -> Choice:
    plain = {"energy": 0.5, "rank": 0, "params": 1.0, "macs": 1.0, "latency": 1.0, "when": "faster"}
    return Choice(**{**plain, **options})  # type: ignore[arg-type]


def clock(slow: float = 1.0, odd: float = 1.0) -> Timed:
    """A machine on which time is what multiplications take, `slow` of it, and odd ranks take `odd` more."""
    before = chain_cost([WHOLE], (8, 8)).macs

    def timed(chains: Sequence[Chain]) -> list[Latency]:
        ratios = [
            each.cost.macs / before * slow * (odd if any(rank % 16 for rank in each.ranks) else 1)
            for each in chains
        ]
        return [Latency(1.0, ratio, 0.95 * ratio, 1.05 * ratio, 30) for ratio in ratios]

    return timed


def best(chosen: Choice, timed: Timed | None, numbers: dict[str, Number]) -> Chain | str:
    return chosen.best([Svd(WEIGHT), Separable(WEIGHT)], WHOLE, (8, 8), timed, numbers)


def test_the_fastest_chain_that_keeps_the_energy_is_taken_and_ranks_of_whole_blocks_are_tried() -> None:
    numbers: dict[str, Number] = {}
    plain, even = best(choice(), clock(), {}), best(choice(), clock(odd=1.5), numbers)
    assert isinstance(plain, Chain)
    assert isinstance(even, Chain)
    assert plain.kept >= 0.5
    assert plain.ranks[0] % 16 != 0
    assert even.ranks == (-(-plain.ranks[0] // 16) * 16,)
    assert numbers["ratio"] == pytest.approx(even.cost.macs / chain_cost([WHOLE], (8, 8)).macs)
    assert numbers["ratio_high"] == pytest.approx(1.05 * float(numbers["ratio"]))


def test_what_is_cheaper_but_not_faster_for_certain_is_left_and_the_best_of_it_told() -> None:
    numbers: dict[str, Number] = {}
    taken = best(choice(), clock(), {})
    assert isinstance(taken, Chain)
    share = taken.cost.macs / chain_cost([WHOLE], (8, 8)).macs
    assert best(choice(), clock(slow=0.95 / share), numbers) == "not faster here"  # up to 0.9975
    assert numbers["tried"] == f"{taken.method.name} {taken.ranks[0]}"
    assert float(numbers["ratio"]) < 0.99 < float(numbers["ratio_high"]) < 1


def test_a_latency_budget_takes_the_highest_rank_whose_interval_is_within_it() -> None:
    numbers: dict[str, Number] = {}
    found = best(choice(latency=0.4, when="cheaper"), clock(), numbers)
    assert isinstance(found, Chain)
    assert 0.38 < float(numbers["ratio_high"]) <= 0.4
    slower, faster = (best(choice(latency=0.4, when="cheaper"), clock(slow), {}) for slow in (1.5, 0.8))
    assert isinstance(slower, Chain)
    assert isinstance(faster, Chain)
    assert slower.kept < found.kept < faster.kept
    assert best(choice(latency=0.0001), clock(), {}) == "no chain within the budget"
