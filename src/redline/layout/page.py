"""HTML of what this package prints: tables, text, and whole pages that ask for nothing."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_STYLE = """
body { margin: 2em auto; max-width: 70em; padding: 0 1.5em; font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5em; border-bottom: 2px solid #c8102e; }
table { border-collapse: collapse; } th, td { padding: .15em .8em .15em 0; text-align: left; }
th { font-weight: 600; vertical-align: top; white-space: nowrap; } td { vertical-align: top; }
pre, code { font: 13px/1.45 ui-monospace, Menlo, Consolas, monospace; white-space: pre-wrap; }
svg { max-width: 100%; height: auto; }
@media (prefers-color-scheme: dark) { body { background: #14171a; color: #e6e9ec; } }
"""


def preformatted(text: str) -> str:
    """Text as HTML, with its line breaks."""
    return f'<pre style="white-space:pre-wrap">{escape(text)}</pre>'


def facts_table(rows: Sequence[tuple[str, str]]) -> str:
    """Two columns: what it is, its value."""
    cells = "".join(
        f"<tr><th scope='row' style='text-align:left'>{escape(name)}</th>"
        f"<td style='text-align:left'>{escape(value)}</td></tr>"
        for name, value in rows
    )
    return f"<table>{cells}</table>"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with a head."""
    head = "".join(f"<th scope='col' style='text-align:left'>{escape(name)}</th>" for name in heads)
    body = "".join(
        "<tr>"
        + "".join(f"<td style='text-align:left'>{escape(cell)}</td>" for cell in row)
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def document(title: str, body: str) -> str:
    """A whole page. Its policy allows no script and no request."""
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>{body}</body></html>\n"
    )
