"""Accuracy that grouped convolutions keep: with and without the search for groups, with and without repair.

    python benchmarks/shuffling.py [--groups 2 4] [--model FILE --calibration FILE --test FILE]

A row for each number of groups and way to choose them: what stays of the parameters and multiplications of
the layers that are grouped, the mean share of their energy that is kept, how many Gathers and shuffles
permute channels, the accuracy without repair, with biases and with weights repaired on calibration data, and
the latency in stock onnxruntime (one thread, batch 1) over that of the model before, with its 95 % interval.
Without arguments the model is ``bottleneck_digits`` of testdata; the files of another one are ``.npz`` with
its inputs, those for the test with ``labels``.
"""

import argparse
from collections import Counter
from pathlib import Path

import onnx_ir as ir

from onnxcompress import Context
from onnxcompress.base import Record
from onnxcompress.data import Data, load_data
from onnxcompress.measure import latencies
from onnxcompress.model import clone, load
from onnxcompress.passes import Shuffle
from onnxcompress.runtimes.onnxruntime import OnnxRuntime
from onnxcompress.verify import compare

TESTDATA = Path(__file__).parent.parent / "testdata"
WAYS: dict[str, dict[str, bool]] = {
    "blocks as they lie": {"search": False},
    "ShuffleNet's units": {"explicit": True},
    "searched": {},
}


def main() -> None:
    """Print a row for each number of groups and each way."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--groups", type=int, nargs="*", default=[2, 4])
    parser.add_argument("--model", default=str(TESTDATA / "bottleneck_digits.onnx"))
    parser.add_argument("--calibration", default=str(TESTDATA / "digits_calib.npz"))
    parser.add_argument("--test", default=str(TESTDATA / "digits_test.npz"))
    given = parser.parse_args()
    model = load(given.model)
    calibration, test = load_data(given.calibration, model), load_data(given.test, model)
    print(
        "| groups | way | layers | parameters | MACs | energy | Gather, shuffle "
        "| none | bias | weights | latency |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for groups in given.groups:
        for way, options in WAYS.items():
            row = Row(model, calibration, test, {"groups": groups, **options})
            print(f"| {groups} | {way} | {row.text()} |", flush=True)


class Row:
    """What `options` of the pass do to a model, with each kind of repair."""

    def __init__(
        self, model: ir.Model, calibration: Data, test: Data, options: dict[str, int | bool]
    ) -> None:
        self.model, self.calibration, self.test, self.options = model, calibration, test, options

    def text(self) -> str:
        """Return the figures, between bars."""
        scores = []
        for repair in ("none", "bias", "least-squares"):
            after = clone(self.model)
            context = Context(calibration=self.calibration, runtime=OnnxRuntime())
            result = Shuffle(repair=repair, **self.options).call(after, context)  # type: ignore[arg-type]
            before, score = self.accuracy(after)
            scores.append(f"{score:.2%}")
        changed = [record for record in result.records if record.changed]
        kept = sum(float(record.numbers["energy"]) for record in changed) / max(len(changed), 1)
        ends = Counter(record.numbers[end] for record in changed for end in ("before", "behind"))
        engine = OnnxRuntime.make(threads=1)
        feed = next(iter(self.test))
        _, now = latencies([engine.prepare(self.model), engine.prepare(after)], feed, budget=3, min_pairs=30)
        figures = [
            str(len(changed)),
            share(changed, "parameters"),
            share(changed, "macs"),
            f"{kept:.1%}",
            f"{ends['gather']}, {ends['shuffle']}",
            *(f"{before:.2%} to {score}" if place == 0 else score for place, score in enumerate(scores)),
            f"{now.ratio:.2f} ({now.low:.2f}-{now.high:.2f})",
        ]
        return " | ".join(figures)

    def accuracy(self, after: ir.Model) -> tuple[float, float]:
        """Return the accuracy before and after."""
        engine = OnnxRuntime()
        found = compare(engine.prepare(self.model), engine.prepare(after), self.test, labels=self.test.labels)
        assert found.top1 is not None, "the test needs labels"
        return found.top1


def share(changed: list[Record], kind: str) -> str:
    """Return the part of `kind` that is left of the `changed` layers."""
    before, after = (
        sum(int(record.numbers.get(name, 0)) for record in changed) for name in (kind, f"{kind}_after")
    )
    return f"{after:,} of {before:,}"


if __name__ == "__main__":
    main()
