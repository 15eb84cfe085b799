"""`redline layout`: the strides of a tensor, its picture, and whether a view is legal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from redline.cli import options
from redline.errors import InputError


def layout(
    expression: Annotated[
        str,
        typer.Argument(metavar="EXPR", help="A tensor: torch.zeros, np.arange, slices, views."),
    ],
    view: Annotated[
        str | None,
        typer.Option(metavar="SHAPE", help="Also say whether this view is legal, e.g. 2x-1."),
    ] = None,
    svg: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the picture as one SVG file.")
    ] = None,
    report: options.Html = None,
    json: options.Json = False,
) -> None:
    """Show a tensor's strides, storage and walk.

    The expression is not run as Python: it may make small tensors with torch or np, slice them
    and take views, and nothing else.

    Example: redline layout "torch.zeros(4, 6).t()[1:]" --view 24
    """
    options.can_be_written(svg, ".svg")
    options.can_be_written(report, ".html")

    from redline.layout.expression import evaluate
    from redline.layout.facts import describe
    from redline.layout.view import explain_view

    tensor = evaluate(expression)
    shape = None if view is None else _shape(view)
    found = describe(tensor)
    told = None if shape is None else explain_view(tensor, shape)
    if svg:
        svg.write_text(found.svg(), encoding="utf-8")
        options.note(f"picture: {svg}")
    if report:
        report.write_text(found.html(), encoding="utf-8")
        options.note(f"report: {report}")
    if json:
        import msgspec

        both = {"layout": found, "view": told}
        typer.echo(msgspec.json.encode(msgspec.to_builtins(both)).decode())
    else:
        options.show(str(found))
        if told is not None:
            options.show(f"\n{told}")


def _shape(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in text.replace("x", ",").split(",") if size.strip())
    except ValueError:
        raise InputError(f"--view {text!r} is no shape", hint="write 2x12, or 2x-1") from None
