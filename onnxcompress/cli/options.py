"""Options that several commands share, and what they are read as."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxcompress.cli.terminal import say_notes
from onnxcompress.errors import UsageError

if TYPE_CHECKING:
    from onnxcompress.data import Data


class Shape(click.ParamType):
    """``name:1,3,224,224`` or ``name:1x3x224x224``; without a name, the model's only input."""

    name = "name:dims"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, tuple[int, ...]]:
        """Return the name and the dimensions."""
        name, _, dims = str(value).rpartition(":")
        parts = dims.replace("x", ",").split(",")
        if not all(part.strip().isdigit() for part in parts):
            self.fail(f"{value!r} is not of the form name:1,3,224,224", param, ctx)
        return name, tuple(int(part) for part in parts)


class Bytes(click.ParamType):
    """``1MB``, ``320kB``, ``64KiB`` or ``65536``."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number of bytes."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(?:([kKMG])(i?)B|B)?", str(value))
        if found is None:
            self.fail(f"{value!r} is not of the form 1MB, 320kB or 64KiB", param, ctx)
        number, unit, binary = found.groups()
        return int(
            float(number) * (1024 if binary else 1000) ** " kMG".index((unit or " ").replace("K", "k"))
        )


def data_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say on what data models run."""
    for add in (
        click.option(
            "--threads",
            type=click.IntRange(0, 1024),
            default=0,
            help="Threads of the engine; 0: the physical cores.",
        ),
        click.option(
            "--runtime",
            default="onnxruntime",
            show_default=True,
            help="Engine that runs and times models: onnxruntime, openvino (an extra) or interpreter.",
        ),
        click.option(
            "--seed", type=click.IntRange(0), default=0, show_default=True, help="Source of all randomness."
        ),
        click.option(
            "--check-atol", type=click.FloatRange(0), help="Absolute tolerance of outputs that must agree."
        ),
        click.option(
            "--check-rtol", type=click.FloatRange(0), help="Tolerance relative to the largest output."
        ),
        click.option(
            "--input-shape",
            "--overwrite-input-shape",
            "shapes",
            type=Shape(),
            multiple=True,
            help="Shape of an input for random data, where the model leaves it open.",
        ),
        click.option(
            "--metric", type=str, help="top1, agreement, cosine or snr; measured on the --eval data."
        ),
        click.option(
            "--preprocess", type=str, help="How images become inputs, such as imagenet or imagenet(crop=224)."
        ),
        click.option(
            "--eval", "evaluation", type=str, help="Evaluation data; labels in an .npz array or a labels.csv."
        ),
        click.option(
            "--calib", "data", type=str, help="Calibration data: .npz, .npy, images, test_data_set folders."
        ),
    ):
        command = add(command)
    return command


@contextmanager
def opened(models: Sequence[str], options: dict[str, Any]) -> Iterator[tuple[list[Any], Data, Any, Any]]:
    """Yield the models made ready to run, the data they run on, the tolerance, and the labels where known."""
    from onnxcompress.data import load_data, random_data
    from onnxcompress.model import load
    from onnxcompress.registry import find_runtime
    from onnxcompress.verify import Tolerance, check_metric

    check_metric(options.get("metric"))
    loaded = [load(each) for each in models]
    shapes = dict(options["shapes"])
    given = options["evaluation"] or options["data"]
    engine = find_runtime(options["runtime"]).make(threads=options["threads"])
    if given is None:
        samples = random_data(loaded[0], shapes=shapes, seed=options["seed"])
        say_notes(["random inputs: they tell nothing about accuracy"])
    else:
        samples = load_data(given, loaded[0], preprocess=options["preprocess"], shapes=shapes)
    labels = samples.labels if options["evaluation"] else None
    if options.get("metric") == "top1" and labels is None:
        raise UsageError("top1: needs --eval data with labels")
    tolerance = Tolerance(options["check_rtol"], options["check_atol"])
    yield [engine.prepare(Path(each)) for each in models], samples, tolerance, labels
