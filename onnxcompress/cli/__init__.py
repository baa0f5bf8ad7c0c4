"""The command line: arguments in, report out; no logic."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

import onnxcompress
from onnxcompress.cli.cost import analyze
from onnxcompress.cli.explain import passes
from onnxcompress.cli.group import EPILOG, CompressByDefault
from onnxcompress.cli.look import bench, channels, compare_command, inspect, sensitivity
from onnxcompress.cli.many import report, zoo
from onnxcompress.cli.terminal import fail
from onnxcompress.cli.write import compress, unpack
from onnxcompress.errors import CompressError


@click.group(cls=CompressByDefault, context_settings={"help_option_names": ["-h", "--help"]}, epilog=EPILOG)
@click.version_option(onnxcompress.__version__, prog_name="onnxcompress")
def cli() -> None:
    """Compile an ONNX model into a smaller, faster ONNX model, every rewrite verified."""


for command in (
    *(compress, unpack, passes, compare_command, bench, sensitivity, inspect, channels),
    *(analyze, report, zoo),
):
    cli.add_command(command)


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
