"""Commands that run models or read them, and print what they find."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from onnxcompress.cli.options import Shape, data_options, opened
from onnxcompress.cli.terminal import progress_bar, say_notes, terminal
from onnxcompress.errors import BoundError


@click.command(name="compare")
@click.argument("first", metavar="A.onnx")
@click.argument("second", metavar="B.onnx")
@data_options
@click.option("--layers", is_flag=True, help="List the error entering and leaving every layer, too.")
@click.option(
    "--exact", is_flag=True, help="Exit with 3 where the outputs do not agree within the tolerance."
)
def compare_command(first: str, second: str, layers: bool, exact: bool, **options: Any) -> None:
    """Compare the outputs of two models on data."""
    from onnxcompress.layerwise import passages
    from onnxcompress.model import load
    from onnxcompress.registry import find_runtime
    from onnxcompress.report import comparison_table, passages_table
    from onnxcompress.verify import compare

    with opened([first, second], options) as (runnables, samples, tolerance, labels):
        before, after = runnables
        found = compare(before, after, samples, labels=labels, tolerance=tolerance, random=samples.random)
        if layers:
            engine = find_runtime("onnxruntime").make(threads=options["threads"])
            rows = passages(load(first), load(second), engine, samples)
    terminal().print(comparison_table(found, options["metric"]))
    if layers:
        terminal().print(passages_table(rows))
    if exact and not found.exact:
        raise BoundError(
            f"{second}: outputs differ from those of {first}: {found.worst_output}, {found.snr:.1f} dB"
        )


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="A.onnx [B.onnx ...]")
@data_options
@click.option("--seconds", type=click.FloatRange(0.1), default=3.0, show_default=True, help="Time to spend.")
def bench(models: Sequence[str], seconds: float, **options: Any) -> None:
    """Time models in turns, each as a ratio to the first."""
    from onnxcompress.measure import latencies
    from onnxcompress.report import latency_table

    with opened(models, options) as (runnables, samples, _, _):
        found = latencies(runnables, next(iter(samples)), budget=seconds, min_pairs=30)
    terminal().print(latency_table(list(zip(models, found, strict=True))))


@click.command()
@click.argument("source", metavar="MODEL.onnx")
@click.option(
    "--schemes",
    default="quant(activations=none)",
    show_default=True,
    help="Lossy passes to try, such as quant|cluster(bits=4).",
)
@data_options
@click.option(
    "--exclude", multiple=True, help="Leave out layers whose whole name matches this regular expression."
)
@click.option(
    "--report",
    "report_file",
    type=Path,
    help="Write the figures to this file as JSON; what it holds already isn't measured again.",
)
@click.option("--html", "html_file", type=Path, help="Write a page for a browser to this file.")
def sensitivity(
    source: str,
    check_rtol: float | None,
    check_atol: float | None,
    metric: str | None,
    shapes: Sequence[tuple[str, tuple[int, ...]]],
    html_file: Path | None,
    **options: Any,
) -> None:
    """Print what a model loses when each layer alone is compressed, and what that saves."""
    from onnxcompress.model import external_files, load, write_text
    from onnxcompress.page import page_template
    from onnxcompress.page.sensitivities import sensitivities_page
    from onnxcompress.report import sensitivity_table
    from onnxcompress.request import check_targets, files
    from onnxcompress.trials import sensitivity as measure
    from onnxcompress.verify import check_metric

    check_metric(metric)
    if html_file is not None:
        page_template()  # what is missing for the page is told now
    read = [
        Path(source),
        *external_files(load(source), source),
        *files(options["data"], options["evaluation"]),
    ]
    check_targets([html_file, options["report_file"]], read)
    if options["evaluation"] is None and options["data"] is None:
        say_notes(["random inputs: they tell nothing about accuracy"])
    with progress_bar() as progress:
        found = measure(source, shapes=dict(shapes), progress=progress, **options)
    if html_file is not None:
        write_text(html_file, sensitivities_page([(source, found)]))
    terminal().print(sensitivity_table(found.rows, metric))


@click.command()
@click.argument("source", metavar="MODEL.onnx")
def inspect(source: str) -> None:
    """Print what each tensor of a model takes in its file, and in which format."""
    from onnxcompress.formats.unpack import ledger
    from onnxcompress.report import ledger_table

    terminal().print(ledger_table(ledger(source)))


@click.command()
@click.argument("source", metavar="MODEL.onnx")
@click.option(
    "--input-shape",
    "shapes",
    type=Shape(),
    multiple=True,
    help="Shape of an input, where the model leaves it open.",
)
def channels(source: str, shapes: Sequence[tuple[str, tuple[int, ...]]]) -> None:
    """Print which channels live or die together, and why some must stay."""
    from onnxcompress.channels import find, spans
    from onnxcompress.data.inputs import inputs_of
    from onnxcompress.model import load
    from onnxcompress.report import channels_table

    model = load(source)
    given = {name: each.dims or () for name, each in inputs_of(model, dict(shapes)).items()}
    found = find(model, shapes=given)
    terminal().print(channels_table(spans(found), len(found.hidden())))
