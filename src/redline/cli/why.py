"""`redline why`: runs a command, and says what its failure means."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from redline.cli import options

if TYPE_CHECKING:
    from redline.diagnosis import Why


def why(
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="[--] COMMAND...", help="What to run, after --."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Run a command and explain its failure.

    Its output passes through unchanged; the explanation follows on stderr, and the exit status is
    the command's own. Without a command the text of a traceback is read from stdin, and the
    explanation goes to stdout.

    Example: redline why -- python train.py
    """
    from redline.diagnosis import run_and_explain, why_of_log

    if not command:
        told = why_of_log(sys.stdin.read())
        options.show(_spelled(told, json))
        return
    status, told = run_and_explain(command)
    if told is not None:
        options.note(_spelled(told, json) if json else f"\n{told}")
    raise typer.Exit(status)


def _spelled(told: Why | None, json: bool) -> str:
    if not json:
        return "nothing to explain" if told is None else str(told)
    import msgspec

    return msgspec.json.encode(told).decode()
