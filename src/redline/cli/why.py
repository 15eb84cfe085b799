"""`redline why`: runs a command, and says what its failure means."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from redline.cli import options


def why(
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="[--] COMMAND...", help="What to run, after --."),
    ] = None,
) -> None:
    """Run a command and explain its failure.

    Its output passes through unchanged; the explanation follows on stderr, and the exit status is
    the command's own. Without a command the text of a traceback is read from stdin.

    Example: redline why -- python train.py
    """
    from redline.diagnosis import run_and_explain, why_of_log

    if not command:
        told = why_of_log(sys.stdin.read())
        options.show("nothing to explain" if told is None else str(told))
        return
    status, told = run_and_explain(command)
    if told is not None:
        options.note(f"\n{told}")
    raise typer.Exit(status)
