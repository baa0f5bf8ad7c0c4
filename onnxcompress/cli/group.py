"""The group of all commands, whose first is what arguments mean that name none."""

from __future__ import annotations

import shlex

import click

from onnxcompress.cli.explain import built_in, summary

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
            formatter.write_dl([(each.name, f"{summary(each)} [{each.effect.value}]") for each in built_in()])
        with formatter.section("Presets"):
            from onnxcompress.recipe import PRESETS, preset

            formatter.write_dl([(name, str(preset(name))) for name in PRESETS])
