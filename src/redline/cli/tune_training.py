"""`redline tune-training`: what bounds a training step, and the lines that make it faster."""

from __future__ import annotations

from typing import Annotated

import typer

from redline.cli import options


def tune_training(
    target: Annotated[
        str,
        typer.Argument(
            metavar="LOOP",
            help="A function that returns the parts of the loop: script.py:parts or "
            "pkg.module:parts.",
        ),
    ],
    budget: Annotated[str, typer.Option(metavar="TIME", help="Time it may take.")] = "60s",
    skip: Annotated[
        list[str] | None,
        typer.Option(
            "--skip",
            metavar="STAGE",
            help="Leave out: input, loop, optimizer, precision, layout, threads, compile, batch, "
            "lr. Once for each.",
        ),
    ] = None,
    report: options.Html = None,
    json: options.Json = False,
) -> None:
    """Find what bounds a training step, and the lines to change.

    The function returns redline.train.Loop(...), a dict of its fields, or (model, optimizer, loss,
    loader). Nothing of it is changed: everything is tried on copies.

    Example: redline tune-training train.py:parts --budget 2m --report tuning.html
    """
    from redline.progress import Progress
    from redline.search.goal import quantity
    from redline.train.tuning.script import tune_target

    options.can_be_written(report, ".html")
    seconds = quantity(budget, "time", "budget")
    with options.talk_on_stderr(), Progress(seconds) as say:
        found = tune_target(target, budget=budget, skip=skip or (), say=say)
    if report:
        options.note(f"report: {found.write_html(report)}")
    if json:
        typer.echo(found.json())
    else:
        options.show(found.text())
