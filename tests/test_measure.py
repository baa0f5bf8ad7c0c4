import time

import numpy as np
import pytest

from onnxcompress.measure import interval, latencies


class Sleeper:
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.runs = 0

    def run(self, feeds: object) -> dict[str, np.ndarray]:
        self.runs += 1
        time.sleep(self.seconds)
        return {}


def test_models_are_run_in_turns_equally_often() -> None:
    models = [Sleeper(0.001), Sleeper(0.004)]
    first, second = latencies(models, {}, budget=0.05, min_pairs=6)
    assert models[0].runs == models[1].runs == first.pairs + 2
    assert first.ratio == first.low == first.high == 1.0
    assert second.low <= second.ratio <= second.high


@pytest.mark.parametrize(("count", "places"), [(10, (1, 8)), (30, (9, 20)), (100, (40, 59)), (1, (0, 0))])
def test_the_interval_is_that_of_order_statistics(count: int, places: tuple[int, int]) -> None:
    assert interval(count) == places
