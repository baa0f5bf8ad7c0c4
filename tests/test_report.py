import json
import math

import pytest

from onnxcompress.measure import Latency
from onnxcompress.report import Report, Size, count_bytes, decibels, figures, milliseconds
from onnxcompress.verify import Comparison


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (525_778, "526 kB"),
        (5_002_874, "5.00 MB"),
        (3 * 10**12, "3,000 GB"),
    ],
)
def test_bytes_are_told_in_three_digits(count: int, text: str) -> None:
    assert count_bytes(count) == text


def test_times_and_decibels_are_told_for_people() -> None:
    assert milliseconds(0.0000626) == "0.0626 ms"
    assert milliseconds(1.44) == "1,440 ms"
    assert decibels(math.inf) == "equal"
    assert decibels(31.94) == "31.9 dB"


def comparison(**changes: object) -> Comparison:
    values = {
        "samples": 4,
        "exact": True,
        "snr": math.inf,
        "cosine": 1.0,
        "largest_difference": 0.0,
        "worst_output": "y",
    }
    return Comparison(**{**values, **changes})  # type: ignore[arg-type]


def report() -> Report:
    made = Report(
        version="1",
        recipe="prune",
        verify="each",
        source="in.onnx",
        before=Size(1000, 10, 10),
        after=Size(500, 10, 5),
    )
    made.comparison = comparison(random=True)
    made.evaluation = comparison(snr=20.0, agreement=0.5, predictions=8, top1=(0.75, 0.5))
    made.latency = Latency(0.002, 0.5, 0.4, 0.6, 30)
    return made


def test_the_summary_says_what_each_figure_is_of() -> None:
    rows = {row[0]: row[1:] for row in figures(report())}
    assert rows["size"] == ("1.00 kB", "500 B", "0.500x")
    assert rows["top-1 accuracy"] == ("75.00%", "50.00%", "-25.00 points")
    assert rows["SNR (random outputs)"] == ("", "equal", "")
    assert rows["latency"] == ("4.00 ms", "2.00 ms", "0.50x (0.40 to 0.60, 30 pairs)")


def test_one_metric_may_be_singled_out() -> None:
    made = report()
    made.metric = "snr"
    names = [row[0] for row in figures(made)]
    assert "SNR (evaluation)" in names
    assert "top-1 accuracy" not in names


def test_json_has_no_infinities() -> None:
    document = json.loads(report().as_json(), parse_constant=pytest.fail)
    assert document["comparison"]["snr"] is None
    assert document["evaluation"]["top1"] == [0.75, 0.5]
