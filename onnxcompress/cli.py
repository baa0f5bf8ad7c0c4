"""The command line: arguments in, report out; no logic."""

from __future__ import annotations

import logging
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from inspect import cleandoc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import onnxcompress
from onnxcompress.errors import BoundError, CompressError, UsageError
from onnxcompress.target import NAMES

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from onnxcompress.base import Pass
    from onnxcompress.data import Data
    from onnxcompress.layerwise import Passage

COMMAND = "onnxcompress.command"  # where the context holds the whole command line
EPILOG = "More: 'onnxcompress passes NAME' explains a pass and its options; README.md has examples."


class CompressByDefault(click.Group):
    """A group whose first argument, where it isn't a command, starts the arguments of `compress`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `compress` before arguments that name no command."""
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h", "--version"):
            args = ["compress", *args]
        ctx.meta[COMMAND] = shlex.join(["onnxcompress", *args])
        return super().parse_args(ctx, args or ["--help"])

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Show the main job first."""
        formatter.write_usage(ctx.command_path, "IN.onnx OUT.onnx [OPTIONS]")
        formatter.write_usage(ctx.command_path, "COMMAND [ARGS]...")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the options of `compress`, the commands, and the passes."""
        main = self.commands["compress"]
        rows = [row for each in main.get_params(ctx) if (row := each.get_help_record(ctx)) is not None]
        with formatter.section("Options"):
            formatter.write_dl([*rows, ("--version", "Show the version.")])
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, each.get_short_help_str(80)) for name, each in sorted(self.commands.items())]
            )
        with formatter.section("Passes"):
            formatter.write_dl([(each.name, f"{summary(each)} [{each.effect.value}]") for each in _passes()])
        with formatter.section("Presets"):
            from onnxcompress.recipe import PRESETS, preset

            formatter.write_dl([(name, str(preset(name))) for name in PRESETS])


@click.group(cls=CompressByDefault, context_settings={"help_option_names": ["-h", "--help"]}, epilog=EPILOG)
@click.version_option(onnxcompress.__version__, prog_name="onnxcompress")
def cli() -> None:
    """Compile an ONNX model into a smaller, faster ONNX model, every rewrite verified."""


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


@cli.command(context_settings={"help_option_names": ["-h", "--help"]}, epilog=EPILOG)
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
    chosen = parse(recipe) if recipe is not None else preset(preset_name) if preset_name else None
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


@cli.command()
@click.argument("name", required=False)
def passes(name: str | None) -> None:
    """List the passes, or explain one and its options."""
    from onnxcompress.registry import find_pass

    if name is None:
        width = max(len(each.name) for each in _passes())
        for each in _passes():
            click.echo(f"{each.name:{width}}  {each.effect.value:5}  {summary(each)}")
        return
    click.echo(explain(find_pass(name)))


@cli.command(name="compare")
@click.argument("first", metavar="A.onnx")
@click.argument("second", metavar="B.onnx")
@data_options
@click.option("--layers", is_flag=True, help="List the error entering and leaving every layer, too.")
@click.option(
    "--exact", is_flag=True, help="Exit with 3 where the outputs do not agree within the tolerance."
)
def compare_command(first: str, second: str, layers: bool, exact: bool, **options: Any) -> None:
    """Compare the outputs of two models on data."""
    from onnxcompress.report import comparison_table, passages_table
    from onnxcompress.verify import compare

    with opened([first, second], options) as (runnables, samples, tolerance, labels):
        before, after = runnables
        found = compare(before, after, samples, labels=labels, tolerance=tolerance, random=samples.random)
        rows = passages_of(first, second, samples, options["threads"]) if layers else []
    terminal().print(comparison_table(found, options["metric"]))
    if layers:
        terminal().print(passages_table(rows))
    if exact and not found.exact:
        raise BoundError(
            f"{second}: outputs differ from those of {first}: {found.worst_output}, {found.snr:.1f} dB"
        )


@cli.command()
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


@cli.command()
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
def sensitivity(
    source: str,
    check_rtol: float | None,
    check_atol: float | None,
    metric: str | None,
    shapes: Sequence[tuple[str, tuple[int, ...]]],
    **options: Any,
) -> None:
    """Print what a model loses when each layer alone is compressed, and what that saves."""
    from onnxcompress.report import sensitivity_table
    from onnxcompress.trials import sensitivity as measure
    from onnxcompress.verify import check_metric

    check_metric(metric)
    if options["evaluation"] is None and options["data"] is None:
        say_notes(["random inputs: they tell nothing about accuracy"])
    with progress_bar() as progress:
        found = measure(source, shapes=dict(shapes), progress=progress, **options)
    terminal().print(sensitivity_table(found.rows, metric))


@cli.command()
@click.argument("source", metavar="IN.onnx")
@click.argument("output", metavar="OUT.onnx")
@click.option("--external-data", is_flag=True, help="Keep weights in a file of their own.")
def unpack(source: str, output: str, external_data: bool) -> None:
    """Write the plain dense model of one that `encode` made, bit for bit."""
    from onnxcompress import pipeline

    names = pipeline.unpack(source, output, external_data=external_data)
    click.echo(f"{output}: {len(names)} weights unpacked" if names else f"{output}: nothing was encoded")


