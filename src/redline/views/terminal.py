"""A view on a terminal, drawn by rich."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from redline.views.page import Item, Page, Row

_ROWS = 40  # as many as are read; deeper levels are folded into them
_STYLES = {"": "", "muted": "dim", "bad": "red", "warn": "yellow", "good": "green"}


def renderable(page: Page, depth: int | None = None) -> RenderableType:
    """The page as something that rich prints; `depth` levels of the tree (None: what fits)."""
    return Group(*_parts(page, depth))


def _parts(page: Page, depth: int | None) -> Iterator[RenderableType]:
    brand = (f"Redline {page.what}", "bold red")
    yield Text.assemble(brand, "  ", (page.title, "bold"))
    for line in page.lead:
        yield Text(line, style="dim")
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value, small in page.tiles:
        grid.add_row(label, Text.assemble((value, "bold"), (f"  {small}" if small else "", "dim")))
    yield grid
    if page.rows:
        yield Text()
        yield _tree(page, depth)
    for title, items in page.lists:
        if not items:
            continue
        yield Text(f"\n{title}", style="bold")
        for item in items:
            yield from _item(item)
    if page.notes:
        yield Text("\nNotes", style="bold")
        for note in page.notes:
            yield Padding(Text(note), (0, 0, 0, 2))


def _tree(page: Page, depth: int | None) -> Table:
    levels = depth if depth is not None else _fitting(page.rows)
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
    table.add_column(page.tree_title.lower(), no_wrap=True)
    for column in page.columns:
        table.add_column(column, justify="right", no_wrap=True)
    for level, row in _flat(page.rows, levels):
        hidden = " …" if row.children and level >= levels else ""
        name = Text.assemble("  " * level, row.name, "  ", (row.kind + hidden, "dim"))
        table.add_row(name, *row.cells, style=_STYLES[row.tone])
    return table


def _flat(rows: Sequence[Row], levels: int, level: int = 0) -> Iterator[tuple[int, Row]]:
    for row in rows:
        yield level, row
        if level < levels:
            yield from _flat(row.children, levels, level + 1)


def _fitting(rows: Sequence[Row]) -> int:
    """The deepest level at which the tree still fits; the first two are always shown."""
    levels = 1
    while True:
        shown = sum(1 for _ in _flat(rows, levels + 1))
        if shown > _ROWS or shown == sum(1 for _ in _flat(rows, levels)):
            return levels
        levels += 1


def _item(item: Item) -> Iterator[RenderableType]:
    head = Text.assemble((item.head, _STYLES[item.tone] or "bold"), "  ", item.text)
    yield Padding(head, (0, 0, 0, 2))
    if item.hint:
        yield Padding(Text(item.hint, style="cyan"), (0, 0, 0, 6))
