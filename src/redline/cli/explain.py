"""`redline explain`: why an engine is what it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from redline.cli import options
from redline.errors import InputError

if TYPE_CHECKING:
    from redline.report.report import Report


def explain(
    engine: options.EngineFile,
    report: options.Html = None,
    json: options.Json = False,
) -> None:
    """Say why an engine is what it is.

    Why the winner won, how near this machine's limit it is, and what each compiler does.

    Nothing in the file is run, so it need not be trusted, nor its backend be installed.

    Example: redline explain model.redline --report report.html
    """
    options.can_be_written(report, ".html")
    found = _read(engine)
    if report:
        options.note(f"report: {found.write_html(report)}")
    if json:
        typer.echo(found.json())
    else:
        options.show(found.explain())


def _read(path: Path) -> Report:
    """The report that lies in an engine file."""
    from redline.drop_in import read_study
    from redline.engine.file import open_file
    from redline.report.report import Report

    with open_file(path) as file:
        study = read_study(file.manifest)
    if study is None:
        raise InputError(
            f"{path} holds no report", hint="engines saved by redline.optimize() hold one"
        )
    return Report(study)
