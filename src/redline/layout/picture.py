"""The picture of a layout as text: the storage strip, the index grid, the walk."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from redline.layout.facts import positions, spans
from redline.layout.source import Strided

_CELLS, _WALK = 96, 24  # of the strip and the grid; steps of the walk


def picture(facts: Strided, width: int = 100) -> str:
    """Strip, grid and walk, `width` columns wide at most; large tensors show their beginning.

    Example:
        >>> print(picture(read(torch.zeros(3, 2).t())).split("grid")[1])
        : the place in the storage of each index
          0  2  4
          1  3  5
        <BLANKLINE>
        walk in index order: 0 2 4 1 3 5
    """
    if facts.count == 0:
        return "no elements, nothing to draw"
    parts = (_strip(facts, width), _grid(facts, width), _walk(facts))
    return "\n\n".join("\n".join(part) for part in parts)


def owners(facts: Strided, cells: int) -> dict[int, list[str]]:
    """Place in the storage -> the indices that live there, for the first `cells` elements."""
    found: dict[int, list[str]] = {}
    places = positions(facts, min(facts.count, cells * 4)).tolist()
    indices = itertools.product(*map(range, facts.shape))
    for place, index in zip(places, indices, strict=False):
        found.setdefault(place, []).append(",".join(map(str, index)))
    return found


def _strip(facts: Strided, width: int) -> Iterator[str]:
    total = spans(facts)
    shown = min(total, _CELLS)
    held = owners(facts, _CELLS)
    cells = []
    for place in range(shown):
        who = held.get(place, [])
        cells.append(f"{who[0]}{'*' if len(who) > 1 else ''}" if who else "·")
    wide = max(len(f"+{shown * facts.itemsize}"), *map(len, cells)) + 1
    row = max(1, (width - 7) // wide)
    yield "storage strip: the address in bytes from its start, and the index that lives there"
    for start in range(0, shown, row):
        part = range(start, min(start + row, shown))
        yield (
            "  byte  "
            + "".join(f"+{place * facts.itemsize}".ljust(wide) for place in part).rstrip()
        )
        yield "  index " + "".join(cells[place].ljust(wide) for place in part).rstrip()
    if shown < total:
        yield f"  ... and {total - shown} more elements"
    if any(len(who) > 1 for who in held.values()):
        yield "  * more than one index lives there"
    if any(cell == "·" for cell in cells):
        yield "  · no index of this tensor lives there"


def _grid(facts: Strided, width: int) -> Iterator[str]:
    yield "index grid: the place in the storage of each index"
    shape = facts.shape
    columns = shape[-1] if shape else 1
    places = positions(facts, min(facts.count, _CELLS)).tolist()
    wide = max(len(str(place)) for place in places) + 2
    fit = max(1, min(columns, (width - 6) // wide))
    rows_in_block = shape[-2] if len(shape) > 1 else 1
    for row, start in enumerate(range(0, len(places), columns)):
        if len(shape) > 2 and row % rows_in_block == 0:
            outer, block = [], row // rows_in_block
            for size in reversed(shape[:-2]):
                outer.append(block % size)
                block //= size
            yield f"  [{', '.join(map(str, reversed(outer)))}, :, :]"
        cells = "".join(str(place).rjust(wide) for place in places[start : start + columns][:fit])
        yield cells + ("  ..." if fit < columns or start + columns > len(places) else "")
    if len(places) < facts.count:
        yield f"  ... and {facts.count - len(places)} more elements"


def _walk(facts: Strided) -> Iterator[str]:
    places = positions(facts, min(facts.count, _WALK)).tolist()
    more = " ..." if facts.count > _WALK else ""
    yield f"walk in index order: {' '.join(map(str, places))}{more}"
