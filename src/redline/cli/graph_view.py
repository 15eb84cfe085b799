"""`redline graph-view`: a model's tree with shapes, FLOPs and memory, before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from redline.cli import options


def graph_view(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="What builds it: pkg.models:build.")
    ],
    input: options.Inputs = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write one HTML file.")
    ] = None,
    depth: Annotated[
        int | None, typer.Option("--depth", min=0, help="Levels of modules to print.")
    ] = None,
    train: Annotated[
        bool, typer.Option("--train", help="Put the model in training mode first.")
    ] = False,
    meta: Annotated[
        bool, typer.Option("--meta", help="Build it without memory for its weights.")
    ] = False,
    real: Annotated[
        bool, typer.Option("--real", help="Compute on real values, for a forward that needs them.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Show a model's shapes, FLOPs and memory before it runs.

    Nothing is computed: operators only tell the shapes of their results. Memory is that of the
    forward, of what it saves for the backward, and the peak of both.

    Example: redline graph-view pkg.models:build --input 1x3x224x224
    """
    from redline.views.command import view_model

    options.can_be_written(html, ".html")
    with options.talk_on_stderr():
        view = view_model(model, input or (), train=train, meta=meta, real=real)
    if html:
        options.note(f"view: {view.write_html(html)}")
    if json:
        typer.echo(view.json())
    else:
        options.show(view.text(depth=depth))
