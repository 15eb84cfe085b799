"""What a view shows, as data: a terminal and a browser draw the same page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from redline.report import document

if TYPE_CHECKING:
    from rich.console import RenderableType

SCHEMA = 1


@dataclass(frozen=True)
class Row:
    """A row of the tree: a module, or a group. `share` from 0 to 1 is drawn as a bar."""

    name: str
    kind: str
    cells: tuple[str, ...]
    share: float = 0.0
    tone: str = ""
    children: tuple[Row, ...] = ()


@dataclass(frozen=True)
class Item:
    """An entry of a list: what, the words on it, and what helps."""

    head: str
    text: str
    hint: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Page:
    """One view. `tiles` are (label, value, small print); `figure` is SVG,
    and so is `figure_in_full`, which stands folded below it.
    """

    what: str
    title: str
    lead: tuple[str, ...]
    tiles: tuple[tuple[str, str, str], ...]
    columns: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()
    tree_title: str = "Modules"
    figure: str = ""
    figure_title: str = ""
    figure_in_full: str = ""
    caption: str = ""
    lists: tuple[tuple[str, tuple[Item, ...]], ...] = ()
    notes: tuple[str, ...] = ()


class View:
    """Prints itself on a terminal, in a notebook, as HTML and as JSON."""

    def page(self) -> Page:
        """What there is to show."""
        raise NotImplementedError

    def __str__(self) -> str:
        return self.text()

    def __rich__(self) -> RenderableType:
        from redline.views.terminal import renderable

        return renderable(self.page())

    def _repr_html_(self) -> str:
        return document.frame(self.html(), f"Redline {self.page().what}")

    def text(self, width: int | None = None, depth: int | None = None) -> str:
        """The terminal page without colour.

        `width` is in columns (None: this terminal's). `depth` is how many levels of modules are
        shown (None: as many as fit 40 rows; deeper ones are counted in the row above them).
        """
        from redline.report.terminal import text
        from redline.views.terminal import renderable

        return text(renderable(self.page(), depth), width or document.columns())

    def html(self) -> str:
        """One HTML document that asks the network for nothing; it needs no script."""
        from redline.views.html import render

        return render(self.page())

    def write_html(self, path: str | Path) -> Path:
        """Write html() to a file, all of it or nothing; returns the path.

        Raises:
            SaveError: the file cannot be written; what was there is untouched.
        """
        return document.write(path, self.html())

    def json(self) -> str:
        """The figures as one JSON object: the fields of the view and `schema`."""
        data = {"schema": SCHEMA, **msgspec.to_builtins(self)}
        return msgspec.json.encode(data).decode()
