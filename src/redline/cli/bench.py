"""`redline bench`: several engines, models and files side by side."""

from __future__ import annotations

from typing import Annotated

import typer

from redline.cli import options


def bench(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="TARGET",
            help="Engine files, .onnx files and pkg.module:factory, in any mix.",
        ),
    ],
    input: options.Inputs = None,
    report: options.Html = None,
    budget: options.Budget = None,
    trust: options.Trust = False,
    json: options.Json = False,
) -> None:
    """Time several things side by side.

    They take turns, each in a process of its own.
    The outputs of all are held against the first one's. Inputs are those stored in the first engine
    unless given.

    Example: redline bench model.redline net.onnx pkg.models:build --input 1x3x224x224
    """
    options.can_be_written(report, ".html")

    import redline
    from redline.capture.factory import parse_inputs

    with options.talk_on_stderr():
        found = redline.compare(targets, parse_inputs(input or []), budget=budget, trust=trust)
    if json:
        typer.echo(found.json())
    else:
        options.show(found)
    if report:
        options.note(f"report: {found.write_html(report)}")
