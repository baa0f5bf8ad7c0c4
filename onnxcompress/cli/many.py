"""Commands about many runs: their reports, and a whole zoo of models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from onnxcompress.cli.terminal import fail, say_notes, terminal
from onnxcompress.errors import UsageError


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="A.json [B.json ...]")
@click.option("--html", "html_file", type=Path, help="Write a page for a browser to this file.")
def report(files: Sequence[str], html_file: Path | None) -> None:
    """Show what --report wrote, of runs side by side or of sensitivity: in the terminal, or on a page."""
    from onnxcompress.model import write_text
    from onnxcompress.page import page
    from onnxcompress.page.sensitivities import sensitivities_page
    from onnxcompress.report import sensitivity_table
    from onnxcompress.runs import read_reports, runs_table

    runs, alone = read_reports(files)
    if html_file is None:
        if runs:
            terminal().print(runs_table(runs))
        for name, each in alone:
            title = [f"{name}:"] if len(alone) > 1 else []
            terminal().print(*title, sensitivity_table(each.rows), sep="\n")
        return
    if any(html_file.exists() and html_file.samefile(each) for each in files):
        raise UsageError(f"{html_file}: is read by this run too, expected another file")
    write_text(html_file, page(runs) if runs else sensitivities_page(alone))
    click.echo(f"{html_file}: {len(files)} reports" if len(files) > 1 else str(html_file))


@click.command()
@click.argument("manifest", metavar="MANIFEST.toml")
@click.option(
    "--engine",
    type=click.Choice(["local", "dask"]),
    default="local",
    show_default=True,
    help="Where jobs run: in processes of this machine, or on a cluster of dask.distributed.",
)
@click.option(
    "--jobs", type=click.IntRange(1), help="Jobs at a time with --engine local. [default: processors]"
)
@click.option("--scheduler", metavar="ADDRESS", help="Scheduler of --engine dask, such as tcp://host:8786.")
@click.option("--resume", is_flag=True, help="Skip what an earlier run finished, if nothing of it changed.")
@click.option("--out", type=Path, help="Folder for the results. [default: what the manifest says, or 'out']")
def zoo(
    manifest: str, engine: str, jobs: int | None, scheduler: str | None, resume: bool, out: Path | None
) -> None:
    """Compress many models by many recipes, as a manifest says (docs/zoo.md)."""
    from onnxcompress.zoo import compress_many
    from onnxcompress.zoo.engines import open_engine
    from onnxcompress.zoo.figures import tally
    from onnxcompress.zoo.jobs import check_done
    from onnxcompress.zoo.manifest import read_manifest
    from onnxcompress.zoo.summary import write_summary
    from onnxcompress.zoo.watch import watching

    wanted = read_manifest(manifest, out)
    try:
        with open_engine(engine, jobs, scheduler) as executor, watching(terminal(stderr=True)) as watch:
            outcomes = compress_many(wanted.jobs, executor, out=wanted.out, resume=resume, watch=watch)
    except KeyboardInterrupt:
        fail("interrupted; --resume goes on with what isn't finished", 130)
    say_notes(write_summary(outcomes, wanted.out))
    click.echo(f"{wanted.out / 'summary.md'}: {tally(outcomes)}")
    check_done(outcomes)
