import math

import numpy as np
import pytest

from onnxcompress import BoundError, UsageError
from onnxcompress.drop import Drop, Limit, drop, measured, standard_error
from onnxcompress.verify import Comparison


def comparison(**changes: object) -> Comparison:
    values = {
        "samples": 200,
        "exact": False,
        "snr": 20.0,
        "cosine": 0.99,
        "largest_difference": 1.0,
        "worst_output": "y",
    }
    return Comparison(**{**values, **changes})  # type: ignore[arg-type]


def test_each_metric_drops_in_hundredths() -> None:
    found = comparison(
        agreement=0.95, changed_predictions=10, predictions=200, top1=(0.9, 0.88), lost=6, gained=2
    )
    assert drop("top1", found).points == pytest.approx(2.0)
    assert drop("agreement", found).points == pytest.approx(5.0)
    assert drop("cosine", found).points == pytest.approx(1.0)
    assert drop("snr", found).points == pytest.approx(1.0)
    assert drop("snr", comparison(snr=math.inf)).points == 0
    assert drop("snr", comparison(snr=-math.inf)).points == math.inf


def test_the_standard_error_is_the_spread_of_the_drop_over_draws_of_samples() -> None:
    draw = np.random.default_rng(0)
    kinds = draw.choice([1, -1, 0], size=(20_000, 541), p=[0.03, 0.02, 0.95])
    spread = kinds.mean(1).std()
    found = np.mean([standard_error(int((each == 1).sum()), int((each == -1).sum()), 541) for each in kinds])
    assert found == pytest.approx(spread, rel=0.03)


def test_no_change_among_few_samples_is_no_certainty() -> None:
    assert standard_error(0, 0, 20) > 0.04
    few = drop("agreement", comparison(changed_predictions=0, predictions=20))
    assert Limit("agreement", 1.0).allows(few)
    assert not Limit("agreement", 1.0, confidence=0.95).allows(few)
    many = drop("agreement", comparison(changed_predictions=0, predictions=2000))
    assert Limit("agreement", 1.0, confidence=0.95).allows(many)


def test_confidence_adds_the_normal_quantile_of_the_standard_error() -> None:
    assert Drop("top1", 0.3, 0.2).bound(0.95) == pytest.approx(0.3 + 1.6449 * 0.2, abs=1e-4)
    assert Drop("top1", 0.3, 0.2).bound(None) == 0.3


def test_a_missed_limit_is_said_in_one_line() -> None:
    with pytest.raises(
        BoundError, match=r"top1: drops by 0\.8 points \(standard error 0\.20\), expected 0\.5"
    ):
        Limit("top1", 0.5).check(Drop("top1", 0.8, 0.2))
    with pytest.raises(BoundError):
        Limit("top1", 0.5).check(Drop("top1", math.nan))


def test_limits_that_mean_nothing_are_refused() -> None:
    for arguments in (("top1", -1.0), ("top1", math.nan), ("top1", 1.0, 0.2), ("snr", 1.0, 0.95)):
        with pytest.raises(UsageError):
            Limit(*arguments)
    with pytest.raises(UsageError, match="labels"):
        drop("top1", comparison())
    with pytest.raises(UsageError, match="evaluation data"):
        measured("top1", None, None, None)  # type: ignore[arg-type]