@cli.command()
@click.argument("source", metavar="MODEL.onnx")
def inspect(source: str) -> None:
    """Print what each tensor of a model takes in its file, and in which format."""
    from onnxcompress.formats.unpack import ledger
    from onnxcompress.report import ledger_table

    terminal().print(ledger_table(ledger(source)))


@cli.command()
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


@cli.command()
@click.argument("files", nargs=-1, required=True, metavar="A.json [B.json ...]")
@click.option("--html", "html_file", type=Path, help="Write a page for a browser to this file.")
def report(files: Sequence[str], html_file: Path | None) -> None:
    """Compare runs by the files that --report wrote: in the terminal, or on a page."""
    from onnxcompress.model import write_text
    from onnxcompress.page import page
    from onnxcompress.runs import read_report, runs_table

    found = [(each, read_report(Path(each))) for each in files]
    if html_file is None:
        terminal().print(runs_table(found))
        return
    if any(html_file.exists() and html_file.samefile(each) for each in files):
        raise UsageError(f"{html_file}: is read by this run too, expected another file")
    write_text(html_file, page(found))
    click.echo(f"{html_file}: {len(found)} runs" if len(found) > 1 else str(html_file))


def passages_of(first: str, second: str, samples: Data, threads: int) -> list[Passage]:
    """Return the error around every layer of the model in the file `first` that the one in `second` makes."""
    from onnxcompress.layerwise import passages
    from onnxcompress.model import load
    from onnxcompress.registry import find_runtime

    engine = find_runtime("onnxruntime").make(threads=threads)
    return passages(load(first), load(second), engine, samples)


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


@cli.command()
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
def analyze(
    models: Sequence[str],
    shapes: Sequence[tuple[str, tuple[int, ...]]],
    correlate: Sequence[str],
    json_file: Path | None,
    csv_file: Path | None,
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
    from onnxcompress.model import write_text

    tables.check_outputs([json_file, csv_file], models)
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
    for each in found:
        say_notes(f"{each.source}: {note}" for note in each.notes)
    console = terminal()
    for table in tables.model_tables(found[0]) if len(found) == 1 else [tables.models_table(found)]:
        console.print(table)
    for line in [*map(str, pairs), *(f"{source}: {fit}" for source, fit in fits)]:
        console.print(line, markup=False, soft_wrap=True)
    if over := [f"{source}: {fit}" for source, fit in fits if not fit.fits]:
        raise BoundError("; ".join(over))


@cli.command()
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
    from onnxcompress.zoo.jobs import check_done
    from onnxcompress.zoo.manifest import read_manifest
    from onnxcompress.zoo.summary import tally, write_summary
    from onnxcompress.zoo.watch import watching

    wanted = read_manifest(manifest, out)
    try:
        with open_engine(engine, jobs, scheduler) as executor, watching(terminal(stderr=True)) as watch:
            outcomes = compress_many(wanted.jobs, executor, out=wanted.out, resume=resume, watch=watch)
    except KeyboardInterrupt:
        fail("interrupted; --resume goes on with what isn't finished", 130)
    write_summary(outcomes, wanted.out)
    click.echo(f"{wanted.out / 'summary.md'}: {tally(outcomes)}")
    check_done(outcomes)


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


def say_notes(notes: Iterable[str]) -> None:
    """Print what a user must see, on standard error."""
    from rich.text import Text

    for note in notes:
        terminal(stderr=True).print(Text.assemble(("note: ", "yellow"), note))


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int | None, str], None]]:
    """Yield a function that shows progress on stderr, where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda done, total, what: None
        return
    from rich.progress import Progress

    with Progress(console=terminal(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total, what: bar.update(task, completed=done, total=total, description=what)


def terminal(stderr: bool = False) -> Console:
    """Return a console on standard output or error."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


def summary(each: type[Pass]) -> str:
    """Return the first line of a pass's documentation."""
    return cleandoc(each.__doc__ or "").splitlines()[0]


def explain(each: type[Pass]) -> str:
    """Return a pass's documentation page as text."""
    lines = [f"{each.name} ({each.effect.value})", "", cleandoc(each.__doc__ or ""), "", "Options:"]
    for entry in each.options():
        bounds = ", ".join(map(str, entry.choices)) if entry.choices else ""
        if entry.within:
            bounds = f"{entry.within[0]:g} to {entry.within[1]:g}"
        kind = f"{entry.kind.__name__}{', ' + bounds if bounds else ''}"
        lines.append(f"  {entry.name} = {entry.default!r} ({kind}): {entry.help}")
    for label, wanted in (("Needs", each.needs), ("Uses where given", each.uses)):
        if wanted:
            lines.append(f"{label}: {', '.join(sorted(need.value for need in wanted))}")
    return "\n".join(lines)


def _passes() -> list[type[Pass]]:
    from onnxcompress.registry import passes as built_in

    return list(built_in().values())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with 0, or with what failed: 1 the model, 2 the request, 3 a bound."""
    try:
        status = cli.main(arguments, prog_name="onnxcompress", standalone_mode=False)
    except click.ClickException as error:
        fail(error.format_message(), error.exit_code)
    except CompressError as error:
        fail(str(error), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        fail("interrupted; nothing was written", 130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    else:
        sys.exit(status if isinstance(status, int) else 0)


def fail(message: str, code: int) -> None:
    """Print one line of error and exit."""
    click.echo(f"onnxcompress: {' '.join(message.split())}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
