"""The command that tells what models cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from onnxcompress.cli.options import Bytes, Shape
from onnxcompress.cli.terminal import say_notes, terminal
from onnxcompress.errors import BoundError
from onnxcompress.target import NAMES


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL.onnx [OTHER.onnx ...]")
@click.option(
    "--target", help=f"Machine for rooflines and memory on the chip: {', '.join(NAMES)}. [default: none]"
)
@click.option(
    "--input-shape",
    "shapes",
    type=Shape(),
    multiple=True,
    help="Shape of an input, where the model leaves it open. [default: 1 for every open dimension]",
)
@click.option("--measure", is_flag=True, help="Time every node with onnxruntime, on random inputs.")
@click.option(
    "--threads", type=click.IntRange(0, 1024), default=0, help="Threads of the engine; 0: all cores."
)
@click.option("--energy", help="Picojoules that differ from the 45 nm table, such as mac8=0.2,dram=320.")
@click.option("--crossbar", help="Count ReRAM arrays of this size, such as 128x128.")
@click.option(
    "--flash", type=Bytes(), help="Flash of a microcontroller, such as 1MB; exit with 3 if too small."
)
@click.option("--sram", type=Bytes(), help="Its memory, such as 320kB; exit with 3 if activations don't fit.")
@click.option(
    "--correlate", multiple=True, help="Two columns, such as macs,energy, over three models or more."
)
@click.option("--json", "json_file", type=Path, help="Write everything to this file as JSON.")
@click.option("--csv", "csv_file", type=Path, help="Write a line for each node to this file.")
@click.option("--html", "html_file", type=Path, help="Write a page for a browser to this file.")
def analyze(
    models: Sequence[str],
    shapes: Sequence[tuple[str, tuple[int, ...]]],
    correlate: Sequence[str],
    json_file: Path | None,
    csv_file: Path | None,
    html_file: Path | None,
    flash: int | None,
    sram: int | None,
    energy: str | None,
    crossbar: str | None,
    target: str | None,
    threads: int,
    measure: bool,
) -> None:
    """Print what models cost: parameters, multiply-adds, memory, energy, time."""
    from onnxcompress.analysis import analyze as analysis_of
    from onnxcompress.analysis import find_machine, tables
    from onnxcompress.crossbar import array_size
    from onnxcompress.energy import Energy
    from onnxcompress.model import external_files, load, write_text
    from onnxcompress.page import page_template
    from onnxcompress.page.analyses import analyses_page
    from onnxcompress.request import check_targets

    read = [file for each in models for file in (Path(each), *external_files(load(each), each))]
    check_targets([json_file, csv_file, html_file], read)
    if html_file is not None:
        page_template()  # what is missing for the page is told now
    figures = Energy().with_figures(energy) if energy else Energy()
    size = array_size(crossbar) if crossbar else None
    machine = find_machine(target, threads)
    found = [
        analysis_of(
            each,
            shapes=dict(shapes),
            target=target,
            machine=machine,
            energy=figures,
            crossbar=size,
            measure=measure,
            threads=threads,
        )
        for each in models
    ]
    pairs = [tables.correlate(found, each) for each in correlate]
    fits = [(each.source, fit) for each in found for fit in tables.fits(each, flash, sram)]
    for path, text in ((json_file, tables.document(found, pairs)), (csv_file, tables.spreadsheet(found))):
        if path is not None:
            write_text(path, text)
    lines = [*map(str, pairs), *(f"{source}: {fit}" for source, fit in fits)]
    if html_file is not None:
        write_text(html_file, analyses_page(found, lines))
    for each in found:
        say_notes(f"{each.source}: {note}" for note in each.notes)
    console = terminal()
    for table in tables.model_tables(found[0]) if len(found) == 1 else [tables.models_table(found)]:
        console.print(table)
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
    if over := [f"{source}: {fit}" for source, fit in fits if not fit.fits]:
        raise BoundError("; ".join(over))
