"""`redline demo`: the whole way, in under three minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from redline.cli import options


def demo(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Gets engine and report.")] = Path(
        "demo-out"
    ),
    budget: Annotated[str, typer.Option(metavar="TIME", help="What optimizing may take.")] = "45s",
    seed: Annotated[int, typer.Option(metavar="N", help="Of training and verifying.")] = 0,
    json: options.Json = False,
) -> None:
    """Train, optimize, verify and use a small network, in a minute.

    Real digits; the engine then classifies those held out, in a process without torch.

    Example: redline demo
    """
    from redline.demo import run_demo

    tell = options.note if json else options.show
    found = run_demo(out, budget=budget, seed=seed, tell=tell)
    if json:
        import msgspec

        typer.echo(msgspec.json.encode(found).decode())
