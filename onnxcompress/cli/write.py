"""Commands that write models."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from onnxcompress.cli.group import COMMAND, EPILOG
from onnxcompress.cli.options import data_options
from onnxcompress.cli.terminal import progress_bar, say_notes, terminal
from onnxcompress.errors import UsageError
from onnxcompress.target import NAMES


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, epilog=EPILOG)
@click.argument("source", metavar="IN.onnx")
@click.argument("output", metavar="OUT.onnx")
@click.option(
    "--passes",
    "recipe",
    help="Recipe, such as prune(sparsity=0.6),quant; quant|cluster: for each layer one or none, by bounds.",
)
@click.option(
    "--max-drop",
    type=click.FloatRange(0),
    help="Points of --metric that may be lost on --eval data; more: exit 3, nothing is written.",
)
@click.option(
    "--confidence", type=float, help="Hold --max-drop also on other data alike, with this probability."
)
@click.option("--max-size", type=float, help="Most that OUT.onnx may take, as a share of IN.onnx.")
@click.option(
    "--max-latency", type=float, help="Most time that OUT.onnx may take, as a share of IN.onnx, here."
)
@click.option("--recipe", "recipe_file", type=Path, help="Recipe in a TOML file.")
@click.option("--preset", "preset_name", help="Ready-made recipe: lossless, fast, small or tiny.")
@data_options
@click.option(
    "--exclude", multiple=True, help="Leave layers alone whose whole name matches this regular expression."
)
@click.option(
    "--target",
    help=f"Machine to compile for: {', '.join(NAMES)}. [default: host, this machine; the report names it]",
)
@click.option(
    "--verify", help="Compare outputs after each pass, at the end, or off. [default: each; end above 500 MB]"
)
@click.option("--report", "report_file", type=Path, help="Write the report to this file as JSON.")
@click.option("--html", "html_file", type=Path, help="Write the report to this file as a page for a browser.")
@click.option(
    "--external-data",
    "--save-as-external-data",
    is_flag=True,
    help="Keep weights in a file of their own, as is done above 2 GB and where IN.onnx does.",
)
@click.option(
    "--inline", is_flag=True, help="Write functions in line, for engines that have none, such as OpenVINO."
)
@click.option(
    "--jobs", type=click.IntRange(0), default=0, help="Weights computed at a time; 0: one for each core."
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="warning",
    show_default=True,
    help="How much to say on stderr.",
)
def compress(
    source: str,
    output: str,
    recipe: str | None,
    recipe_file: Path | None,
    preset_name: str | None,
    check_rtol: float | None,
    check_atol: float | None,
    shapes: Sequence[tuple[str, tuple[int, ...]]],
    log_level: str,
    **options: Any,
) -> None:
    """Rewrite IN.onnx into OUT.onnx (the default command)."""
    from onnxcompress import pipeline
    from onnxcompress.recipe import Recipe, parse, preset
    from onnxcompress.report import tables
    from onnxcompress.verify import Tolerance

    logging.basicConfig(level=log_level.upper(), format="%(name)s: %(message)s")
    if sum(each is not None for each in (recipe, recipe_file, preset_name)) != 1:
        raise UsageError("recipe: expected exactly one of --passes, --recipe and --preset")
    chosen = parse(recipe) if recipe is not None else preset(preset_name) if preset_name is not None else None
    if (
        recipe_file is not None
        and Path(output).exists()
        and recipe_file.exists()
        and recipe_file.samefile(output)
    ):
        raise UsageError(f"{output}: is the recipe too, expected another file")
    with progress_bar() as progress:
        result = pipeline.compress(
            source,
            chosen or Recipe.read(Path(str(recipe_file))),
            output=output,
            shapes=dict(shapes),
            tolerance=Tolerance(check_rtol, check_atol),
            progress=progress,
            command=click.get_current_context().find_root().meta[COMMAND],
            **options,
        )
    say_notes(result.report.notes)
    console = terminal()
    for table in tables(result.report):
        console.print(table)
    console.print(
        "'onnxcompress passes NAME' explains a pass; --report FILE.json lists every layer.", style="dim"
    )


@click.command()
@click.argument("source", metavar="IN.onnx")
@click.argument("output", metavar="OUT.onnx")
@click.option("--external-data", is_flag=True, help="Keep weights in a file of their own.")
def unpack(source: str, output: str, external_data: bool) -> None:
    """Write the plain dense model of one that `encode` made, bit for bit."""
    from onnxcompress import pipeline

    names = pipeline.unpack(source, output, external_data=external_data)
    click.echo(f"{output}: {len(names)} weights unpacked" if names else f"{output}: nothing was encoded")
