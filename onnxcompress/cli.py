"""The command line: arguments in, report out; no logic."""

from __future__ import annotations

import logging
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

EPILOG = "More: 'onnxcompress passes NAME' explains a pass and its options; README.md has examples."


class CompressByDefault(click.Group):
    """A group whose first argument, where it isn't a command, starts the arguments of `compress`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `compress` before arguments that name no command."""
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h", "--version"):
            args = ["compress", *args]
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
@click.option("--passes", "recipe", help="Recipe, such as prune(sparsity=0.6),quant.")
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
    from onnxcompress.recipe import Recipe, preset
    from onnxcompress.report import tables
    from onnxcompress.verify import Tolerance

    logging.basicConfig(level=log_level.upper(), format="%(name)s: %(message)s")
    if sum(each is not None for each in (recipe, recipe_file, preset_name)) != 1:
        raise UsageError("recipe: expected exactly one of --passes, --recipe and --preset")
    chosen = Recipe.parse(recipe) if recipe is not None else preset(preset_name) if preset_name else None
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
@click.option(
    "--exact", is_flag=True, help="Exit with 3 where the outputs do not agree within the tolerance."
)
def compare_command(first: str, second: str, exact: bool, **options: Any) -> None:
    """Compare the outputs of two models on data."""
    from onnxcompress.report import comparison_table
    from onnxcompress.verify import compare

    with opened([first, second], options) as (runnables, samples, tolerance, labels):
        before, after = runnables
        found = compare(before, after, samples, labels=labels, tolerance=tolerance, random=samples.random)
    terminal().print(comparison_table(found, options["metric"]))
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
    engine = find_runtime("onnxruntime").make(threads=options["threads"])
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
