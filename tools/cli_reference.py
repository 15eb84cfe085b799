"""Write docs/cli.md from the commands' own help, so that the page says what the commands do.

python tools/cli_reference.py
"""

from __future__ import annotations

import inspect
from pathlib import Path

from typer.testing import CliRunner

from redline.cli.main import app

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
INTRODUCTION = """\
# The command line

Written by `make docs` from the commands' help; a test compares the two.

* Data goes to stdout; progress, notes and errors go to stderr. `--json` prints one JSON object.
* Colour stops in a pipe and under `NO_COLOR`.
* An error says what happened, where, and what to do. `REDLINE_DEBUG=1` adds the traceback.
* Exit codes: 0 it worked, 1 it failed, 2 the input is not usable, 130 Ctrl-C. Ctrl-C during
  `redline optimize` ends the search; the best engine so far is reported and saved.
"""


def command_names() -> list[str]:
    """Every command, in the order of `redline --help`."""
    return [
        inspect.unwrap(command.callback).__name__.replace("_", "-")
        for command in app.registered_commands
    ]


def help_of(command: str) -> str:
    """What `redline COMMAND --help` prints, at a fixed width."""
    words = [command, "--help"] if command else ["--help"]
    environment = {"COLUMNS": "100", "NO_COLOR": "1"}
    return CliRunner().invoke(app, words, prog_name="redline", env=environment).stdout


def page() -> str:
    """The whole of docs/cli.md."""
    sections = [f"## redline {name}".rstrip() for name in ["", *command_names()]]
    texts = [help_of(name) for name in ["", *command_names()]]
    blocks = [
        f"{title}\n\n```text\n{text}```\n" for title, text in zip(sections, texts, strict=True)
    ]
    return "\n".join([INTRODUCTION, *blocks])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
