"""`redline export-triton`: an engine as a model that Triton serves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from redline.cli import options


def export_triton(
    engine: options.EngineFile,
    repository: Annotated[
        Path, typer.Argument(metavar="FOLDER", file_okay=False, help="Triton's model repository.")
    ],
    name: Annotated[
        str, typer.Option(metavar="NAME", help="Of the model; the file's own by default.")
    ] = "",
    json: options.Json = False,
) -> None:
    """Write an engine's graph and its config.pbtxt into a model repository of Triton.

    Compiled parts stay behind: Triton runs the graph in its own ONNX Runtime.

    Example: redline export-triton model.redline models/
    """
    import msgspec

    from redline.triton_export import export_triton as export

    folder = str(export(engine, repository, name))
    if json:
        typer.echo(msgspec.json.encode({"model": folder}).decode())
    else:
        options.note(f"model: {folder}")
