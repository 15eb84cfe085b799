"""`redline`: the commands, and what is done with an error that reaches the top."""

from __future__ import annotations

import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from redline import __version__, knobs
from redline.cli.bench import bench
from redline.cli.demo import demo
from redline.cli.doctor import doctor
from redline.cli.explain import explain
from redline.cli.export_kubernetes import export_kubernetes
from redline.cli.export_triton import export_triton
from redline.cli.graph_view import graph_view
from redline.cli.layout import layout
from redline.cli.optimize import optimize
from redline.cli.run import run
from redline.cli.serve import serve
from redline.cli.train import train
from redline.cli.tune_training import tune_training
from redline.cli.why import why
from redline.errors import InputError, RedlineError

FAILURE, BAD_INPUT = 1, 2  # the exit codes; Ctrl-C is 130


class _Group(TyperGroup):
    """Turns our errors into one block on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except RedlineError as error:
            if knobs.text("REDLINE_DEBUG") != "0":
                traceback.print_exc()
            typer.secho("error: ", fg="red", bold=True, err=True, nl=False)
            typer.echo("\n".join([str(error), *getattr(error, "__notes__", [])]), err=True)
            code = BAD_INPUT if isinstance(error, InputError) else FAILURE
            raise typer.Exit(code) from error


app = typer.Typer(
    cls=_Group,
    help="From a PyTorch model to the fastest engine your machine can run.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help is quick, and the same in a pipe and in docs/cli.md
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"redline {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """What comes before a command's name."""


for command in (
    *(optimize, run, explain, bench, graph_view),
    *(train, tune_training, serve, export_triton, export_kubernetes, layout, why, doctor, demo),
):
    app.command()(command)


def main() -> None:
    """The entry of the console script."""
    app(prog_name="redline")
