"""The picture of a layout as SVG: index grid, storage strip with addresses, walk order."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from html import escape

from redline.layout.facts import positions, spans
from redline.layout.picture import owners
from redline.layout.source import Strided

_CELLS, _ROW, _STEPS = 96, 24, 48  # cells drawn, cells in a row of the strip, arrows of the walk
_W, _H, _GAP, _LEFT = 40, 30, 34, 12
_STYLE = (
    ".rl text{font:12px ui-monospace,Menlo,Consolas,monospace;fill:#1b1f24;text-anchor:middle}"
    ".rl .t{text-anchor:start;font-weight:600}.rl .a{font-size:9px;fill:#59636e}"
    ".rl rect{stroke:#59636e;stroke-width:1}.rl .n{fill:#e8ebee}.rl .m{stroke-width:3}"
    ".rl path{fill:none;stroke:#c8102e;stroke-width:1.3;opacity:.75}"
    "@media (prefers-color-scheme:dark){.rl .t,.rl .a{fill:#9aa5b1}.rl .n{fill:#3a424b}"
    ".rl path{stroke:#ff5a6e}}"
)
# One colour for each row of the index grid, the same in the strip: light enough for black text.
_COLOURS = ("#cfe3f7", "#fbdcc0", "#cdeee2", "#ead6ef", "#f3e7b3", "#f7ced8", "#d8dde2", "#c9e6ee")


def draw(facts: Strided) -> str:
    """The grid (cell = place in the storage), the strip (cell = index, address below), the walk.

    Large tensors show their beginning, and say how much is left out.

    Example:
        >>> draw(read(torch.zeros(3, 2).t()))[:4]
        '<svg'
    """
    grid = list(_grid(facts))
    grid_rows = max(1, -(-min(facts.count, _CELLS) // _columns(facts)))
    top = 24 + grid_rows * _H + _GAP
    strip, rows = _strip(facts, top)
    width = _LEFT * 2 + max(8, min(_ROW, max(spans(facts), _columns(facts)))) * _W
    width = max(width, 560)
    height = top + 12 + rows * (_H + _GAP + 22) + 8
    words = escape(f"{facts.dtype} tensor of shape {facts.shape} with strides {facts.strides}")
    return (
        f'<svg class="rl" xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img" aria-label="{words}">'
        f"<style>{_STYLE}</style>{''.join(grid)}{''.join(strip)}</svg>"
    )


def _columns(facts: Strided) -> int:
    return max(1, min(facts.shape[-1] if facts.shape else 1, _ROW))


def _colour(number: int, facts: Strided) -> str:
    """The colour of the row of the grid that the n-th element stands in."""
    length = facts.shape[-1] if facts.shape else 1
    return _COLOURS[number // max(length, 1) % len(_COLOURS)]


def _grid(facts: Strided) -> Iterator[str]:
    shown = min(facts.count, _CELLS)
    more = f", the first {shown} of {facts.count}" if shown < facts.count else ""
    said = f"index grid {facts.shape}: each cell is its place in the storage{more}"
    yield _text(_LEFT, 14, said, "t")
    columns = _columns(facts)
    for number, place in enumerate(positions(facts, shown).tolist()):
        x, y = _LEFT + number % columns * _W, 24 + number // columns * _H
        yield _cell(x, y, str(place), _colour(number, facts))


def _strip(facts: Strided, top: int) -> tuple[list[str], int]:
    total = spans(facts)
    shown = min(total, _CELLS)
    held = owners(facts, _CELLS)
    numbers = {
        place: number
        for number, place in reversed(
            list(enumerate(positions(facts, min(facts.count, _CELLS * 4)).tolist()))
        )
    }
    more = f", the first {shown} of {total} elements" if shown < total else ""
    said = f"storage strip: index in the cell, address in bytes below, red: the walk{more}"
    parts = [_text(_LEFT, top, said, "t")]
    for place in range(shown):
        x, y = _corner(place, top)
        who = held.get(place)
        colour = _colour(numbers[place], facts) if who else ""
        label = ("" if not who else who[0]) + ("*" if who and len(who) > 1 else "")
        parts.append(_cell(x, y, label, colour, many=bool(who and len(who) > 1)))
        parts.append(_text(x + _W // 2, y + _H + 11, f"+{place * facts.itemsize}", "a"))
    parts += _walk(facts, shown, top)
    return parts, max(1, -(-shown // _ROW))


def _corner(place: int, top: int) -> tuple[int, int]:
    return _LEFT + place % _ROW * _W, top + 12 + _GAP // 2 + place // _ROW * (_H + _GAP + 22)


def _walk(facts: Strided, shown: int, top: int) -> Iterator[str]:
    """An arc from each element to the next in index order; within one row of the strip."""
    places = positions(facts, min(facts.count, _STEPS)).tolist()
    for here, there in itertools.pairwise(places):
        same_row = here // _ROW == there // _ROW
        if here == there or not same_row or not 0 <= max(here, there) < shown:
            continue
        (x0, y), (x1, _) = _corner(here, top), _corner(there, top)
        x0, x1 = x0 + _W // 2, x1 + _W // 2
        lift = 6 + min(22, abs(x1 - x0) // 12)
        yield f'<path d="M{x0} {y}Q{(x0 + x1) // 2} {y - lift} {x1} {y}"/>'
        tip = -4 if x1 > x0 else 4
        yield f'<path d="M{x1 + tip} {y - 5}L{x1} {y}l{tip} -1"/>'


def _cell(x: int, y: int, label: str, colour: str, many: bool = False) -> str:
    fill = f'style="fill:{colour}"' if colour else 'class="n"'
    if many:
        fill = f'class="m" {fill}'
    words = f'<text x="{x + _W // 2}" y="{y + 20}">{escape(label)}</text>' if label else ""
    return f'<rect x="{x}" y="{y}" width="{_W}" height="{_H}" {fill}/>{words}'


def _text(x: int, y: int, words: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x}" y="{y}">{escape(words)}</text>'
