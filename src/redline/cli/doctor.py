"""`redline doctor`: what this machine is and what works on it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from redline.cli import options

if TYPE_CHECKING:
    from rich.table import Table

    from redline.doctor import Finding
    from redline.machine import Machine


def doctor(
    json: options.Json = False,
    refresh: Annotated[bool, typer.Option("--refresh", help="Measure the machine again.")] = False,
) -> None:
    """Show what this machine can do and what is missing.

    Every backend, extra and tool is listed, with the command that mends what cannot be used.
    The exit status is 1 when torch, onnx or onnxruntime does not work.

    Example: redline doctor
    """
    from redline import machine
    from redline.doctor import examine, healthy

    with options.talk_on_stderr():
        card = machine.card(refresh=refresh)
        findings = examine()
    if json:
        typer.echo(_as_json(card, findings))
    else:
        options.show(_machine_table(card))
        options.show("")
        options.show(_findings_table(findings))
        options.show(_commands(findings))
    if not healthy(findings):
        raise typer.Exit(1)


def _as_json(card: Machine, findings: Iterable[Finding]) -> str:
    import json
    from dataclasses import asdict

    told = {"machine": asdict(card), "findings": [asdict(finding) for finding in findings]}
    return json.dumps(told, indent=2, ensure_ascii=False)


def _machine_table(card: Machine) -> Table:
    from dataclasses import asdict

    from rich.table import Table

    from redline.report.card import read

    table = Table("machine", "", box=None, pad_edge=False)
    for row in read(asdict(card)).rows:
        table.add_row(*row)
    table.add_row("measured at", card.measured_at)
    table.add_row("fingerprint", card.fingerprint)
    return table


def _findings_table(findings: Iterable[Finding]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table("", "kind", "name", "version, or what is wrong", box=None, pad_edge=False)
    for finding in findings:
        mark = Text("ok", "green") if finding.usable else Text("no", "red")
        told = finding.version if finding.usable else finding.reason
        table.add_row(mark, finding.kind, finding.name, told)
    return table


def _commands(findings: Iterable[Finding]) -> str:
    """Below the table, where no column folds them: they are to be copied."""
    mending = [finding for finding in findings if finding.command]
    lines = [f"{finding.command}  # {finding.name}" for finding in mending]
    return "\n".join(["", "To mend:", *lines] if lines else [])
