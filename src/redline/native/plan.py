"""The memory plan: every intermediate gets its place in one arena, before anything runs."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from redline.native.ir import Program, Value

ALIGN = 64


@dataclass
class Plan:
    """Byte offsets in the arena by root value, and the size of the whole."""

    offsets: dict[Value, int] = field(default_factory=dict)
    size: int = 0


def floats(value: Value, lanes: int) -> int:
    """Elements that the value's memory holds, halo and filled-up channels included."""
    if value.layout is None:
        return value.size
    n, c, _, _ = value.shape
    return n * -(-c // lanes) * plane(value, lanes)


def plane(value: Value, lanes: int) -> int:
    """Elements from one block of channels to the next.

    A tile reads the same pixels of every block. Blocks a multiple of 2 KiB apart would meet in the
    same few sets of the first-level cache, so such planes are a quarter of the sets longer.
    """
    assert value.layout is not None
    _, _, h, w = value.shape
    top, left, bottom, right = value.layout.halo
    size = (h + top + bottom) * (w + left + right) * lanes
    return size if size % 512 else size + 256


def plan(program: Program, lanes: int, scratch: dict[int, int]) -> tuple[Plan, dict[int, int]]:
    """Places for all intermediates, first fit by size; values that never live together share.

    A value with a halo shares only with values of the same geometry: the halo is zeroed once, when
    the arena is made, and nobody else may write there. `scratch` is bytes a node needs while it
    runs; the second result says where.
    """
    outside = {*program.inputs, *(value for value in program.outputs)}
    lives: dict[Value, list[int]] = {}
    own: dict[Value, Hashable] = {}
    for place, node in enumerate(program.nodes):
        for value in (*node.writes(), *node.reads()):
            root = value.root
            if root.const is None and root not in outside:
                lives.setdefault(root, [place, place])[1] = place
        if node.attrs.get("halo"):
            own[node.out.root] = ("planar", node.out.root.shape, node.out.offset)
        layout = node.out.layout
        if layout is not None and any(layout.halo):
            own[node.out] = (node.out.shape, layout.halo, node.out.dtype)
    result = Plan()
    slots: dict[Hashable, list[list[int]]] = {}
    for root in [value for value in lives if value in own]:
        first, last = lives[root]
        for slot in slots.setdefault(own[root], []):
            if slot[1] < first:
                slot[1] = last
                result.offsets[root] = slot[0]
                break
        else:
            result.offsets[root] = result.size
            slots[own[root]].append([result.size, last])
            result.size += _round(floats(root, lanes) * root.dtype.itemsize + ALIGN)
    return result, _first_fit(result, lives, own, lanes, scratch)


def _first_fit(
    result: Plan,
    lives: dict[Value, list[int]],
    own: dict[Value, Hashable],
    lanes: int,
    scratch: dict[int, int],
) -> dict[int, int]:
    """Biggest first, each at the lowest place that is free through its whole life."""
    wants: list[tuple[int, int, int, object]] = [
        (_round(floats(value, lanes) * value.dtype.itemsize + ALIGN), first, last, value)
        for value, (first, last) in lives.items()
        if value not in own
    ]
    wants += [(_round(size), place, place, place) for place, size in scratch.items()]
    placed: list[tuple[int, int, int, int]] = []
    start, top, found = result.size, result.size, {}
    for size, first, last, who in sorted(wants, key=lambda want: -want[0]):
        at = start
        for begin, end, since, until in sorted(placed):
            if since <= last and first <= until and begin < at + size and at < end:
                at = end
        placed.append((at, at + size, first, last))
        top = max(top, at + size)
        if isinstance(who, Value):
            result.offsets[who] = at
        else:
            assert isinstance(who, int)
            found[who] = at
    result.size = top
    return found


def _round(size: int) -> int:
    return (size + ALIGN - 1) // ALIGN * ALIGN
